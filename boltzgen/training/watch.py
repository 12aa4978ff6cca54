"""An alarm for basins that get lost during a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from boltzgen.training.batches import RecentBatches

__all__ = ["BasinWatch"]

SHRUNK = 0.5  # a basin with less than this share of its expected population raises the alarm
STANDARD_ERRORS = 2.0  # by which it has to be less
FEWEST_EFFECTIVE = 10.0  # samples of a basin, weights considered, for an expectation to mean something


class BasinWatch:
    """Compares what the flow generates in each basin with what its weights say should be there.

    Expected is the weighted population of the last batches and, where a cooling has just made a step, the one that was
    estimated before it for the new temperature. A basin that holds significantly less than half of either among the
    samples themselves gets lost: a loss on samples of the flow learns nothing of what the flow stops to draw.
    Significant is a difference of two standard errors: share and weighted population of the same batches move together,
    those of different batches do not.
    """

    def __init__(self) -> None:
        self.shrunken: list[str] = []
        self._foreseen: dict[str, tuple[float, float]] = {}

    def check(self, recent: RecentBatches, kT: float) -> list[str]:
        """Messages for basins that were not shrunken at the last check; `shrunken` are all that are."""
        shares, present, effective = recent.shares(), recent.populations(kT), recent.effective_samples(kT)
        found, messages = [], []
        for name, (share, error) in shares.items():
            missed = []
            if name in self._foreseen:
                expected, its_error = self._foreseen[name]
                if share + STANDARD_ERRORS * math.hypot(error, SHRUNK * its_error) < SHRUNK * expected:
                    missed.append(expected)
            if effective[name] >= FEWEST_EFFECTIVE:
                excess, its_error = recent.excess(kT, SHRUNK)[name]
                if excess + STANDARD_ERRORS * its_error < 0:
                    missed.append(present[name][0])
            if missed:
                found.append(name)
                if name not in self.shrunken:
                    messages.append(f"{name} holds {share:.2%} of the samples where its weights say {max(missed):.2%}")
        self.shrunken = found
        return messages

    def foresee(self, recent: RecentBatches, kT: float) -> None:
        """Remember the populations that weights foresee at a temperature to come."""
        populations, effective = recent.populations(kT), recent.effective_samples(kT)
        self._foreseen = {name: populations[name] for name in populations if effective[name] >= FEWEST_EFFECTIVE}

    def state(self) -> dict[str, Any]:
        """As numbers and strings."""
        return {"shrunken": list(self.shrunken), "foreseen": dict(self._foreseen)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        self.shrunken, self._foreseen = list(state["shrunken"]), dict(state["foreseen"])
