"""Cooling that sets its own pace, and an alarm for basins that get lost on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from boltzgen.training.batches import MONITOR_BATCHES, RecentBatches
from boltzgen.training.stages import Stage

__all__ = ["Cooling"]

FREE_PACE = 0.8  # share of the stage in which the ESS alone sets the pace; after it the budget does
SHRUNK = 0.5  # a basin with less than this share of its expected population raises the alarm
STANDARD_ERRORS = 2.0  # by which it has to be less
FEWEST_EXPECTED = 10  # samples of a basin among the recent ones, for its loss to be told from chance
LONGEST_HOLD = 25  # decisions for which an alarm can hold the temperature


class Cooling:
    """The temperature of each step of a stage that has an ``ess_bound``.

    After every eight steps the temperature falls to the lowest at which the ESS of these steps' samples, weighted at
    the new temperature, stays above the bound. Two things override this:

    - Alarm. Before each fall the population of every basin at the new temperature is estimated by weights. Where the
      flow then generates significantly less than half of it, or of the present estimate if that is more, the
      temperature is held until the basin has recovered.
    - Budget. What is left to cool in the last fifth of the stage is cooled geometrically.

    Parameters
    ----------
    stage : Stage
    kT : float
        Of the target, kJ/mol.
    """

    def __init__(self, stage: Stage, kT: float) -> None:
        if stage.ess_bound is None:
            raise ValueError(f"the stage {stage.name!r} has no ess_bound")
        self.stage, self.kT, self.bound = stage, kT, stage.ess_bound
        self.heat = stage.heat_start
        self._expected: dict[str, float] = {}
        self._alarmed: list[str] = []
        self._held = 0
        self._hurried = False

    def update(self, recent: RecentBatches, within: int) -> list[tuple[str, str]]:
        """Decide the temperature after a step of the stage.

        Returns
        -------
        list of (kind, message)
            What the history should say of it.
        """
        events: list[tuple[str, str]] = []
        if self.heat <= self.stage.heat_end:
            return events
        if within % MONITOR_BATCHES == 0 and recent.full and not self._hold(recent, events):
            self._fall_to(self._lowest(recent), recent)
        self._keep_to_budget(within, events)
        return events

    def _lowest(self, recent: RecentBatches) -> float:
        """The lowest heat, not below the stage's end, at which the ESS is above the bound; by bisection of its log."""
        enough = lambda heat: recent.ess_fraction(self.kT * heat) >= self.bound
        low, high = self.stage.heat_end, self.heat
        if enough(low):
            return low
        if not enough(high):
            return high
        for _ in range(12):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _fall_to(self, heat: float, recent: RecentBatches) -> None:
        self.heat = heat
        self._expected = recent.populations(self.kT * heat)

    def _hold(self, recent: RecentBatches, events: list[tuple[str, str]]) -> bool:
        """Whether a shrunken basin holds the temperature."""
        shares = recent.shares()
        present = recent.populations(self.kT * self.heat)
        n = len(recent.log_weights(self.kT))
        shrunken = []
        for name, (share, error) in shares.items():
            expected = max(self._expected.get(name, 0.0), present[name])
            if expected * n >= FEWEST_EXPECTED and share + STANDARD_ERRORS * error < SHRUNK * expected:
                shrunken.append(name)
                if name not in self._alarmed:
                    events.append(
                        (
                            "alarm",
                            f"{name} holds {share:.2%} of the samples where its weights say {expected:.2%}: "
                            f"cooling is held at {self.heat:.3g} times the target temperature",
                        )
                    )
        self._alarmed = shrunken
        self._held = self._held + 1 if shrunken else 0
        if self._held > LONGEST_HOLD:
            events.append(
                ("alarm", f"{', '.join(shrunken)} did not recover in {8 * LONGEST_HOLD} steps: cooling goes on")
            )
            self._held = 0
            return False
        return bool(shrunken)

    def _keep_to_budget(self, within: int, events: list[tuple[str, str]]) -> None:
        steps_left = self.stage.n_steps - 1 - within
        if within < FREE_PACE * self.stage.n_steps or self.heat <= self.stage.heat_end:
            return
        if not self._hurried:
            self._hurried = True
            events.append(
                ("pace", f"the budget sets the pace below {self.heat:.3g} times the target temperature, not the ESS")
            )
        ratio = (self.stage.heat_end / self.heat) ** (1 / max(steps_left, 1))
        self.heat = max(self.heat * ratio, self.stage.heat_end)

    def state(self) -> dict[str, Any]:
        """As numbers and strings."""
        return {
            "heat": self.heat,
            "expected": dict(self._expected),
            "alarmed": list(self._alarmed),
            "held": self._held,
            "hurried": self._hurried,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        self.heat = state["heat"]
        self._expected, self._alarmed = dict(state["expected"]), list(state["alarmed"])
        self._held, self._hurried = state["held"], state["hurried"]
