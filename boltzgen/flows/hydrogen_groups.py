"""Which hydrogens belong together, what lies around each group, and the harmonic approximation seen from there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from boltzgen.coordinates.chart import CoordinateChart, CoordinateRow

__all__ = ["HydrogenGroup", "bonds_between", "find_groups"]

SEEN_GROUPS = 2  # bonds between the heavy atoms of groups that see each other: vicinal hydrogens and those one further
RING_BOND_NM = 0.21  # disulfides have 0.204; atoms with a common neighbour are 0.22 or more apart


@dataclass(frozen=True)
class HydrogenGroup:
    """Hydrogens of one heavy atom: at most one free torsion.

    Numbers count the coordinates of a class (heavy free torsions and so on) in the order of the chart.

    Attributes
    ----------
    parent : int
        The heavy atom.
    torsion : int or None
        Hydrogen torsion.
    stiff : tuple of int
        Stiff hydrogen coordinates.
    level : int
        Groups of one level do not see each other; they see those of lower levels.
    near_torsions, near_stiff : tuple of int
        Heavy-atom torsions and stiff heavy-atom coordinates within reach.
    earlier : tuple of int
        Groups nearby of lower level.
    regression : (n_stiff, n_seen) array
        Mean of the stiff coordinates, in widths, given the stiff coordinates that the group sees (those of heavy
        atoms, then those of each earlier group), in the harmonic approximation.
    covariance : (n_stiff, n_stiff) array
        What is left of their covariance.
    """

    parent: int
    torsion: int | None
    stiff: tuple[int, ...]
    level: int
    near_torsions: tuple[int, ...]
    near_stiff: tuple[int, ...]
    earlier: tuple[int, ...]
    regression: np.ndarray
    covariance: np.ndarray


def find_groups(chart: CoordinateChart, reach: int) -> tuple[HydrogenGroup, ...]:
    """Groups of hydrogens, and what each sees.

    Parameters
    ----------
    chart : CoordinateChart
    reach : int
        Bonds from the parent within which a heavy atom's stiff coordinates, and torsions about a bond, are seen.

    References
    ----------
    Conditioning on near neighbours in a fixed order: Vecchia (1988).
    """
    distance = bonds_between(chart)
    torsions, stiff = ([chart.rows[i] for i in chart.indices(free, False)] for free in (True, False))
    members = _members(chart)
    if not members:
        return ()
    parents = [parent for parent, _, _ in members]
    near = distance[np.ix_(parents, parents)] <= SEEN_GROUPS
    levels = _levels(near)
    covariance = chart.factor @ chart.factor.T
    groups = []
    for g, (parent, torsion, own) in enumerate(members):
        near_torsions = [k for k, row in enumerate(torsions) if distance[parent, list(row.atoms[1:3])].min() <= reach]
        near_stiff = [k for k, row in enumerate(stiff) if distance[parent, row.atoms[0]] <= reach]
        earlier = [other for other in np.flatnonzero(near[g]) if levels[other] < levels[g]]
        seen = near_stiff + [len(stiff) + k for other in earlier for k in members[other][2]]
        regression, left = _given(covariance, [len(stiff) + k for k in own], seen)
        groups.append(
            HydrogenGroup(
                parent,
                torsion,
                tuple(own),
                levels[g],
                tuple(near_torsions),
                tuple(near_stiff),
                tuple(int(other) for other in earlier),
                regression,
                left,
            )
        )
    return tuple(groups)


def _members(chart: CoordinateChart) -> list[tuple[int, int | None, list[int]]]:
    """Parent, free torsion and stiff coordinates of each group; a second free torsion opens another group."""
    n_heavy = chart.internal.zmatrix.n_heavy
    heavy = {int(atom) for atom in chart.internal.zmatrix.atoms[:n_heavy]}
    found: dict[int, tuple[list[int], list[int]]] = {}
    for free in (True, False):
        for number, i in enumerate(chart.indices(free, True)):
            parent = _parent(chart.rows[i], heavy)
            found.setdefault(parent, ([], []))[0 if free else 1].append(number)
    members: list[tuple[int, int | None, list[int]]] = []
    for parent in sorted(found):
        torsions, stiff = found[parent]
        members.append((parent, torsions[0] if torsions else None, stiff))
        members += [(parent, torsion, []) for torsion in torsions[1:]]
    return members


def _parent(row: CoordinateRow, heavy: set[int]) -> int:
    """The heavy atom that a coordinate's hydrogen is bound to."""
    return next((atom for atom in row.atoms[1:] if atom in heavy), row.atoms[-1])


def _levels(near: np.ndarray) -> list[int]:
    """Lowest level that no neighbour before has, group by group."""
    levels: list[int] = []
    for g in range(len(near)):
        taken = {levels[other] for other in range(g) if near[g, other]}
        levels.append(next(level for level in range(g + 1) if level not in taken))
    return levels


def bonds_between(chart: CoordinateChart) -> np.ndarray:
    """Number of bonds between any two atoms, (N, N).

    The Z-matrix lacks the bonds that close rings: heavy atoms at bonding distance in the reference structure.
    """
    zmatrix, n = chart.internal.zmatrix, chart.internal.n_atoms
    centres = torch.tensor([[row.centre for row in chart.rows]], dtype=torch.float64)
    positions = chart.internal.to_cartesian(centres)[0][0].numpy()
    heavy = zmatrix.atoms[: zmatrix.n_heavy]
    apart = np.linalg.norm(positions[heavy][:, None] - positions[heavy][None], axis=-1)
    i, j = np.nonzero(np.triu(apart < RING_BOND_NM, 1))
    first = np.concatenate([zmatrix.atoms[1:], heavy[i]])
    second = np.concatenate([zmatrix.references[1:, 0], heavy[j]])
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return np.asarray(shortest_path(graph.tocsr(), directed=False, unweighted=True))


def _given(covariance: np.ndarray, own: list[int], seen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Regression of some normal variables on others, and the covariance that is left."""
    cross = covariance[np.ix_(own, seen)]
    regression = np.linalg.solve(covariance[np.ix_(seen, seen)], cross.T).T
    return regression, covariance[np.ix_(own, own)] - regression @ cross.T
