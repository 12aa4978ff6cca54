"""Tables of the benchmarks (as text, Markdown and JSON), and timings that can be compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Table", "interleaved"]


@dataclass
class Table:
    """Rows under column names, with a title and notes.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : list of list
        Text, numbers or None (not measured).
    notes : list of str
        What a reader has to know.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN and no infinity."""
        content = asdict(self)
        content["rows"] = [[str(c) if _not_finite(c) else c for c in row] for row in self.rows]
        return content

    def markdown(self) -> str:
        """Readable as plain text too: columns are padded."""
        cells = [[_cell(value) for value in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        aligned = [
            "| " + " | ".join(_pad(c, w, k) for k, (c, w) in enumerate(zip(row, widths, strict=True))) + " |"
            for row in cells
        ]
        rule = "|" + "|".join("-" * (w + 1) + ("-" if k == 0 else ":") for k, w in enumerate(widths)) + "|"
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", aligned[0], rule, *aligned[1:], "", *notes, ""])


def interleaved(calls: Sequence[tuple[Callable[[], object], int]], seconds: float, rounds: int = 5) -> list[float]:
    """Shortest time per configuration in microseconds, of calls that take turns.

    On a machine with other work, calls that are measured one after the other meet different conditions; their ratios
    mean more when each is tried in several rounds.

    Parameters
    ----------
    calls
        Function without arguments, and how many configurations one call evaluates. Each is called once before.
    seconds : float
        For each function, over all rounds; at least one call a round, until they took three times as long.
    rounds : int
    """
    for call, _ in calls:
        call()
    best, spent = [math.inf] * len(calls), [0.0] * len(calls)
    for _ in range(rounds):
        for index, (call, _) in enumerate(calls):
            start = time.perf_counter()
            taken = 0.0
            while taken < seconds / rounds and spent[index] + taken < 3 * seconds:
                begin = time.perf_counter()
                call()
                now = time.perf_counter()
                best[index] = min(best[index], now - begin)
                taken = now - start
            spent[index] += taken
    return [1e6 * shortest / n for shortest, (_, n) in zip(best, calls, strict=True)]


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if value != 0 and abs(value) < 1e-2:
            return f"{value:.1e}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)
