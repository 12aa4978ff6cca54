"""Distances that a System holds constant: which pairs of atoms, and how far apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import app, unit

from boltzgen.errors import StructureError

__all__ = ["DistanceConstraints", "read_constraints"]

SAME_NM = 1e-9  # two constraints on one pair may differ by so much


@dataclass(frozen=True, eq=False)
class DistanceConstraints:
    """Covalent bonds of constant length; iterating gives ``((i, j), nm)``.

    Attributes
    ----------
    atoms : (n, 2) int array
        Smaller index first, sorted.
    distances : (n,) array
        nm.
    """

    atoms: np.ndarray
    distances: np.ndarray

    def __len__(self) -> int:
        return len(self.distances)

    def __iter__(self) -> Iterator[tuple[tuple[int, int], float]]:
        return (
            ((int(i), int(j)), float(nm))
            for (i, j), nm in zip(self.atoms.tolist(), self.distances.tolist(), strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistanceConstraints) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def errors(self, positions: np.ndarray) -> np.ndarray:
        """Distances less their constants, (..., n) in nm, of positions (..., N, 3)."""
        i, j = self.atoms.T
        apart: np.ndarray = np.linalg.norm(positions[..., i, :] - positions[..., j, :], axis=-1)
        return apart - self.distances


def read_constraints(topology: app.Topology, system: openmm.System) -> DistanceConstraints:
    """The constraints of a System, each of which must be a bond of the topology.

    Raises
    ------
    StructureError
        If a constrained pair is not bonded, two constraints contradict each other, or a constraint has no length.
    """
    bonded = {frozenset((first.index, second.index)) for first, second in topology.bonds()}
    atoms = list(topology.atoms())
    label = lambda i: f"{atoms[i].residue.name}{atoms[i].residue.id}:{atoms[i].name}"
    found: dict[tuple[int, int], float] = {}
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        nm = distance.value_in_unit(unit.nanometer)
        if frozenset((i, j)) not in bonded:
            raise StructureError(
                f"the System keeps {label(i)} and {label(j)} at a constant distance, but the topology has no bond "
                "between them: only bonds can be constrained, not angles (HAngles) or rigid water; build the System "
                "with constraints=HBonds or None and rigidWater=False, or add the bond with topology.addBond"
            )
        if not nm > 0:
            raise StructureError(f"the constraint between {label(i)} and {label(j)} has a length of {nm:g} nm")
        pair = (min(i, j), max(i, j))
        if abs(found.setdefault(pair, nm) - nm) > SAME_NM:
            raise StructureError(
                f"the System has two constraints between {label(i)} and {label(j)}, of {found[pair]:g} and {nm:g} nm: "
                "remove one"
            )
    pairs = sorted(found)
    return DistanceConstraints(
        np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array([found[pair] for pair in pairs], dtype=np.float64)
    )
