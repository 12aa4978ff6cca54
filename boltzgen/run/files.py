"""Parts of a run: its samples, drawn with a bar, and its history as a table on disk."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzgen.ensemble import Ensemble
from boltzgen.errors import EstimateError, OutputError
from boltzgen.output_files import explain_os_error, write_bytes
from boltzgen.progress import shown_steps
from boltzgen.training import History

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["drawn", "read_history", "write_history"]

POPULATION = "population "


def drawn(generator: BoltzmannGenerator, n: int, stop: Callable[[], bool] | None = None) -> Ensemble:
    """``generator.sample(n)``, with progress where there are many.

    Parameters
    ----------
    stop : callable, optional
        Asked before each block of samples; a true answer ends the drawing with those that there are.

    Raises
    ------
    KeyboardInterrupt
        If it was ended before the first.
    """
    try:
        return generator.sample(n, progress=lambda blocks: shown_steps(blocks, "samples", stop))
    except EstimateError:
        if stop is None or not stop():
            raise
        raise KeyboardInterrupt from None


def write_history(path: Path, history: History) -> None:
    """As a table with one line for each record."""
    table = history.table()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    write_bytes(path, text.getvalue().encode())


def read_history(path: Path, events: list[dict[str, Any]]) -> History:
    """What `write_history` wrote.

    Parameters
    ----------
    events : list of dict
        ``training_events`` of ``result.json``: the table does not hold them.

    Raises
    ------
    OutputError
        If the file cannot be read, or is no such table.
    """
    history = History()
    kinds: dict[str, Callable[[str], Any]] = {"stage": str, "step": int, "energy_evaluations": int}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        records = []
        for row in rows:
            values = {key: kinds.get(key, float)(text) for key, text in row.items() if not key.startswith(POPULATION)}
            inside = {key[len(POPULATION) :]: float(text) for key, text in row.items() if key.startswith(POPULATION)}
            records.append(values | {"populations": inside})
        history.load(records, events)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {explain_os_error(error)}") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise OutputError(f"{path} is no history of a training: {error}") from error
    return history
