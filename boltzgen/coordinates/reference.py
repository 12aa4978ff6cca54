"""The reference structure of a chart: the energy minimum next to the molecule's structure, and what must hold there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import openmm
from openmm import unit
from scipy.spatial import cKDTree

from boltzgen.errors import StructureError

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["minimized_positions"]

OVERLAP_NM = 0.05  # the shortest bond, that of H2, is 0.074 nm
CONSTRAINT_TOLERANCE = 1e-8  # relative; OpenMM's own default is 1e-5
COVALENT_NM = 0.25  # the longest common bonds, such as S-S and C-I, are 0.20 to 0.22 nm


def minimized_positions(molecule: Molecule) -> np.ndarray:
    """Positions (N, 3) in nm at the local energy minimum next to the molecule's structure, by OpenMM (float64).

    They satisfy the constraints to 1e-8 of each length.

    Raises
    ------
    StructureError
        If atoms overlap, the structure cannot be minimised, or the System binds atoms that the topology does not.
    """
    start: np.ndarray = np.asarray(molecule.positions.value_in_unit(unit.nanometer))
    _check_overlaps(molecule, start, "in the structure")
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(start)
    try:
        # Far from its constraints OpenMM's minimiser would first have to find the way there.
        context.applyConstraints(CONSTRAINT_TOLERANCE)
        openmm.LocalEnergyMinimizer.minimize(context, tolerance=0.01)
        context.applyConstraints(CONSTRAINT_TOLERANCE)
    except openmm.OpenMMException as error:
        raise StructureError(
            f"the structure cannot be minimised ({error}): give a structure without clashes"
        ) from error
    state = context.getState(getPositions=True, getEnergy=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    positions: np.ndarray = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    if not (math.isfinite(energy) and np.isfinite(positions).all()):
        raise StructureError("the structure cannot be minimised (overlapping atoms?): give a structure without clashes")
    _check_overlaps(molecule, positions, "after minimisation")
    _check_bonds(molecule, positions)
    return positions


def _check_overlaps(molecule: Molecule, positions: np.ndarray, where: str) -> None:
    pairs = cKDTree(positions).query_pairs(OVERLAP_NM)
    if pairs:
        i, j = min(pairs)
        raise StructureError(
            f"atoms {molecule.atom_label(i)} and {molecule.atom_label(j)} overlap {where} "
            f"({np.linalg.norm(positions[i] - positions[j]):.3f} nm apart): give a structure without clashes"
        )


def _check_bonds(molecule: Molecule, positions: np.ndarray) -> None:
    """A bond of the System within bonding distance must be one of the topology: a ring would be taken for a chain."""
    neighbours: dict[int, set[int]] = {i: {i} for i in range(molecule.n_atoms)}
    for i, j in molecule.bonds:
        neighbours[int(i)].add(int(j))
        neighbours[int(j)].add(int(i))
    for force in molecule.system.getForces():
        if not isinstance(force, openmm.HarmonicBondForce):
            continue
        for index in range(force.getNumBonds()):
            i, j, *_ = force.getBondParameters(index)
            # CHARMM has Urey-Bradley terms between atoms that share a neighbour.
            near = np.linalg.norm(positions[i] - positions[j]) < COVALENT_NM
            if near and neighbours[i].isdisjoint(neighbours[j]):
                raise StructureError(
                    f"the System has a bond between {molecule.atom_label(i)} and {molecule.atom_label(j)} that the "
                    "topology lacks: add it with topology.addBond"
                )
