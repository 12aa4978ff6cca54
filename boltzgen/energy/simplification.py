"""Equal but faster OpenMM Systems; every rewriting is compared with what it replaces before it is accepted."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from boltzgen.energy.native_forces import Kept, Rewriting, lennard_jones_in_nonbonded, native_born
from boltzgen.energy.verify import perturbed_frames
from boltzgen.errors import PotentialError

__all__ = ["Simplification", "lattice_frames", "simplification", "simplify", "without_unused_maps"]

logger = logging.getLogger(__name__)

# As for compiled terms: kJ/mol, plus the rounding of large energies. Both sides are sums of the same numbers in double
# precision, and differ by 1e-12 of the energy as a rule.
ENERGY_TOLERANCE = 1e-6
ROUNDING = 1e-10
FORCE_TOLERANCE = 1e-8  # relative to the largest component of the frame
N_FRAMES = 16


@dataclass(frozen=True)
class Simplification:
    """A simplified System and what was done to it.

    Attributes
    ----------
    system : openmm.System
        A copy; the System that was given is untouched.
    changes : tuple of str
        What was rewritten.
    kept : tuple of str
        What looked as if it could be rewritten and was left as it is, with the reason.
    difference : float
        Largest difference in energy between a rewritten part and its replacement, in kJ/mol, over the frames where
        that part is below 1e4 kJ/mol; NaN if it was not verified.
    """

    system: openmm.System
    changes: tuple[str, ...]
    kept: tuple[str, ...]
    difference: float

    def report(self) -> str:
        """One line for each change and for each thing that was kept."""
        lines = [f"simplified: {change}" for change in self.changes] + [f"left as it is: {line}" for line in self.kept]
        if self.changes and np.isfinite(self.difference):
            lines.append(f"largest difference from the original, OpenMM Reference: {self.difference:.1e} kJ/mol")
        return "\n".join(lines or ["nothing to simplify"])


def simplify(system: openmm.System, positions: Any = None, verify: bool = True) -> openmm.System:
    """An equal, faster System.

    CMAP grids that no torsion uses are dropped; Lennard-Jones energies in tables (as CHARMM force fields have them)
    move into the NonbondedForce, with the pairs that have parameters of their own (NBFIX, 1-4) as exceptions; the
    generalized Born energy of `implicit/obc2.xml` becomes a GBSAOBCForce. Cutoffs, Ewald sums and all else stay.

    Parameters
    ----------
    system : openmm.System
        Is not changed.
    positions : (N, 3) array or Quantity, optional
        nm; the frames of the verification are drawn around it. Without it they are random points on a lattice, which
        test the same parameters at distances that do not occur in the molecule.
    verify : bool
        Compare each rewriting with what it replaces, energies and forces, on OpenMM's Reference platform. One that
        differs by more than 1e-6 kJ/mol + 1e-10 of the energy, or 1e-8 of the largest force, is undone and logged.

    Returns
    -------
    openmm.System
        Particles, masses, constraints and force groups are those of the original; forces may be fewer.

    Raises
    ------
    PotentialError
        The positions do not fit the System.
    """
    return simplification(system, positions, verify).system


def simplification(system: openmm.System, positions: Any = None, verify: bool = True) -> Simplification:
    """As `simplify`, with a record of what was done."""
    changes, kept, differences = [], [], []
    frames = _frames(system, positions) if verify else None
    accepted: list[Rewriting] = []
    for plan in _PLANS:
        try:
            rewriting = plan(system)
        except Kept as reason:
            kept.append(str(reason))
            continue
        if rewriting is None:
            continue
        if frames is not None:
            difference, reason_against = _compare(system, rewriting, frames)
            if reason_against:
                logger.warning("not simplified: %s; %s", rewriting.description, reason_against)
                kept.append(f"{rewriting.description}: {reason_against}")
                continue
            differences.append(difference)
        changes.append(rewriting.description)
        accepted.append(rewriting)
    largest = max(differences, default=0.0) if verify else np.nan
    return Simplification(_apply(system, accepted), tuple(changes), tuple(kept), largest)


def without_unused_maps(system: openmm.System) -> openmm.System:
    """A copy without the CMAP grids that no torsion uses; copying those makes up most of a call for CHARMM36m."""
    rewriting = _used_maps(system)
    return _apply(system, [rewriting] if rewriting else [])


def lattice_frames(n_atoms: int, n_frames: int, seed: int = 0) -> NDArray[np.float64]:
    """Frames (n, N, 3) in nm without overlaps: random places on a cubic lattice of 0.25 nm, moved by about 0.02 nm."""
    random = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    sites = 0.25 * np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    frames = np.stack([random.permutation(sites)[:n_atoms] for _ in range(n_frames)])
    return frames + random.normal(scale=0.02, size=frames.shape)


def _used_maps(system: openmm.System) -> Rewriting | None:
    for index, force in enumerate(system.getForces()):
        if type(force).__name__ != "CMAPTorsionForce":
            continue
        rows = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
        used = sorted({row[0] for row in rows})
        unused = force.getNumMaps() - len(used)
        if not unused:
            continue
        lean = openmm.CMAPTorsionForce()
        lean.setForceGroup(force.getForceGroup())
        lean.setName(force.getName())
        lean.setUsesPeriodicBoundaryConditions(force.usesPeriodicBoundaryConditions())
        for number in used:
            lean.addMap(*force.getMapParameters(number))
        for row in rows:
            lean.addTorsion(used.index(row[0]), *row[1:])
        return Rewriting(f"{unused} CMAP grids that no torsion uses dropped", (index,), lean)
    return None


_PLANS: tuple[Callable[[openmm.System], Rewriting | None], ...] = (
    _used_maps,
    lennard_jones_in_nonbonded,
    native_born,
)


def _frames(system: openmm.System, positions: Any) -> NDArray[np.float64]:
    n_atoms = system.getNumParticles()
    if positions is None:
        return lattice_frames(n_atoms, N_FRAMES)
    frames = perturbed_frames(positions, N_FRAMES)
    if frames.shape[1:] != (n_atoms, 3):
        raise PotentialError(f"the System has {n_atoms} particles, but positions are given for {frames.shape[1]}")
    return frames


def _compare(system: openmm.System, rewriting: Rewriting, frames: NDArray[np.float64]) -> tuple[float, str]:
    """Largest difference in energy, and the reason why the rewriting is wrong (empty if it is right).

    Only the forces that are replaced and those that replace them are evaluated: the rest of the System cannot hide a
    difference in its rounding.
    """
    old, old_forces = _evaluate(system, [system.getForce(i) for i in rewriting.replaced], frames)
    new, new_forces = _evaluate(system, [rewriting.force], frames)
    difference = np.abs(new - old)
    moderate = difference[np.abs(old) < 1e4]
    if not np.all(difference <= ENERGY_TOLERANCE + ROUNDING * np.abs(old)):
        return float(np.max(difference)), f"the energies differ by {np.max(difference):.1e} kJ/mol"
    scale = np.maximum(np.abs(old_forces).max(axis=(1, 2)), 1.0)
    relative = np.max(np.abs(new_forces - old_forces).max(axis=(1, 2)) / scale)
    if not relative <= FORCE_TOLERANCE:
        return float(moderate.max(initial=0.0)), f"the forces differ by {relative:.1e} of the largest"
    return float(moderate.max(initial=0.0)), ""


def _evaluate(
    system: openmm.System, forces: list[openmm.Force], frames: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies (n,) and forces (n, N, 3) of some forces alone, on the Reference platform."""
    part = openmm.System()
    for _ in range(system.getNumParticles()):
        part.addParticle(1.0)
    part.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    for force in forces:
        part.addForce(copy.deepcopy(force))
    context = openmm.Context(part, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    energies, gradients = np.empty(len(frames)), np.empty_like(frames)
    for index, frame in enumerate(frames):
        context.setPositions(frame)
        state = context.getState(getEnergy=True, getForces=True)
        energies[index] = state.getPotentialEnergy()._value
        gradients[index] = state.getForces(asNumpy=True)._value
    return energies, gradients


def _apply(system: openmm.System, rewritings: list[Rewriting]) -> openmm.System:
    """A copy with forces replaced; a replacement stands where the first of the replaced ones stood."""
    result = copy.deepcopy(system)
    if not rewritings:
        return result
    new = {rewriting.replaced[0]: rewriting.force for rewriting in rewritings}
    gone = {index for rewriting in rewritings for index in rewriting.replaced}
    forces = [
        copy.deepcopy(new.get(index, force))
        for index, force in enumerate(system.getForces())
        if index in new or index not in gone
    ]
    while result.getNumForces():
        result.removeForce(0)
    for force in forces:
        result.addForce(force)
    return result
