"""Divergence: caught, taken back, reported."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boltzgen.errors import BoltzgenError

__all__ = ["Safeguard", "TrainingDivergedError"]

SNAPSHOT_STEPS = 100
FEWEST_STEPS = 20  # good ones in a row, before their state is worth keeping
BAD_IN_A_ROW = 10
EXPLODED = 1e4  # gradient norm over the median of the recent ones; a hundred happens in health
NORMS = 200
SLOWER = 0.5  # learning rate after each return
MOST_RETURNS = 5


class TrainingDivergedError(BoltzgenError):
    """A training diverged again and again; the generator holds the last good parameters."""


class Safeguard:
    """Keeps the last good state of a training, and goes back to it when steps fail in a row.

    A step fails if its loss or gradient is not finite, if its gradient is ten thousand times the usual one, or if fewer
    than a quarter of its samples have a finite energy. It is left out; after ten in a row the parameters, the optimiser
    and losses that learn go back to the last good state, at most a few hundred steps ago, and the learning rate is
    halved for the rest of the training.

    Attributes
    ----------
    rate : float
        Factor on the learning rate.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        average: list[Tensor],
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._parameters, self._optimizer, self._average = parameters, optimizer, average
        self._modules = modules or {}  # losses with a state
        self._norms: deque[float] = deque(maxlen=NORMS)
        self._good, self._bad, self._returns, self._since = 0, 0, 0, 0  # steps; since: taken since the last good state
        self.rate = 1.0
        self._kept = self._present()

    def is_good(self, loss: float, norm: float) -> bool:
        """Whether a step with this loss and gradient norm may be taken."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        usual = sorted(self._norms)[len(self._norms) // 2] if len(self._norms) == NORMS else math.inf
        return norm <= EXPLODED * usual

    def took(self, norm: float) -> None:
        """Note a good step."""
        self._norms.append(norm)
        self._good, self._bad, self._since = self._good + 1, 0, self._since + 1
        if self._good >= FEWEST_STEPS and self._since >= SNAPSHOT_STEPS:
            self._kept, self._since = self._present(), 0

    def failed(self, reason: str) -> str | None:
        """Note a failed step.

        Returns
        -------
        str or None
            What was done, if the parameters went back.

        Raises
        ------
        TrainingDivergedError
            If they have gone back too often.
        """
        self._good, self._bad = 0, self._bad + 1
        if self._bad < BAD_IN_A_ROW:
            return None
        taken_back, self._since = self._since, 0
        self._restore()
        self._bad, self._returns, self.rate = 0, self._returns + 1, self.rate * SLOWER
        if self._returns > MOST_RETURNS:
            raise TrainingDivergedError(
                f"the training diverged {self._returns} times, the last time because {reason}; the generator holds the "
                "last good parameters: start from a structure without clashes, hotter, or with a lower learning rate"
            )
        return (
            f"{reason}, {BAD_IN_A_ROW} times in a row: {taken_back} good steps before them are taken back too, "
            f"learning rate x {self.rate:g}"
        )

    def _present(self) -> dict[str, Any]:
        return {
            "parameters": [p.detach().clone() for p in self._parameters],
            "average": [a.clone() for a in self._average],
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "modules": {name: copy.deepcopy(module.state_dict()) for name, module in self._modules.items()},
        }

    def _restore(self) -> None:
        with torch.no_grad():
            for tensors, kept in ((self._parameters, "parameters"), (self._average, "average")):
                for tensor, value in zip(tensors, self._kept[kept], strict=True):
                    tensor.copy_(value)
        self._optimizer.load_state_dict(copy.deepcopy(self._kept["optimizer"]))
        for name, module in self._modules.items():
            module.load_state_dict(self._kept["modules"][name])

    def state(self) -> dict[str, Any]:
        """As tensors, numbers and strings."""
        return {
            "norms": list(self._norms),
            "counters": [self._good, self._bad, self._returns, self._since],
            "rate": self.rate,
            "kept": self._kept,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        self._norms = deque(state["norms"], maxlen=NORMS)
        self._good, self._bad, self._returns, self._since = state["counters"]
        self.rate, self._kept = state["rate"], state["kept"]
