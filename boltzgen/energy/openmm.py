"""Any OpenMM System on any platform as a differentiable torch function; one configuration at a time."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.read import force_names
from boltzgen.energy.verify import perturbed_frames
from boltzgen.errors import PotentialError

__all__ = ["OpenMMPotential", "without_unused_maps"]

logger = logging.getLogger(__name__)

_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")


class OpenMMPotential(BatchedPotential):
    """Energy of a System through an OpenMM Context.

    Parameters
    ----------
    molecule : Molecule
        Anything with `system` (openmm.System) and `positions` (N, 3).
    platform : str
        "auto" takes CUDA or HIP where there is one, else the faster of Reference and CPU, timed on this molecule;
        otherwise the name of an OpenMM platform.
    precision : "single", "mixed" or "double"
        For GPU platforms. Reference is double and CPU single whatever is said here.
    device_index : int, optional
        Which GPU; OpenMM chooses when absent.
    threads : int
        For the CPU platform; small molecules are fastest on one.

    Raises
    ------
    PotentialError
        The platform does not exist or cannot run this System.
    """

    name = "openmm"

    def __init__(
        self,
        molecule: Any,
        platform: str = "auto",
        precision: str = "mixed",
        device_index: int | None = None,
        threads: int = 1,
    ) -> None:
        system = molecule.system
        super().__init__(system.getNumParticles())
        if precision not in ("single", "mixed", "double"):
            raise PotentialError(f"precision must be 'single', 'mixed' or 'double', not {precision!r}")
        self.fallback_reason = ""  # why the System could not be compiled, if that was tried first
        self._lean = without_unused_maps(system)
        self._precision, self._device_index, self._threads = precision, device_index, threads
        self._frame = perturbed_frames(molecule.positions, 1)[0] if molecule.positions is not None else None
        self.platform, self._context = self._choose(platform)
        self._term_context: openmm.Context | None = None

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Energy per force of the System, {name: (B,) tensor in kJ/mol}; raw."""
        self._check(positions)
        if self._term_context is None:
            system = copy.deepcopy(self._lean)
            if system.getNumForces() > 32:
                raise PotentialError(f"the System has {system.getNumForces()} forces; at most 32 can be told apart")
            for group, force in enumerate(system.getForces()):
                force.setForceGroup(group)
            self._term_context = self._new_context(self.platform, system)
        self.counts.add(energy=len(positions))
        frames = _as_numpy(positions)
        forces = list(zip(force_names(self._lean), self._lean.getForces(), strict=True))
        values = np.full((len(forces), len(frames)), np.nan)
        for index, frame in enumerate(frames):
            if not np.isfinite(frame).all():
                continue
            self._term_context.setPositions(frame)
            for group in range(len(forces)):
                state = self._term_context.getState(getEnergy=True, groups={group})
                values[group, index] = state.getPotentialEnergy()._value
        return {
            name: torch.from_numpy(row).to(positions)
            for (name, force), row in zip(forces, values, strict=True)
            if type(force).__name__ != "CMMotionRemover"
        }

    def report(self) -> str:
        """Platform and counts."""
        lines = [f"OpenMM potential: {self.n_atoms} atoms, platform {self.platform}"]
        if self.fallback_reason:
            lines.append(f"Not compiled: {self.fallback_reason}")
        return "\n".join([*lines, f"Counts: {self.counts}"])

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        frames = _as_numpy(positions)
        energy = np.full(len(frames), np.nan)
        force = np.zeros_like(frames) if forces else None
        lost = np.zeros(len(frames), dtype=bool)
        for index, frame in enumerate(frames):
            if not np.isfinite(frame).all():
                continue
            try:
                energy[index], found = self._one(frame, forces)
            except openmm.OpenMMException as error:
                try:  # a Context that failed may be unusable: a new one, once
                    self._context = self._new_context(self.platform, self._lean)
                    energy[index], found = self._one(frame, forces)
                except openmm.OpenMMException:
                    logger.warning("OpenMM failed twice on one configuration: %s", error)
                    lost[index] = True
                    continue
            if force is not None and found is not None:
                force[index] = found
        return RawEvaluation(
            torch.from_numpy(energy).to(positions),
            torch.from_numpy(force).to(positions) if force is not None else None,
            torch.from_numpy(lost).to(positions.device),
        )

    def _one(self, frame: NDArray[np.float64], forces: bool) -> tuple[float, NDArray[np.float64] | None]:
        self._context.setPositions(frame)
        state = self._context.getState(getEnergy=True, getForces=forces)
        # _value: both are in OpenMM's own units, and value_in_unit costs as much as the energy of a dipeptide.
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value if forces else None

    def _choose(self, platform: str) -> tuple[str, openmm.Context]:
        available = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform != "auto":
            if platform not in available:
                raise PotentialError(f"OpenMM has no platform {platform!r} here; it has {', '.join(available)}")
            try:
                return platform, self._new_context(platform, self._lean)
            except Exception as error:
                raise PotentialError(f"OpenMM cannot run this System on platform {platform!r}: {error}") from error
        for name in ("CUDA", "HIP"):
            if name in available:
                try:
                    return name, self._new_context(name, self._lean)
                except Exception as error:  # a driver may be missing
                    logger.info("platform %s cannot be used: %s", name, error)
        return self._fastest([name for name in ("Reference", "CPU") if name in available])

    def _fastest(self, names: list[str]) -> tuple[str, openmm.Context]:
        timed: list[tuple[float, str, openmm.Context]] = []
        for name in names:
            self._context = self._new_context(name, self._lean)
            if self._frame is None:
                return name, self._context
            seconds = []
            for _ in range(6):
                begin = time.perf_counter()
                self._one(self._frame, True)
                seconds.append(time.perf_counter() - begin)
            timed.append((min(seconds), name, self._context))
        if not timed:
            raise PotentialError("OpenMM has neither a Reference nor a CPU platform here")
        _, name, context = min(timed, key=lambda entry: entry[0])
        logger.info("platform %s chosen: %s", name, ", ".join(f"{n} {1e6 * s:.0f} us" for s, n, _ in timed))
        return name, context

    def _new_context(self, platform: str, system: openmm.System) -> openmm.Context:
        properties: dict[str, str] = {}
        if platform == "CPU":
            properties["Threads"] = str(self._threads)
        elif platform in _GPU_PLATFORMS:
            properties["Precision"] = self._precision
            if self._device_index is not None:
                properties["DeviceIndex"] = str(self._device_index)
        integrator = openmm.VerletIntegrator(0.001)
        return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)


def without_unused_maps(system: openmm.System) -> openmm.System:
    """A copy without the CMAP grids that no torsion uses; copying those makes up most of a call for CHARMM36m."""
    system = copy.deepcopy(system)
    for force in system.getForces():
        if type(force).__name__ != "CMAPTorsionForce":
            continue
        rows = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
        used = sorted({row[0] for row in rows})
        if len(used) == force.getNumMaps():
            continue
        lean = openmm.CMAPTorsionForce()
        lean.setForceGroup(force.getForceGroup())
        lean.setUsesPeriodicBoundaryConditions(force.usesPeriodicBoundaryConditions())
        for index in used:
            lean.addMap(*force.getMapParameters(index))
        for row in rows:
            lean.addTorsion(used.index(row[0]), *row[1:])
        return _replace(system, force, lean)
    return system


def _replace(system: openmm.System, old: openmm.Force, new: openmm.Force) -> openmm.System:
    """Put a force in the place of another, keeping the order of the forces."""
    copies = [new if f.this == old.this else copy.deepcopy(f) for f in system.getForces()]
    while system.getNumForces():
        system.removeForce(0)
    for force in copies:
        system.addForce(force)
    return system


def _as_numpy(positions: Tensor) -> NDArray[np.float64]:
    frames: NDArray[np.float64] = positions.detach().to("cpu", torch.float64).contiguous().numpy()
    return frames
