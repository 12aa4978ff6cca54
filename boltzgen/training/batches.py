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
        kJ/mol; +inf counts, with weight zero.
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
        self._new = 0

    def __len__(self) -> int:
        return len(self._batches)

    def are_new(self) -> bool:
        """Whether all have come since this was last so: true once for every eight batches."""
        if self._new < MONITOR_BATCHES:
            return False
        self._new = 0
        return True

    def add(self, batch: Batch) -> None:
        """Keep a batch; the oldest goes."""
        self._batches.append(batch)
        self._new += 1

    def clear(self) -> None:
        """Forget all of them, as after a jump of the parameters."""
        self._batches.clear()
        self._new = 0

    def log_weights(self, kT: float) -> np.ndarray:
        """log p~ - log q of all samples."""
        return torch.cat([batch.log_weights(kT) for batch in self._batches]).double().cpu().numpy()

    def ess_fraction(self, kT: float) -> float:
        """Kish's ESS over n, weighted at a temperature."""
        return effective_sample_fraction(self.log_weights(kT))

    def populations(self, kT: float) -> dict[str, tuple[float, float]]:
        """Weighted population of each basin at a temperature, and its standard error; NaN where every weight is zero.

        The error is that of a ratio of means, ``sqrt(sum w^2 (h - p)^2)`` with normalised weights w, h = 1 inside and 0
        outside (delta method; Owen, Monte Carlo theory, 2013, eq. 9.9).
        """
        weights = self._weights(kT)
        found = {}
        for name, inside in self._inside().items():
            population = float(weights[inside].sum())
            found[name] = population, float(np.sqrt(np.square(weights * (inside - population)).sum()))
        return found

    def excess(self, kT: float, factor: float) -> dict[str, tuple[float, float]]:
        """Share of the samples in each basin less a multiple of its weighted population, and the standard error.

        Both come from the same samples, so the error is that of the difference, by the delta method as above.
        """
        weights = self._weights(kT)
        found = {}
        for name, inside in self._inside().items():
            share, population = float(inside.mean()), float(weights[inside].sum())
            terms = (inside - share) / len(inside) - factor * weights * (inside - population)
            found[name] = share - factor * population, float(np.sqrt(np.square(terms).sum()))
        return found

    def effective_samples(self, kT: float) -> dict[str, float]:
        """Kish's effective number of samples in each basin at a temperature."""
        weights = self._weights(kT)
        inside = {name: weights[rows] for name, rows in self._inside().items()}
        return {name: float(w.sum() ** 2 / np.square(w).sum()) if w.any() else 0.0 for name, w in inside.items()}

    def _weights(self, kT: float) -> np.ndarray:
        log_weights = self.log_weights(kT)
        if not np.isfinite(log_weights).any():
            return np.full(len(log_weights), np.nan)
        return normalized_weights(log_weights)

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

    def state(self) -> dict[str, Any]:
        """As tensors and plain containers."""
        batches = [
            {"energy": b.energy, "offset": b.offset, "log_q": b.log_q, "inside": dict(b.inside)} for b in self._batches
        ]
        return {"batches": batches, "new": self._new}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over a `state`."""
        self._batches.clear()
        for entry in state["batches"]:
            inside = {name: rows.to(device) for name, rows in entry["inside"].items()}
            energy, offset, log_q = (entry[name].to(device) for name in ("energy", "offset", "log_q"))
            self.add(Batch(energy, offset, log_q, inside))
        self._new = state["new"]
