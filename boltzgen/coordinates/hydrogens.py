"""Hydrogens relative to heavy atoms that are where they are: placing them, and what of the heavy atoms they feel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import LIMIT_IN_WIDTHS, CoordinateChart
from boltzgen.coordinates.folding import Folding
from boltzgen.coordinates.internal import InternalCoordinates, local_vectors, place_atoms, with_virtual
from boltzgen.coordinates.symmetry import SymmetryGroup
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.errors import StructureError

__all__ = ["HeavyFeatures", "HydrogenCoordinates", "heavy_chart"]


class HydrogenCoordinates(nn.Module):
    """Bonds, angles and dihedrals of the hydrogens of a Z-matrix, about heavy atoms at given positions.

    The layout of the last axis is n_H bonds (nm), n_H angles, n_H dihedrals (rad), each in the order in which the
    Z-matrix places hydrogens. The volume element of the hydrogens at fixed heavy atoms is ``prod r^2 sin(theta)``.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.

    Raises
    ------
    StructureError
        If the heavy atoms alone span no frame to place hydrogens in (fewer than three, or hydrogens placed before
        heavy atoms because the heavy atoms lie on a line).
    """

    heavy: Tensor
    _heavy_first: Tensor
    _order: Tensor
    columns: Tensor

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        self.internal = chart.internal
        zmatrix = chart.internal.zmatrix
        n, n_heavy = zmatrix.n_atoms, zmatrix.n_heavy
        of_hydrogen = [row.of_hydrogen for row in chart.rows[: n - 1]]
        if n_heavy < 3 or any(of_hydrogen[: n_heavy - 1]) or not all(of_hydrogen[n_heavy - 1 :]):
            raise StructureError(
                "the heavy atoms of this molecule span no frame that hydrogens could be placed in (three are needed "
                "that are bonded and not on a line): use coordinates='internal' with hydrogens='flow'"
            )
        self.n_atoms, self.n_hydrogens = n, n - n_heavy
        index = lambda values: torch.as_tensor(np.asarray(values), dtype=torch.long)
        buffer = lambda name, values: self.register_buffer(name, index(values), persistent=False)
        heavy = np.sort(zmatrix.atoms[:n_heavy])
        rows = np.arange(n_heavy, n)
        buffer("heavy", heavy)
        buffer("columns", np.concatenate([rows - 1, n - 1 + rows - 2, 2 * n - 3 + rows - 3]))
        slot = {int(atom): k for k, atom in enumerate(heavy)}
        self._n_levels = 0
        for level in zmatrix.levels():
            mine = level[level >= n_heavy]
            if not len(mine):
                continue
            slots = [[slot[int(atom)] for atom in zmatrix.references[row]] for row in mine]
            slot |= {int(zmatrix.atoms[row]): len(slot) + k for k, row in enumerate(mine)}
            buffer(f"_rows{self._n_levels}", mine - n_heavy)
            buffer(f"_slots{self._n_levels}", np.array(slots).T)
            buffer(f"_linear{self._n_levels}", np.flatnonzero(zmatrix.is_linear[mine]))
            self._n_levels += 1
        buffer("_order", [slot[atom] for atom in range(n)])

    def place(self, heavy: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """All atoms.

        Parameters
        ----------
        heavy : (B, n_heavy, 3) tensor, nm
            In the order of `heavy`.
        coordinates : (B, 3 n_H) tensor

        Returns
        -------
        positions : (B, N, 3) tensor, nm
        log_abs_det : (B,) tensor
            log |d hydrogens / d coordinates| at fixed heavy atoms.
        """
        bonds, angles, dihedrals = coordinates.chunk(3, dim=1)
        local = local_vectors(bonds, angles, dihedrals)
        placed = heavy
        for level in range(self._n_levels):
            b, a, c = (placed[:, slots] for slots in getattr(self, f"_slots{level}"))
            linear: Tensor = getattr(self, f"_linear{level}")
            if len(linear):
                a, c = with_virtual(b, a, c, linear)
            placed = torch.cat([placed, place_atoms(b, a, c, local[:, getattr(self, f"_rows{level}")])], dim=1)
        return placed[:, self._order], self.log_volume(coordinates)

    def read(self, positions: Tensor) -> Tensor:
        """Coordinates (B, 3 n_H) of the hydrogens in positions (B, N, 3)."""
        return self.internal.to_internal(positions)[0][:, self.columns]

    def log_volume(self, coordinates: Tensor) -> Tensor:
        """log |d hydrogens / d coordinates| (B,)."""
        bonds, angles, _ = coordinates.chunk(3, dim=1)
        return 2 * bonds.log().sum(1) + angles.sin().log().sum(1)


class HeavyFeatures(nn.Module):
    """What hydrogens are placed by: internal coordinates of the heavy atoms, finite whatever these are.

    Free torsions as they are, those of symmetric groups as deviations of the group angle from the middle of its
    interval; stiff coordinates as deviations in units of their width, clamped at 20 widths (a Cartesian flow has no
    bounds, and a bad structure must not become infinity), then whitened by the heavy part of the chart's factor.

    Parameters
    ----------
    chart : CoordinateChart
        Of the whole molecule.
    """

    _torsions: Tensor
    _stiff: Tensor
    _folds: Tensor

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        heavy = heavy_chart(chart)
        self.internal = heavy.internal
        self.bounded = heavy.bounded()
        self.folding = Folding(heavy.symmetry, heavy.internal.n_atoms)
        self.n_torsions, self.n_stiff = len(heavy.indices(True, False)), len(heavy.indices(False, False))
        self.register_buffer("_torsions", torch.tensor(heavy.indices(True, False), dtype=torch.long), persistent=False)
        self.register_buffer("_stiff", torch.tensor(heavy.indices(False, False), dtype=torch.long), persistent=False)
        orders = {group.torsion: group.order for group in heavy.symmetry}
        folds = torch.tensor([orders.get(i, 1) for i in heavy.indices(True, False)], dtype=torch.long)
        self.register_buffer("_folds", folds, persistent=False)

    def forward(self, heavy: Tensor) -> tuple[Tensor, Tensor]:
        """Free torsions (B, n_torsions) in rad, and whitened stiff coordinates (B, n_stiff), of (B, n_heavy, 3) nm.

        Of representatives, where heavy atoms have symmetric groups.
        """
        coordinates = self.folding.variables(self.internal.to_internal(heavy)[0])
        deviations = self.bounded.deviations(coordinates[:, self._stiff]) / self.bounded.width
        clamped = deviations.clamp(-LIMIT_IN_WIDTHS, LIMIT_IN_WIDTHS)
        z = torch.linalg.solve_triangular(self.bounded.factor, clamped.T, upper=False).T
        return coordinates[:, self._torsions] / self._folds, z


def heavy_chart(chart: CoordinateChart) -> CoordinateChart:
    """The part of a chart that concerns heavy atoms alone, with these numbered from zero in the order of their index.

    Symmetric groups stay where their relabelling moves heavy atoms.

    Raises
    ------
    StructureError
        If the heavy atoms alone span no frame; see `HydrogenCoordinates`.
    """
    coordinates = HydrogenCoordinates(chart)
    zmatrix, heavy = chart.internal.zmatrix, coordinates.heavy.tolist()
    number = {atom: k for k, atom in enumerate(heavy)}
    renumbered: Callable[[int], int] = lambda atom: number.get(int(atom), -1)
    n_heavy = zmatrix.n_heavy
    small = ZMatrix(
        atoms=np.array([renumbered(atom) for atom in zmatrix.atoms[:n_heavy]]),
        references=np.array([[renumbered(a) for a in row] for row in zmatrix.references[:n_heavy]]),
        is_improper=zmatrix.is_improper[:n_heavy],
        is_linear=zmatrix.is_linear[:n_heavy],
        n_heavy=n_heavy,
    )
    kept = [i for i, row in enumerate(chart.rows) if not row.of_hydrogen]
    rows = tuple(replace(row, atoms=tuple(map(renumbered, row.atoms))) for row in (chart.rows[i] for i in kept))
    n_stiff = len(chart.indices(False, False))
    column = {i: k for k, i in enumerate(kept)}
    groups = tuple(
        SymmetryGroup(
            torsion=column[group.torsion],
            siblings=tuple(column[i] for i in group.siblings),
            members=tuple(map(renumbered, group.members)),
            axis=(renumbered(group.axis[0]), renumbered(group.axis[1]), renumbered(group.axis[2])),
            permutation=tuple(renumbered(group.permutation[atom]) for atom in heavy),
            centre=group.centre,
        )
        for group in chart.symmetry
        if not group.moved.isdisjoint(heavy)
    )
    return CoordinateChart(InternalCoordinates(small), rows, chart.factor[:n_stiff, :n_stiff], groups)
