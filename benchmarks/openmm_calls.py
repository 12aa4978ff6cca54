"""Ways of calling OpenMM for a batch: a tight loop, and those of bgflow and boltzkit in what decides their results.

The latter two are written from the published behaviour of `bgflow.OpenMMBridge` (one message per sample, exceptions
become warnings) and `boltzkit`'s `ParallelEnergyEval` (a chunk per worker of a spawned pool); none of their code is
used, and their unit conversions, caches and clipping are left out, which makes them faster than the originals.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

__all__ = ["ChunkPerWorker", "MessagePerSample", "NoAnswerError", "OneContext", "new_context", "tight_loop"]

Floats = NDArray[np.float64]
Result = tuple[Floats, Floats]


class NoAnswerError(Exception):
    """A parent that would wait for ever stopped waiting."""


def new_context(system: openmm.System | str, platform: str, threads: int | None = 1) -> openmm.Context:
    """A Context of a System or its XML; threads of the CPU platform, None for as many as there are cores."""
    if isinstance(system, str):
        system = openmm.XmlSerializer.deserialize(system)
    properties = {"Threads": str(threads)} if platform == "CPU" and threads else {}
    return openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform), properties
    )


def tight_loop(context: openmm.Context, frames: Floats, forces: bool) -> Callable[[], None]:
    """The tightest loop over samples there is in Python: arrays in, arrays out, no units, nothing asked for in vain."""

    def run() -> None:
        energies = np.empty(len(frames))
        gradients = np.empty(frames.shape) if forces else None
        for index, frame in enumerate(frames):
            context.setPositions(frame)
            state = context.getState(getEnergy=True, getForces=forces)
            energies[index] = state.getPotentialEnergy()._value
            if gradients is not None:
                gradients[index] = state.getForces(asNumpy=True)._value

    return run


class OneContext:
    """bgflow with one worker: a serial loop over arrays of zeros; an exception is a warning and leaves its row 0."""

    def __init__(self, system: openmm.System, threads: int) -> None:
        self._context = new_context(system, "CPU", threads)

    def __call__(self, frames: Floats) -> Result:
        energies, forces = np.zeros(len(frames)), np.zeros(frames.shape)
        for index, frame in enumerate(frames):
            try:
                self._context.setPositions(frame)
                self._context.getIntegrator().step(0)  # done for every sample, whether or not steps are wanted
                energies[index], forces[index] = _energy_and_forces(self._context)
            except openmm.OpenMMException:
                pass  # the original warns here
        return energies, forces

    def close(self) -> None:
        pass


class MessagePerSample:
    """bgflow with several workers: one message per sample each way, always with forces.

    After an exception, the variables that a worker sends still hold the numbers of its task before; in its first task
    they do not exist, and it dies.
    """

    def __init__(self, system: openmm.System, workers: int, threads: int, patience: float = 60.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._tasks, self._results = context.Queue(), context.Queue()
        self._patience = patience  # seconds; the original waits for ever
        arguments = (openmm.XmlSerializer.serialize(system), threads, self._tasks, self._results)
        self._processes = [context.Process(target=_message_worker, args=arguments, daemon=True) for _ in range(workers)]
        for process in self._processes:
            process.start()

    def __call__(self, frames: Floats) -> Result:
        for index, frame in enumerate(frames):
            self._tasks.put((index, frame))
        energies, forces = np.empty(len(frames)), np.empty(frames.shape)
        for _ in frames:
            try:
                index, energy, force = self._results.get(timeout=self._patience)
            except queue.Empty:
                raise NoAnswerError(f"no answer within {self._patience:.0f} s") from None
            energies[index], forces[index] = energy, force
        return energies, forces

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _message_worker(system_xml: str, threads: int, tasks: Any, results: Any) -> None:
    context = new_context(system_xml, "CPU", threads)
    answer = None
    while True:
        try:
            index, frame = tasks.get(timeout=5.0)
        except queue.Empty:
            if multiprocessing.parent_process().is_alive():  # type: ignore[union-attr]
                continue
            return  # the benchmark was killed; the original stays
        try:
            context.setPositions(frame)
            answer = _energy_and_forces(context)
        except openmm.OpenMMException:
            pass  # the original warns here
        if answer is None:
            sys.exit(1)  # an UnboundLocalError in the original
        results.put((index, *answer))


def _energy_and_forces(context: openmm.Context) -> tuple[float, Floats]:
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    force = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return energy, np.asarray(force)


class ChunkPerWorker:
    """boltzkit: N/K samples for each worker of a spawned pool, forces read as lists, nothing caught.

    Its workers take as many threads as there are cores (threads=None); with fewer it is faster.
    """

    def __init__(self, system: openmm.System, workers: int, threads: int | None, patience: float = 60.0) -> None:
        self._workers, self._patience = workers, patience
        arguments = (openmm.XmlSerializer.serialize(system), threads)
        self._pool = multiprocessing.get_context("spawn").Pool(workers, _start_chunks, arguments)

    def __call__(self, frames: Floats, forces: bool = True) -> tuple[Floats, Floats | None]:
        tasks = [(chunk, forces) for chunk in np.array_split(frames, self._workers)]
        parts = self._pool.starmap_async(_chunk, tasks, chunksize=1).get(self._patience)
        energies = np.concatenate([part[0] for part in parts])
        return energies, np.concatenate([part[1] for part in parts]) if forces else None

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


_context: openmm.Context | None = None


def _start_chunks(system_xml: str, threads: int | None) -> None:
    global _context
    _context = new_context(system_xml, "CPU", threads)


def _chunk(frames: Floats, forces: bool) -> tuple[Floats, Floats | None]:
    assert _context is not None
    energies, rows = [], []
    for frame in frames:
        _context.setPositions(frame)
        state = _context.getState(getEnergy=True, getForces=forces)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        if forces:
            rows.append(state.getForces().value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
    return np.array(energies), np.array(rows) if forces else None
