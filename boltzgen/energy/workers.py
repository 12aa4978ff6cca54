"""Batches of configurations through evaluators that take one at a time: in this thread, or in several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Evaluator", "InThisThread", "Pool", "WorkerThreads", "chunks", "evaluate_rows"]

PENDING, DONE, LOST = 0, 1, 2
# So that a worker that is slow or starts late does not keep the others waiting.
CHUNKS_PER_WORKER = 4

Floats = NDArray[np.float64]
# Positions (N, 3) in nm and whether forces are wanted, to energy in kJ/mol and forces (N, 3) or None.
Evaluator = Callable[[Floats, bool], tuple[float, Floats | None]]


@dataclass
class Batch:
    """Configurations and what is known of them; an engine writes into the arrays, row by row.

    Attributes
    ----------
    positions : (B, N, 3) array
        nm; finite.
    energies : (B,) array
        kJ/mol; defined where the state is DONE.
    forces : (B, N, 3) array or None
        kJ/mol/nm, if wanted.
    state : (B,) array of uint8
        PENDING, DONE or LOST (the engine failed on this configuration).
    """

    positions: Floats
    energies: Floats
    forces: Floats | None
    state: NDArray[np.uint8]

    @classmethod
    def of(cls, positions: Floats, forces: bool) -> Batch:
        """A batch of which nothing is known yet."""
        n = len(positions)
        return cls(
            positions, np.full(n, np.nan), np.zeros_like(positions) if forces else None, np.full(n, PENDING, np.uint8)
        )

    def __len__(self) -> int:
        return len(self.positions)

    def first_pending(self, start: int, stop: int) -> int:
        """The first row from start that is not done, or stop."""
        pending = self.state[start:stop] == PENDING
        return start + int(pending.argmax()) if pending.any() else stop


class Pool(Protocol):
    """Anything that fills batches."""

    def evaluate(self, batch: Batch) -> str:
        """Fill the batch; returns why the last lost configuration was lost, or an empty string."""

    def close(self) -> None:
        """Give back workers and Contexts; a later call makes new ones."""


def evaluate_rows(
    evaluate: Evaluator, batch: Batch, start: int, stop: int, cancelled: threading.Event | None = None
) -> str:
    """Fill some rows; a failure costs the row on which it happens. Returns the last failure, or an empty string."""
    failure = ""
    for row in range(start, stop):
        if cancelled is not None and cancelled.is_set():
            break
        try:
            energy, forces = evaluate(batch.positions[row], batch.forces is not None)
        except Exception as error:  # whatever an engine raises is about this configuration
            failure = f"{type(error).__name__}: {error}"
            batch.state[row] = LOST
            continue
        batch.energies[row] = energy
        if batch.forces is not None and forces is not None:
            batch.forces[row] = forces
        batch.state[row] = DONE
    return failure


def chunks(n: int, n_workers: int) -> list[tuple[int, int]]:
    """Ranges of rows, a few for each worker."""
    size = max(1, -(-n // (CHUNKS_PER_WORKER * n_workers)))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class InThisThread:
    """One evaluator, used by one thread at a time."""

    def __init__(self, factory: Callable[[], Evaluator]) -> None:
        self._factory = factory
        self._evaluator: Evaluator | None = None
        self._lock = threading.Lock()

    def evaluate(self, batch: Batch) -> str:
        with self._lock:
            if self._evaluator is None:
                self._evaluator = self._factory()
            return evaluate_rows(self._evaluator, batch, 0, len(batch))

    def close(self) -> None:
        with self._lock:
            self._evaluator = None


class WorkerThreads:
    """Several threads with an evaluator each: they run in parallel as far as the engine releases Python's lock.

    OpenMM does so in getState. A crash of the engine is a crash of the program, and one that hangs cannot be stopped.
    """

    def __init__(self, factory: Callable[[], Evaluator], n_workers: int) -> None:
        self._factory, self._n_workers = factory, n_workers
        self._idle: SimpleQueue[Evaluator] = SimpleQueue()
        self._executor: ThreadPoolExecutor | None = None

    def evaluate(self, batch: Batch) -> str:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._n_workers, thread_name_prefix="energy")
        cancelled = threading.Event()
        futures = [
            self._executor.submit(self._chunk, batch, start, stop, cancelled)
            for start, stop in chunks(len(batch), self._n_workers)
        ]
        try:
            failures = [future.result() for future in futures]
        except BaseException:  # Ctrl-C too: the rows that run are finished, into arrays that nobody reads
            cancelled.set()
            for future in futures:
                future.cancel()
            raise
        return next((failure for failure in reversed(failures) if failure), "")

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor, self._idle = None, SimpleQueue()

    def _chunk(self, batch: Batch, start: int, stop: int, cancelled: threading.Event) -> str:
        try:
            evaluator = self._idle.get_nowait()
        except Empty:
            evaluator = self._factory()
        try:
            return evaluate_rows(evaluator, batch, start, stop, cancelled)
        finally:
            self._idle.put(evaluator)
