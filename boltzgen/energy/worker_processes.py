"""Worker processes that share memory with their parent, and may die or hang without taking more than a sample along."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from boltzgen.energy.workers import LOST, PENDING, Batch, Evaluator, chunks, evaluate_rows
from boltzgen.errors import PotentialError

__all__ = ["WorkerProcesses"]

# Bytes of positions, energies and forces in memory at a time; half of what containers have for /dev/shm as a rule.
SHARED_BYTES = 32 * 1024**2
HEAP_BYTES = 16 * 1024**2
POLL_SECONDS = 0.5
START_SECONDS = 300.0
# Deaths in a row, over all workers, without one configuration done in between.
MAX_FRUITLESS = 20
_ADVICE = "use workers=0 or worker_kind='thread', and in a script create it under `if __name__ == '__main__':`"


@dataclass
class _Task:
    """Rows start to stop; `deaths` workers have died on the first of them."""

    start: int
    stop: int
    deaths: int = 0


@dataclass
class _Worker:
    process: Any
    connection: Any
    ready: bool = False
    task: _Task | None = None
    reached: int = 0
    since: float = field(default_factory=time.monotonic)  # when it was last seen to make progress


class WorkerProcesses:
    """Spawned processes with an evaluator each, fed in chunks through shared memory.

    A worker marks each row that it has done. When it dies (killed, crashed, out of memory) or makes no progress for
    longer than `timeout`, another takes its place and goes on where it stopped; a configuration on which a second
    worker dies is lost, and that one alone. Workers ignore Ctrl-C, and end when their parent does.

    Parameters
    ----------
    factory : callable
        Picklable; called in each worker, returns its evaluator.
    n_workers : int
        Processes.
    n_atoms : int
        Of every configuration.
    timeout : float
        Seconds for one configuration.
    """

    def __init__(self, factory: Callable[[], Evaluator], n_workers: int, n_atoms: int, timeout: float) -> None:
        self._factory, self._n_workers, self._n_atoms, self._timeout = factory, n_workers, n_atoms, timeout
        self._capacity = self._rows_at_a_time = max(SHARED_BYTES // (48 * n_atoms + 9), 1)
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._memory: list[SharedMemory] = []
        self._failed_starts = self._fruitless = 0
        self._failure = ""
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._memory, self._owner)

    def evaluate(self, batch: Batch) -> str:
        """Fill the batch; returns why the last lost configuration was lost.

        Raises
        ------
        PotentialError
            Workers cannot be started, or die one after another whatever they are given.
        """
        with self._lock:
            if os.getpid() != self._owner:
                raise PotentialError("worker processes cannot be used after a fork; pickle the potential instead")
            self._failure = ""
            for start in range(0, len(batch), self._rows_at_a_time):
                self._evaluate_part(batch, slice(start, start + self._rows_at_a_time))
            return self._failure

    def close(self) -> None:
        """End the workers and free the shared memory; a later call starts new ones."""
        with self._lock:
            _shut_down(self._workers, self._memory, self._owner)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that are alive."""
        return [worker.process.pid for worker in self._workers if worker.process.is_alive()]

    def _evaluate_part(self, batch: Batch, rows: slice) -> None:
        self._discard(starting=False)  # left at work by an interruption of an interruption
        if not self._memory:
            self._memory.append(SharedMemory(create=True, size=self._capacity * (48 * self._n_atoms + 9)))
        shared = _shared_batch(self._memory[0], self._capacity, self._n_atoms, batch.forces is not None)
        n = len(batch.positions[rows])
        shared.positions[:n], shared.state[:n] = batch.positions[rows], PENDING
        try:
            self._run(shared, deque(_Task(start, stop) for start, stop in chunks(n, self._n_workers)))
        except BaseException:  # Ctrl-C too: whoever is at work may still write into the shared arrays
            self._discard(starting=True)
            raise
        batch.energies[rows], batch.state[rows] = shared.energies[:n], shared.state[:n]
        if batch.forces is not None and shared.forces is not None:
            batch.forces[rows] = shared.forces[:n]

    def _run(self, shared: Batch, tasks: deque[_Task]) -> None:
        while tasks or any(worker.task for worker in self._workers):
            self._bury_idle()
            busy = sum(worker.task is not None for worker in self._workers)
            while len(self._workers) < min(self._n_workers, busy + len(tasks)):
                self._start()
            for worker in self._workers:
                if tasks and worker.ready and worker.task is None:
                    self._assign(worker, tasks, shared.forces is not None)
            handles = [h for w in self._workers for h in (w.connection, w.process.sentinel)]
            multiprocessing.connection.wait(handles, POLL_SECONDS)
            for worker in list(self._workers):
                self._look_after(worker, shared, tasks)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._factory, self._memory[0].name, self._capacity, self._n_atoms)
        process = context.Process(target=_serve, args=arguments, daemon=True, name="energy worker")
        try:
            with _interrupts_blocked():
                process.start()
        except (AssertionError, RuntimeError, OSError) as error:
            raise PotentialError(f"worker processes cannot be started here ({error}); {_ADVICE}") from error
        finally:
            theirs.close()
        self._workers.append(_Worker(process, ours))

    def _assign(self, worker: _Worker, tasks: deque[_Task], forces: bool) -> None:
        task = tasks.popleft()
        worker.task, worker.reached, worker.since = task, task.start, time.monotonic()
        try:
            worker.connection.send((task.start, task.stop, forces))
        except OSError:  # it died while it was idle
            worker.task = None
            tasks.appendleft(task)

    def _look_after(self, worker: _Worker, shared: Batch, tasks: deque[_Task]) -> None:
        """Read what a worker has to say, and see whether it is alive and gets on."""
        died = not worker.process.is_alive()  # before reading: what it said before it died counts
        try:
            while worker.connection.poll():
                self._listen(worker, *worker.connection.recv())
        except (EOFError, OSError):
            died = True
        if not died and worker.task is not None:
            reached = shared.first_pending(worker.reached, worker.task.stop)
            if reached > worker.reached:
                worker.reached, worker.since, self._fruitless = reached, time.monotonic(), 0
        patience = self._timeout if worker.ready else START_SECONDS
        waiting = worker.task is not None or not worker.ready
        hangs = not died and waiting and time.monotonic() - worker.since > patience
        if died or hangs:
            why = f"no answer within {patience:g} s" if hangs else _cause_of_death(worker.process)
            self._replace(worker, why, shared, tasks)

    def _listen(self, worker: _Worker, kind: str, text: str) -> None:
        if kind == "failed":
            raise PotentialError(f"a worker process cannot evaluate this System: {text}")
        worker.ready, worker.task, worker.since = True, None, time.monotonic()
        self._failed_starts = 0
        self._fruitless = 0 if kind == "done" else self._fruitless
        self._failure = text or self._failure

    def _replace(self, worker: _Worker, why: str, shared: Batch, tasks: deque[_Task]) -> None:
        """Remove a worker that died or hangs, and put what it has not done back in front."""
        self._remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > 1:
                self._failed_starts = 0
                raise PotentialError(f"worker processes do not start ({why}); {_ADVICE}")
            return
        task = worker.task
        if task is None:
            return
        reached = shared.first_pending(task.start, task.stop)
        self._fruitless = 0 if reached > task.start else self._fruitless + 1
        if self._fruitless > MAX_FRUITLESS:
            raise PotentialError(f"{MAX_FRUITLESS} worker processes in a row died without a result ({why}); {_ADVICE}")
        deaths = task.deaths + 1 if reached == task.start else 1
        if deaths > 1 and reached < task.stop:
            shared.state[reached] = LOST
            self._failure = f"two worker processes ended on it: {why}"
            reached, deaths = reached + 1, 0
        if reached < task.stop:
            tasks.appendleft(_Task(reached, task.stop, deaths))

    def _bury_idle(self) -> None:
        """Workers that died while they had nothing to do, between two calls."""
        for worker in list(self._workers):
            if worker.ready and worker.task is None and not worker.process.is_alive():
                self._remove(worker)

    def _discard(self, starting: bool) -> None:
        """End the workers that are at work and, if so wanted, those that are starting."""
        for worker in list(self._workers):
            if worker.task is not None or (starting and not worker.ready):
                self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        _end(worker)
        self._workers.remove(worker)


def _serve(connection: Any, factory: Callable[[], Evaluator], memory: str, capacity: int, n_atoms: int) -> None:
    """What a worker does: fill the rows it is told to, until the parent closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Freeing a large block raises the size up to which glibc keeps freed memory. Without it a new process may return
    # memory to the system and fetch it again in every call of OpenMM: 1 ms for the 24 CMAP grids of CHARMM.
    np.empty(HEAP_BYTES, np.uint8)
    with contextlib.suppress(EOFError, OSError):
        try:
            evaluate = factory()
            block = SharedMemory(name=memory)
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))
            return
        connection.send(("ready", ""))
        while True:
            start, stop, forces = connection.recv()
            batch = _shared_batch(block, capacity, n_atoms, forces)
            failure = evaluate_rows(evaluate, batch, start, stop)
            del batch  # a block that arrays still point into cannot be closed
            connection.send(("done", failure))


def _end_with_parent() -> None:
    """A parent that is killed cannot say so, and a worker in the middle of its rows would not hear it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _shared_batch(block: SharedMemory, capacity: int, n_atoms: int, forces: bool) -> Batch:
    """Arrays in shared memory: positions, forces, energies, state."""
    frames = 24 * n_atoms * capacity
    shape = (capacity, n_atoms, 3)
    return Batch(
        np.ndarray(shape, np.float64, block.buf),
        np.ndarray(capacity, np.float64, block.buf, 2 * frames),
        np.ndarray(shape, np.float64, block.buf, frames) if forces else None,
        np.ndarray(capacity, np.uint8, block.buf, 2 * frames + 8 * capacity),
    )


def _cause_of_death(process: Any) -> str:
    process.join(1.0)
    code = process.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _end(worker: _Worker) -> None:
    """Kill a worker and wait for its end; it has nothing to save."""
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _shut_down(workers: list[_Worker], memory: list[SharedMemory], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the parent owns neither
        return
    while workers:
        _end(workers[-1])
        workers.pop()
    while memory:
        block = memory.pop()
        with contextlib.suppress(BufferError):  # the traceback of an interruption may still hold an array
            block.close()
        block.unlink()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process inherits this, so that Ctrl-C does not reach it before it can ignore it; here it is only put off."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
