"""What was seen during a training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["Event", "History"]


@dataclass(frozen=True)
class Event:
    """Something that the user should know of a training.

    Attributes
    ----------
    step : int
    kind : str
        "alarm" (a basin shrinks faster than its weights say), "pace" (the budget, not the ESS, set the cooling),
        "divergence" (a step was taken back), "stop" (the training ended before its budget), "weights" (configurations
        without weights were given some), "start" and "basins" (which basins were looked for, how, which were found).
    message : str
    """

    step: int
    kind: str
    message: str

    def __str__(self) -> str:
        return f"step {self.step:,}: {self.message}"


@dataclass
class History:
    """What was seen during a training, one record now and then.

    Each record holds ``stage``, ``step``, ``temperature`` (K, or heat where there is no molecule), ``loss``,
    ``ess_fraction``, ``energy_evaluations``, ``seconds`` and ``populations`` (by basin). ESS and populations are those
    of the last batches, weighted at the temperature of their step: following them costs no evaluation.

    Training on data gives none of the latter; its records hold ``held_out``, the mean negative log-likelihood of
    configurations held out, and ``kept``, true of the one whose weights the generator has in the end.

    Attributes
    ----------
    records : list of dict
    events : list of Event
        Alarms, divergences and early stops, in order.
    interrupted : bool
        Whether the user stopped it.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    events: list[Event] = field(default_factory=list)

    def table(self) -> dict[str, np.ndarray]:
        """Columns of the records as arrays; populations as ``population <basin>``."""
        if not self.records:
            return {}
        columns = {key: np.array([r[key] for r in self.records]) for key in self.records[0] if key != "populations"}
        for name in dict.fromkeys(name for record in self.records for name in record["populations"]):
            values = [record["populations"].get(name, float("nan")) for record in self.records]
            columns[f"population {name}"] = np.array(values)
        return columns

    def happened(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.kind == kind]

    def events_state(self) -> list[dict[str, Any]]:
        """The events as plain numbers and strings."""
        return [asdict(event) for event in self.events]

    def load(self, records: Iterable[dict[str, Any]], events: Iterable[dict[str, Any]]) -> None:
        """Take over what `records` and `events_state` were."""
        self.records = list(records)
        self.events = [Event(**event) for event in events]

    def __repr__(self) -> str:
        if not self.records:
            return "<History: empty>"
        last = self.records[-1]
        kept = next((record for record in self.records if record.get("kept")), None)
        if kept is not None:
            return (
                f"<History: {last['step']:,} steps on data, {last['seconds']:.0f} s, weights of step "
                f"{kept['step']:,} kept, held-out negative log-likelihood {kept['held_out']:.3f}>"
            )
        events = f", {len(self.events)} events" if self.events else ""
        return (
            f"<History: {last['energy_evaluations']:,} energy evaluations, {last['seconds']:.0f} s, "
            f"ESS {last['ess_fraction']:.1%} of the last batches{events}>"
        )
