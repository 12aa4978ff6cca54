"""Batches that were drawn and evaluated, and what the last of them say of any temperature."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.diagnostics import effective_sample_fraction, normalized_weights

__all__ = ["Batch", "RecentBatches"]

MONITOR_BATCHES = 8


@dataclass(frozen=True)
class Batch:
    """Evaluated configurations of one step, without gradient.

    Attributes
    ----------
    energy : (B,) tensor
        kJ/mol.
    offset : (B,) tensor
        What the target adds to U/kT at every temperature: the alignment penalty.
    log_q : (B,) tensor
        Under the parameters that drew them.
    inside : {name: (B,) bool tensor}
        Which lie in each basin.
    """

    energy: Tensor
    offset: Tensor
    log_q: Tensor
    inside: Mapping[str, Tensor]

    def log_weights(self, kT: float) -> Tensor:
        """log p~ - log q (B,) at a temperature."""
        return -self.energy / kT - self.offset - self.log_q


class RecentBatches:
    """The last batches that a training has drawn.

    Their ESS and populations cost no evaluation, at the temperature of their step or any other.
    """

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque(maxlen=MONITOR_BATCHES)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def full(self) -> bool:
        return len(self._batches) == self._batches.maxlen

    def add(self, batch: Batch) -> None:
        """Keep a batch; the oldest goes."""
        self._batches.append(batch)

    def clear(self) -> None:
        """Forget all of them, as after a jump of the parameters."""
        self._batches.clear()

    def log_weights(self, kT: float) -> np.ndarray:
        """log p~ - log q of all samples."""
        return torch.cat([batch.log_weights(kT) for batch in self._batches]).double().cpu().numpy()

    def ess_fraction(self, kT: float) -> float:
        """Kish's ESS over n, weighted at a temperature."""
        return effective_sample_fraction(self.log_weights(kT))

    def populations(self, kT: float) -> dict[str, float]:
        """Weighted population of each basin at a temperature."""
        weights = normalized_weights(self.log_weights(kT))
        return {name: float(weights[inside].sum()) for name, inside in self._inside().items()}

    def shares(self) -> dict[str, tuple[float, float]]:
        """Share of the samples in each basin, without weights, and its standard error."""
        shares = {}
        for name, inside in self._inside().items():
            share = float(inside.mean())
            shares[name] = share, float(np.sqrt(max(share * (1 - share), 1 / len(inside)) / len(inside)))
        return shares

    def _inside(self) -> dict[str, np.ndarray]:
        names = self._batches[-1].inside
        return {name: torch.cat([batch.inside[name] for batch in self._batches]).cpu().numpy() for name in names}

    def state(self) -> list[dict[str, Any]]:
        """As tensors and plain containers."""
        return [
            {"energy": b.energy, "offset": b.offset, "log_q": b.log_q, "inside": dict(b.inside)} for b in self._batches
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Take over a `state`."""
        self._batches.clear()
        for entry in state:
            self.add(Batch(**entry))
