"""Progress of a training: a bar in a terminal or notebook, now and then a line elsewhere."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from boltzgen.interrupts import Interrupts

if TYPE_CHECKING:
    from boltzgen.training import Training

__all__ = [
    "Progress",
    "StepsShower",
    "can_show_bar",
    "describe_record",
    "format_duration",
    "interruptible_steps",
    "shown_steps",
    "shown_wait",
]

# Called with steps; gives them back one by one while showing how far it is, as tqdm does.
StepsShower = Callable[[Iterable[int]], Iterable[int]]

LINE_SECONDS = 15.0


class Progress:
    """Shows the records of a training; give it to ``Training`` as ``on_record``.

    Parameters
    ----------
    write_line : callable, optional
        Where lines go when there is no bar; standard error if absent.
    bar : bool, optional
        True for a bar, False for lines; a bar in a terminal or notebook if absent.
    every : float
        Seconds between two lines.
    """

    def __init__(
        self, write_line: Callable[[str], None] | None = None, bar: bool | None = None, every: float = LINE_SECONDS
    ) -> None:
        self._write_line = write_line or _to_stderr
        self._use_bar = can_show_bar() if bar is None else bar
        self._every = every
        self._bar: Any = None
        self._last_line = -float("inf")
        self._clock = _Clock()

    def __call__(self, record: Mapping[str, Any], training: Training) -> None:
        remaining = self._clock.remaining(record, training.n_steps)
        if self._use_bar:
            self._show_bar(record, training.n_steps, remaining)
            return
        now = time.monotonic()
        if now - self._last_line >= self._every or record["step"] == training.n_steps:
            share = record["step"] / training.n_steps
            self._write_line(f"{share:4.0%}  {describe_record(record)}  {format_duration(remaining)} left")
            self._last_line = now

    def close(self) -> None:
        """Leave the last state of the bar standing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show_bar(self, record: Mapping[str, Any], n_steps: int, remaining: float) -> None:
        if self._bar is None:
            self._bar = _new_bar(n_steps, record["step"])
        self._bar.set_description_str(f"{describe_record(record)}, {format_duration(remaining)} left", refresh=False)
        self._bar.update(record["step"] - self._bar.n)
        if record["step"] == n_steps:
            self.close()


def shown_steps(steps: Iterable[int], label: str, stop: Callable[[], bool] | None = None) -> Iterator[int]:
    """The same steps, with a bar or lines that tell how far they are and how long the rest takes.

    Parameters
    ----------
    stop : callable, optional
        Asked before each step; a true answer ends them.
    """
    everything = list(steps)
    started = last = time.monotonic()
    left = lambda done, now: format_duration((now - started) / done * (len(everything) - done))
    use_bar = can_show_bar() and len(everything) > 1
    with _new_bar(len(everything), 0) if use_bar else nullcontext() as bar:
        for done, step in enumerate(everything):
            if stop is not None and stop():
                return
            now = time.monotonic()
            if bar is not None:
                bar.set_description_str(f"{label}, {left(done, now)} left" if done else label, refresh=False)
            elif done and now - last >= LINE_SECONDS:
                _to_stderr(f"{done / len(everything):4.0%}  {label}  {left(done, now)} left")
                last = now
            yield step
            if bar is not None:
                bar.update(1)


@contextmanager
def shown_wait(label: str) -> Iterator[None]:
    """Say what is being waited for, and afterwards how long it took; one line in a terminal or notebook."""
    started = time.monotonic()
    if not can_show_bar():
        _to_stderr(label)
        yield
        return
    sys.stderr.write(label)
    sys.stderr.flush()
    try:
        yield
    finally:
        _to_stderr(f": {format_duration(time.monotonic() - started)}")


@contextmanager
def interruptible_steps(n: int, progress: bool | StepsShower, label: str) -> Iterator[Iterable[int]]:
    """range(n), for work that keeps what it has when the steps end early.

    Parameters
    ----------
    progress : bool or callable
        Show the steps, with the time that is left; the first Ctrl-C then ends them. Or wrap them with this, which may
        end them early too.
    """
    if callable(progress):
        yield progress(range(n))
    elif progress:
        with Interrupts() as interrupts:
            yield shown_steps(range(n), label, interrupts.requested)
    else:
        yield range(n)


class _Clock:
    """Remaining time from the recent pace: stages differ in the cost of a step."""

    def __init__(self) -> None:
        self._previous: tuple[int, float] | None = None
        self._stage = ""
        self._seconds_per_step = float("nan")

    def remaining(self, record: Mapping[str, Any], n_steps: int) -> float:
        step, seconds = int(record["step"]), float(record["seconds"])
        if self._previous is None:
            self._seconds_per_step = seconds / max(step, 1)
        elif step > self._previous[0]:
            pace = (seconds - self._previous[1]) / (step - self._previous[0])
            keep = 0.8 if record["stage"] == self._stage else 0.0
            self._seconds_per_step = keep * self._seconds_per_step + (1 - keep) * pace
        self._previous, self._stage = (step, seconds), str(record["stage"])
        return self._seconds_per_step * (n_steps - step)


def describe_record(record: Mapping[str, Any]) -> str:
    """Stage, what it has cost, temperature, loss, ESS and populations in one short line."""
    temperature = record["temperature"]
    parts = [f"{record['energy_evaluations']:.3g} evaluations in {format_duration(record['seconds'])}"]
    parts += [f"{temperature:.0f} K" if temperature > 20 else f"heat {temperature:.2f}"]
    parts += [f"loss {record['loss']:.3g}", f"ESS {record['ess_fraction']:.0%}"]
    parts += [f"{name} {population:.2%}" for name, population in record["populations"].items()]
    return f"{record['stage']:<10} " + ", ".join(parts)


def format_duration(seconds: float) -> str:
    """Short text such as "45 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds != seconds:
        return "? s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _new_bar(n_steps: int, initial: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns where ipywidgets is missing, and then shows a text bar
        from tqdm.auto import tqdm

        layout = "{percentage:3.0f}%|{bar:20}| {desc}"
        return tqdm(total=n_steps, initial=initial, bar_format=layout, dynamic_ncols=True, mininterval=0.5, delay=1e-3)


def can_show_bar() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some pseudo-terminals have no width
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and "ipykernel" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
