"""Running averages of the parameters, which take their place when a training ends or stops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Averages"]

DECAY = 0.999


class Averages:
    """Exponential averages of the parameters of a flow; at first they forget faster.

    Parameters
    ----------
    parameters : sequence of Tensor

    Attributes
    ----------
    values : list of Tensor
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.values = [p.detach().clone() for p in parameters]
        self._replaced: list[Tensor] | None = None  # parameters in whose place the averages stand

    def update(self, step: int) -> None:
        """Mix in the parameters of a step."""
        decay = min(DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._parameters], 1 - decay)

    def put(self, keep: bool) -> None:
        """Copy the averages into the parameters, which are kept for `take_back` if more steps are to come."""
        self._replaced = [p.detach().clone() for p in self._parameters] if keep else None
        self._copy(self.values)

    def take_back(self) -> None:
        """Return to the parameters that `put` replaced, if it did."""
        if self._replaced is not None:
            self._copy(self._replaced)
            self._replaced = None

    @property
    def replaced(self) -> list[Tensor] | None:
        """The parameters in whose place the averages stand; None where they do not."""
        return self._replaced

    def load(self, values: Sequence[Tensor]) -> None:
        """Take over the values of others, beside parameters that go on as they are."""
        self._replaced = None
        for tensor, saved in zip(self.values, values, strict=True):
            tensor.copy_(saved)

    def _copy(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)
