"""Groups of atoms that a rotation maps onto themselves: methyls, ammonium, carboxylates, phenyl rings.

Relabelling the atoms of such a group is the same as turning it, so its torsion is needed on one third (or half) of
the circle only. Only relabellings that a rotation brings about are used: an exchange that takes an inversion (the
hydrogens of a CH2, the methyls of valine, two of the hydrogens of a CH3) is never one of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from boltzgen.coordinates.zmatrix import ZMatrix

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule

__all__ = ["SymmetryGroup", "find_symmetry"]

PLANAR_TOLERANCE = math.radians(25)
THERMAL_NM = 0.003  # width of a bond at 300 K
SAME_NM = 1e-7  # float32 holds bonds to 1e-8 nm
ENERGY_TOLERANCE = 0.3  # kT; see the notes of `find_symmetry`


@dataclass(frozen=True)
class SymmetryGroup:
    """Equal branches on one atom, and the relabelling that turns each into the next.

    Attributes
    ----------
    torsion : int
        Index of the group's free torsion among the internal coordinates.
    siblings : tuple of int
        Indices of the improper torsions of the other branches, in the order of rotation.
    members : tuple of int
        First atoms of the branches, in the order of rotation.
    axis : tuple of int
        The atom they hang on, the one before it, and the third reference of the torsion.
    permutation : tuple of int
        N atoms: ``positions[permutation]`` is the relabelled configuration, whose group angle is larger by
        2 pi / order.
    centre : float
        Middle of the fundamental interval of the group angle, rad.
    """

    torsion: int
    siblings: tuple[int, ...]
    members: tuple[int, ...]
    axis: tuple[int, int, int]
    permutation: tuple[int, ...]
    centre: float

    @property
    def order(self) -> int:
        return len(self.members)

    @property
    def moved(self) -> frozenset[int]:
        """Atoms that get another label."""
        return frozenset(i for i, j in enumerate(self.permutation) if i != j)


def find_symmetry(
    molecule: Molecule,
    potential: Potential,
    zmatrix: ZMatrix,
    kinds: Sequence[str],
    coordinates: np.ndarray,
    positions: np.ndarray,
) -> tuple[SymmetryGroup, ...]:
    """The groups of a molecule whose relabelling leaves the energy as it is, outer groups first.

    Parameters
    ----------
    zmatrix, kinds, coordinates :
        Z-matrix, kind of each internal coordinate, and its values (3N-6,) at the minimised structure.
    positions : (N, 3) array
        The minimised structure, nm.

    Notes
    -----
    That the energies are equal is checked on perturbed structures, not concluded from the elements. Methyls and
    rings agree to 1e-12 kJ/mol; carboxylates in CHARMM to 0.4 kJ/mol, because the improper torsion of the carbon is
    written for one order of the oxygens. A difference of root mean square below 0.3 kT is allowed: weights account
    for it exactly, and it costs less than 3 % of the effective sample size.

    Left out are groups of branches that are themselves ambiguous (tert-butyl), and groups on the side of the bond
    from which the molecule is built (the ring of toluene, whose methyl group turns about the same bond).
    """
    found = [
        group
        for group in _candidates(molecule, zmatrix, kinds, coordinates)
        if _keeps_handedness(group, molecule.bonds, positions)
        and _keeps_constraints(group, molecule)
        and _energy_change(group, potential, positions) < ENERGY_TOLERANCE * molecule.kT
    ]
    # The angle of a group must not change when groups after it are relabelled.
    accepted: list[SymmetryGroup] = []
    for group in sorted(found, key=lambda group: (-len(group.moved), group.torsion)):
        if all(group.moved.isdisjoint((*outer.members, *outer.axis)) for outer in accepted):
            accepted.append(group)
    return tuple(accepted)


def _candidates(
    molecule: Molecule, zmatrix: ZMatrix, kinds: Sequence[str], coordinates: np.ndarray
) -> Iterator[SymmetryGroup]:
    neighbours: list[list[int]] = [[] for _ in range(zmatrix.n_atoms)]
    for i, j in molecule.bonds:
        neighbours[int(i)].append(int(j))
        neighbours[int(j)].append(int(i))
    colours = _colours(neighbours, molecule.elements)
    first_dihedral = 2 * zmatrix.n_atoms - 3
    by_parent: dict[int, list[int]] = {}
    for row in range(3, zmatrix.n_atoms):
        by_parent.setdefault(int(zmatrix.references[row, 0]), []).append(row)
    for b, rows in by_parent.items():
        torsion, *others = rows
        index = first_dihedral + torsion - 3
        # branches in the order of rotation: improper torsions from 0 to 2 pi
        others.sort(key=lambda row: coordinates[first_dihedral + row - 3] % (2 * math.pi))
        members = tuple(int(zmatrix.atoms[row]) for row in (torsion, *others))
        if kinds[index] != "free torsion" or len(members) + 1 != len(neighbours[b]) or len(members) not in (2, 3):
            continue
        siblings = tuple(first_dihedral + row - 3 for row in others)
        if not _evenly_spread(coordinates[list(siblings)]):
            continue
        permutation = _relabelling(members, b, neighbours, colours)
        if permutation is None:
            continue
        _, *axis = (int(atom) for atom in (zmatrix.atoms[torsion], *zmatrix.references[torsion]))
        centre = float(coordinates[index]) + float(_offset(coordinates[list(siblings)]))
        yield SymmetryGroup(index, siblings, members, (axis[0], axis[1], axis[2]), permutation, centre)


def _colours(neighbours: list[list[int]], elements: Sequence[str]) -> list[int]:
    """Classes of atoms that their surroundings do not tell apart (colour refinement)."""
    names = sorted(set(elements))
    colours = [names.index(element) for element in elements]
    while True:
        keys = [(colours[i], *sorted(colours[j] for j in near)) for i, near in enumerate(neighbours)]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        if len(ranks) == len(set(colours)):
            return colours
        colours = [ranks[key] for key in keys]


def _evenly_spread(impropers: np.ndarray) -> bool:
    order = len(impropers) + 1
    ideal = 2 * math.pi * np.arange(1, order) / order
    return bool((np.abs(np.remainder(impropers - ideal + math.pi, 2 * math.pi) - math.pi) < PLANAR_TOLERANCE).all())


def _offset(impropers: np.ndarray) -> float:
    """Group angle less the torsion of the first branch: mean direction of branches turned back onto the first."""
    order = len(impropers) + 1
    turned = np.concatenate([[0.0], impropers - 2 * math.pi * np.arange(1, order) / order])
    return math.atan2(np.sin(turned).sum(), np.cos(turned).sum())


def _relabelling(
    members: tuple[int, ...], b: int, neighbours: list[list[int]], colours: list[int]
) -> tuple[int, ...] | None:
    """Permutation that maps each branch on the next one; None if there is none, or more than one."""
    image = dict(zip(members, (*members[1:], members[0]), strict=True))
    if len({colours[member] for member in members}) > 1:
        return None
    image[b] = b
    queue = deque(members)
    while queue:
        i = queue.popleft()
        here = [k for k in neighbours[i] if k not in image]
        there = [k for k in neighbours[image[i]] if k != b and k not in image.values()]
        if len({colours[k] for k in here}) < len(here) or sorted(colours[k] for k in here) != sorted(
            colours[k] for k in there
        ):
            return None
        for k in here:
            image[k] = next(m for m in there if colours[m] == colours[k])
            queue.append(k)
    permutation = tuple(image.get(k, k) for k in range(len(neighbours)))
    return permutation if _is_automorphism(permutation, neighbours, len(members)) else None


def _is_automorphism(permutation: tuple[int, ...], neighbours: list[list[int]], order: int) -> bool:
    if sorted(permutation) != list(range(len(permutation))):
        return False
    power = list(range(len(permutation)))
    for _ in range(order):
        power = [permutation[i] for i in power]
    bonds_kept = all(
        {permutation[j] for j in near} == set(neighbours[permutation[i]]) for i, near in enumerate(neighbours)
    )
    return bonds_kept and power == list(range(len(permutation)))


def _keeps_handedness(group: SymmetryGroup, bonds: np.ndarray, positions: np.ndarray) -> bool:
    """Whether every tetrahedral centre has the same handedness after relabelling."""
    neighbours: dict[int, list[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(int(i), []).append(int(j))
        neighbours.setdefault(int(j), []).append(int(i))
    relabelled = positions[list(group.permutation)]
    for centre, near in neighbours.items():
        if len(near) == 4:
            volumes = [np.linalg.det(frame[near[:3]] - frame[centre]) for frame in (positions, relabelled)]
            if volumes[0] * volumes[1] <= 0:
                return False
    return True


def _keeps_constraints(group: SymmetryGroup, molecule: Molecule) -> bool:
    """Whether a relabelled configuration has every constrained distance at the same constant."""
    lengths = {frozenset(pair): nm for pair, nm in molecule.constraints}
    moved = {frozenset((group.permutation[i], group.permutation[j])): nm for (i, j), nm in molecule.constraints}
    return lengths.keys() == moved.keys() and all(abs(moved[pair] - nm) < SAME_NM for pair, nm in lengths.items())


def _energy_change(group: SymmetryGroup, potential: Potential, positions: np.ndarray) -> float:
    """Root mean square change of energy (kJ/mol) by relabelling structures with thermal displacements."""
    noise = np.random.default_rng(0).normal(0, THERMAL_NM, (16, *positions.shape))
    frames = torch.as_tensor(positions + noise)
    with torch.no_grad():
        change = potential(frames[:, list(group.permutation)]) - potential(frames)
    return float(change.square().mean().sqrt())
