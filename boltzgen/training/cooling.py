"""Cooling that sets its own pace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from boltzgen.training.batches import RecentBatches
from boltzgen.training.stages import Stage
from boltzgen.training.watch import BasinWatch

__all__ = ["Cooling"]

FREE_PACE = 0.8  # share of the stage in which the ESS alone sets the pace; after it the budget does
LONGEST_HOLD = 25  # decisions for which an alarm can hold the temperature


class Cooling:
    """The temperature of each step of a stage that has an ``ess_bound``.

    After every eight steps the temperature falls to the lowest at which the ESS of their samples, weighted at the new
    temperature, stays above the bound. Two things override this:

    - Alarm. Where the flow generates significantly less than half of what weights expect in a basin (`BasinWatch`), the
      temperature is held until the basin has recovered, for 25 decisions at most.
    - Budget. What is left to cool in the last fifth of the stage is cooled geometrically.

    Parameters
    ----------
    stage : Stage
    kT : float
        Of the target, kJ/mol.
    watch : BasinWatch
        Has checked the samples before each decision.
    """

    def __init__(self, stage: Stage, kT: float, watch: BasinWatch) -> None:
        if stage.ess_bound is None:
            raise ValueError(f"the stage {stage.name!r} has no ess_bound")
        self.stage, self.kT, self.bound, self.watch = stage, kT, stage.ess_bound, watch
        self.heat = stage.heat_start
        self._held = 0
        self._hurried = False

    def update(self, recent: RecentBatches | None, within: int) -> list[tuple[str, str]]:
        """Decide the temperature after a step of the stage.

        Parameters
        ----------
        recent : RecentBatches or None
            Where it is time for a decision: samples of this temperature alone.
        within : int
            The step within the stage.

        Returns
        -------
        list of (kind, message)
            What the history should say of it.
        """
        events: list[tuple[str, str]] = []
        if self.heat <= self.stage.heat_end:
            return events
        if recent is not None and not self._is_held(events):
            lowest = self._lowest(recent)
            if lowest < self.heat:
                self.heat = lowest
                self.watch.foresee(recent, self.kT * lowest)
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

    def _is_held(self, events: list[tuple[str, str]]) -> bool:
        """Whether a shrunken basin holds the temperature."""
        if not self.watch.shrunken:
            self._held = 0
            return False
        self._held += 1
        if self._held == 1:
            events.append(("alarm", f"cooling is held at {self.heat:.3g} times the target temperature"))
        if self._held > LONGEST_HOLD:
            events.append(("alarm", f"{', '.join(self.watch.shrunken)} did not recover: cooling goes on"))
            self._held = 0
            return False
        return True

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
        return {"heat": self.heat, "held": self._held, "hurried": self._hurried}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        self.heat, self._held, self._hurried = state["heat"], state["held"], state["hurried"]
