"""Any OpenMM System on any platform as a differentiable torch function; one configuration at a time."""

from __future__ import annotations

import copy
import logging
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.capping import CappedPotential
from boltzgen.energy.compiled import CompiledPotential
from boltzgen.energy.contexts import ContextEvaluator, ContextFactory, ContextSettings, choose_platform
from boltzgen.energy.explanation import Explanation, atom_name, one_configuration, worst_contributions
from boltzgen.energy.program import TermProgram
from boltzgen.energy.read import force_names, keeps_constraints, read_system, system_of
from boltzgen.energy.simplification import lattice_frames, simplification, without_unused_maps
from boltzgen.energy.tables import merge
from boltzgen.energy.verify import perturbed_frames
from boltzgen.energy.worker_processes import WorkerProcesses
from boltzgen.energy.workers import LOST, Batch, InThisThread, Pool, WorkerThreads
from boltzgen.errors import PotentialError

__all__ = ["OpenMMPotential"]

logger = logging.getLogger(__name__)


class OpenMMPotential(BatchedPotential):
    """Energy of a System through OpenMM Contexts.

    Contexts and workers are made at the first call, and again after `close()`, after unpickling and in place of those
    that died. An interruption (Ctrl-C) leaves nothing running, and the potential can be used again.

    Parameters
    ----------
    molecule : Molecule or openmm.System
        Anything with `system` (openmm.System) and `positions` (N, 3); or the System.
    platform : str
        "auto" takes the fastest of those that work, each timed once on this molecule; otherwise the name of an OpenMM
        platform.
    precision : "single", "mixed" or "double"
        For GPU platforms. Reference is double and CPU single whatever is said here.
    device_index : int, optional
        Which GPU; OpenMM chooses when absent.
    threads : int
        For the CPU platform, in each worker; small molecules are fastest on one.
    workers : int
        How many evaluate at a time, each with a Context of its own; 0 evaluates in the calling thread.
    worker_kind : "process" or "thread"
        Processes survive a crash of the engine: the sample that caused it is lost, and it alone. They take seconds to
        start, and a script that creates them needs `if __name__ == "__main__":`. Threads start at once.
    simplify : bool
        Evaluate an equal, faster System (see `boltzgen.energy.simplify`).
    timeout : float
        Seconds after which a worker process that works at one configuration counts as dead.
    positions : (N, 3) array or Quantity, optional
        nm; around which platforms are timed and the simplified System is verified, when a System is given.

    Attributes
    ----------
    platform : str
        The platform in use; `platform_choice` holds the timings.
    simplification : Simplification or None
        What was done to the System.

    Raises
    ------
    PotentialError
        The platform does not exist or cannot run this System, or an option makes no sense.
    """

    name = "openmm"

    def __init__(
        self,
        molecule: Any,
        platform: str = "auto",
        precision: str = "mixed",
        device_index: int | None = None,
        threads: int = 1,
        workers: int = 0,
        worker_kind: str = "process",
        simplify: bool = True,
        timeout: float = 300.0,
        *,
        positions: Any = None,
    ) -> None:
        if precision not in ("single", "mixed", "double"):
            raise PotentialError(f"precision must be 'single', 'mixed' or 'double', not {precision!r}")
        if worker_kind not in ("process", "thread"):
            raise PotentialError(f"worker_kind must be 'process' or 'thread', not {worker_kind!r}")
        if workers < 0 or threads < 1 or not timeout > 0:
            raise PotentialError("workers must be at least 0, threads at least 1 and the timeout above 0 s")
        system = system_of(molecule)
        positions = getattr(molecule, "positions", None) if positions is None else positions
        super().__init__(system.getNumParticles())
        self._positions = positions
        self._topology = getattr(molecule, "topology", None)
        self._keeps_constraints = keeps_constraints(molecule)
        self.fallback_reason = ""  # why the System could not be compiled, if that was tried first
        self.simplification = simplification(system, positions) if simplify else None
        self._by_term = without_unused_maps(system) if simplify else copy.deepcopy(system)
        self._system = self.simplification.system if self.simplification else self._by_term
        frames = lattice_frames(self.n_atoms, 1) if positions is None else perturbed_frames(positions, 1)
        settings = ContextSettings(platform, precision, device_index, threads)
        self.platform_choice = choose_platform(platform, self._system, settings, frames[0])
        self.platform = self.platform_choice.name
        self._settings = ContextSettings(self.platform, precision, device_index, threads)
        self._workers, self._worker_kind, self._timeout = workers, worker_kind, timeout
        self._pool: Pool | None = None
        self._careful: Pool | None = None
        self._term_evaluator: ContextEvaluator | None = None

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Energy per force of the original System, {name: (B,) tensor in kJ/mol}; raw, in the calling thread."""
        self._check(positions)
        if self._term_evaluator is None:
            self._term_evaluator = self._new_term_evaluator()
        self.counts.add(energy=len(positions))
        frames = _as_numpy(positions)
        names = force_names(self._by_term)
        values = np.full((len(frames), len(names)), np.nan)
        for index in np.flatnonzero(_finite(frames)):
            try:
                values[index] = self._term_evaluator.by_group(frames[index], len(names))
            except openmm.OpenMMException as error:  # its terms stay NaN
                logger.warning("OpenMM failed on the terms of one configuration: %s", error)
                self._term_evaluator = self._new_term_evaluator()
        return {
            name: torch.from_numpy(column).to(positions)
            for name, column in zip(names, values.T.copy(), strict=True)
            if not name.startswith("CMMotionRemover")
        }

    def explain(self, positions: Any, n: int = 5) -> Explanation:
        """Energy of one configuration by force, and the worst contributions of those forces that can be read.

        Parameters and errors are those of `CompiledPotential.explain`.
        """
        x = one_configuration(positions, self.n_atoms)
        terms = {name: float(value) for name, value in self.terms(x).items()}
        program = TermProgram(merge(read_system(self._by_term, partly=True).values()), self.n_atoms)
        with torch.no_grad():
            name_of = partial(atom_name, self._topology)
            worst = worst_contributions(program, x.permute(2, 1, 0).contiguous(), name_of, n)
        return Explanation(float(self(x)), terms, worst)

    def capped(self, max_gradient: float) -> CappedPotential:
        """The energy with every term capped, for losses only; evaluated by torch, see `CompiledPotential.capped`.

        Raises
        ------
        PotentialError
            The System has a force that cannot be compiled, or differs when compiled, or the threshold does not fit.
        """
        molecule = SimpleNamespace(system=self._by_term, positions=self._positions, topology=self._topology)
        verify, keeps = self._positions is not None, self._keeps_constraints
        return CompiledPotential(molecule, verify=verify, ignore_constraints=keeps).capped(max_gradient)

    def report(self) -> str:
        """Platform with its timings, workers, what was simplified, and counts."""
        workers = f"{self._workers} worker {'processes' if self._worker_kind == 'process' else 'threads'}"
        lines = [
            f"OpenMM potential: {self.n_atoms} atoms, {workers if self._workers else 'no workers'}",
            f"Platform: {self.platform_choice.report()}",
        ]
        if self.simplification is not None:
            lines.append(self.simplification.report())
        if self.fallback_reason:
            lines.append(f"Not compiled: {self.fallback_reason}")
        return "\n".join([*lines, f"Counts: {self.counts}"])

    def close(self) -> None:
        """End the workers and free Contexts and shared memory; a later call makes new ones."""
        for pool in (self._pool, self._careful):
            if pool is not None:
                pool.close()
        self._pool = self._careful = self._term_evaluator = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_careful": None, "_term_evaluator": None}

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        if self._pool is None:
            self._pool = self._new_pool()
        return _through(self._pool, positions, forces)

    def _evaluate_carefully(self, positions: Tensor) -> Tensor:
        """In double precision, which tells an overlap (infinite) from a defect where single precision cannot."""
        if self._careful is None:
            self._careful = InThisThread(self._factory(ContextSettings("Reference")))
        return _through(self._careful, positions, forces=False).energy

    def _factory(self, settings: ContextSettings) -> ContextFactory:
        return ContextFactory(openmm.XmlSerializer.serialize(self._system), settings)

    def _new_pool(self) -> Pool:
        factory = self._factory(self._settings)
        if not self._workers:
            return InThisThread(factory)
        if self._worker_kind == "thread":
            return WorkerThreads(factory, self._workers)
        return WorkerProcesses(factory, self._workers, self.n_atoms, self._timeout)

    def _new_term_evaluator(self) -> ContextEvaluator:
        system = copy.deepcopy(self._by_term)
        if system.getNumForces() > 32:
            raise PotentialError(f"the System has {system.getNumForces()} forces; at most 32 can be told apart")
        for group, force in enumerate(system.getForces()):
            force.setForceGroup(group)
        return ContextEvaluator(system, self._settings)


def _through(pool: Pool, positions: Tensor, forces: bool) -> RawEvaluation:
    """Evaluate a batch; configurations with coordinates that are not finite never reach the pool, and stay NaN."""
    frames = _as_numpy(positions)
    finite = _finite(frames)
    batch = Batch.of(frames[finite], forces)
    reason = pool.evaluate(batch)
    lost = np.zeros(len(frames), dtype=bool)
    lost[finite] = batch.state == LOST
    if lost.any():
        logger.warning("%d of %d configurations lost; the last: %s", lost.sum(), len(frames), reason)
    energy = np.full(len(frames), np.nan)
    energy[finite] = batch.energies
    force = None
    if batch.forces is not None:
        force = np.zeros_like(frames)
        force[finite] = batch.forces
    return RawEvaluation(
        torch.from_numpy(energy).to(positions),
        torch.from_numpy(force).to(positions) if force is not None else None,
        torch.from_numpy(lost).to(positions.device),
    )


def _finite(frames: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(frames).all(axis=(1, 2)))


def _as_numpy(positions: Tensor) -> NDArray[np.float64]:
    frames: NDArray[np.float64] = positions.detach().to("cpu", torch.float64).contiguous().numpy()
    return frames
