"""Stretches, bends, torsions and maps as batched torch operations, energies and analytic gradients together.

Inside, coordinates are (3, N, B): the batch is the fastest index. Each kind of term is one function that gives the
energy of every interaction, (n, B), and, when asked, the gradient with respect to the difference vectors it used; a
single sum per atom over all difference vectors then gives the gradient by atom, without atomic additions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from boltzgen.energy.geometry import angle, angle_gradient, dihedral, dihedral_gradient, dot
from boltzgen.energy.tables import MAX_PERIODICITY, Floats, TermTables

__all__ = ["BondedTerms", "bicubic_coefficients"]

# Energies by kind, and gradients by difference vector.
_Part = tuple[dict[str, Tensor], list[Tensor]]


class BondedTerms(nn.Module):
    """Bonds, angles, torsions, impropers and maps of some `TermTables` as a function of (3, N, B) coordinates.

    Parameters
    ----------
    tables : TermTables
        What to evaluate.
    """

    head: Tensor
    tail: Tensor
    bond: Tensor
    angle: Tensor
    improper: Tensor
    torsion: Tensor
    cmap_table: Tensor
    cmap_size: Tensor
    cmap_start: Tensor

    def __init__(self, tables: TermTables) -> None:
        super().__init__()
        dihedrals = np.concatenate((tables.torsions, tables.impropers))
        map_dihedrals = np.concatenate((tables.cmaps[:, :4], tables.cmaps[:, 4:]))
        self.atoms = {kind: getattr(tables, kind) for kind in ("bonds", "angles", "torsions", "impropers", "cmaps")}
        self.n_bonds, self.n_angles = len(tables.bonds), len(tables.angles)
        self.n_torsions, self.n_impropers, self.n_cmaps = len(tables.torsions), len(tables.impropers), len(tables.cmaps)
        self.n_dihedrals = len(dihedrals)
        self.sizes = [self.n_bonds, *[self.n_angles] * 2, *[self.n_dihedrals] * 3, *[2 * self.n_cmaps] * 3]
        # Difference vectors x[head] - x[tail], in the order in which the terms use them.
        ends = [tables.bonds, tables.angles[:, :2], tables.angles[:, [2, 1]]]
        ends += [quadruples[:, [k + 1, k]] for quadruples in (dihedrals, map_dihedrals) for k in range(3)]
        head, tail = np.concatenate(ends).T
        self._keep("head", head)
        self._keep("tail", tail)
        self._columns("bond", tables.bond_parameters)
        self._columns("angle", tables.angle_parameters)
        self._columns("improper", tables.improper_parameters)
        self._keep("torsion", _polynomials(tables.torsion_parameters))
        self.torsion_degree = _degree(tables.torsion_parameters[:, : MAX_PERIODICITY + 1])
        self.torsion_sine_degree = _degree(tables.torsion_parameters[:, MAX_PERIODICITY + 1 :])
        self._cmap_tables(tables)

    def _keep(self, name: str, array: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)

    def _columns(self, name: str, parameters: Floats) -> None:
        self._keep(name, parameters.T[:, :, None])

    def _cmap_tables(self, tables: TermTables) -> None:
        coefficients = [bicubic_coefficients(energy) for energy in tables.cmap_energies]
        sizes = np.array([len(energy) for energy in tables.cmap_energies], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes**2)))[:-1].astype(np.int64)
        self._keep("cmap_table", np.concatenate(coefficients, axis=1) if coefficients else np.zeros((16, 0)))
        self._keep("cmap_size", sizes[tables.cmap_index][:, None])
        self._keep("cmap_start", starts[tables.cmap_index][:, None])

    def _apply(self, fn: Any, recurse: bool = True) -> BondedTerms:
        """Maps stay in float64 when the module is converted: see `_map_energy`."""
        table = self.cmap_table
        super()._apply(fn, recurse)
        self.cmap_table = table.to(self.cmap_table.device)
        return self

    def forward(self, x: Tensor, gradient: bool) -> tuple[Tensor, list[Tensor]]:
        """Energy and its gradient by difference vector.

        Parameters
        ----------
        x : (3, N, B) tensor
            Coordinates in nm.
        gradient : bool
            Whether the gradient is wanted.

        Returns
        -------
        (B,) tensor, list of (3, n, B) tensors
            kJ/mol; kJ/mol/nm for the difference vectors x[head] - x[tail], in their order, or nothing.
        """
        energies, slopes = self._interactions(x, gradient)
        energy = x.new_zeros(x.shape[2])
        for part in energies.values():
            energy = energy + part.sum(0)
        return energy, slopes

    def interactions(self, x: Tensor) -> dict[str, Tensor]:
        """Energy of every interaction, {kind: (n, B) tensor in kJ/mol}; kinds and order are those of `TermTables`."""
        return self._interactions(x, False)[0]

    def _interactions(self, x: Tensor, gradient: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        # index_select is five times as fast as indexing with a tensor.
        n = sum(self.sizes[:6])
        d = x.index_select(1, self.head[:n]) - x.index_select(1, self.tail[:n])
        split = torch.split(d, self.sizes[:6], dim=1)
        energies: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for count, term, vectors in (
            (self.n_bonds, self._bond_energy, split[0:1]),
            (self.n_angles, self._angle_energy, split[1:3]),
            (self.n_dihedrals, self._dihedral_energy, split[3:6]),
        ):
            if count:
                parts, slopes = term(gradient, *vectors)
                energies.update(parts)
                gradients.extend(slopes)
        if self.n_cmaps:
            parts, slopes = self._map_energy(
                gradient, x.index_select(1, self.head[n:]), x.index_select(1, self.tail[n:])
            )
            energies.update(parts)
            gradients.extend(slopes)
        return energies, gradients

    def _bond_energy(self, gradient: bool, d: Tensor) -> _Part:
        k, r0 = self.bond
        r = torch.sqrt(dot(d, d))
        stretch = r - r0
        force = k * stretch
        return {"bonds": 0.5 * force * stretch}, [d * (force / r.clamp(min=1e-9))] if gradient else []

    def _angle_energy(self, gradient: bool, u: Tensor, v: Tensor) -> _Part:
        k, theta0 = self.angle
        theta, normal, length = angle(u, v)
        bend = theta - theta0
        slope = k * bend
        energies = {"angles": 0.5 * slope * bend}
        return energies, list(angle_gradient(u, v, normal, length, slope)) if gradient else []

    def _dihedral_energy(self, gradient: bool, b1: Tensor, b2: Tensor, b3: Tensor) -> _Part:
        cosine, sine, m, n, length = dihedral(b1, b2, b3)
        energies: dict[str, Tensor] = {}
        slopes: list[Tensor] = []
        first, last = self.n_torsions, self.n_torsions + self.n_impropers
        if self.n_torsions:
            energies["torsions"], slope = self.torsion_energy(cosine[:first], sine[:first], gradient)
            slopes.append(slope)
        if self.n_impropers:
            energies["impropers"], slope = self._improper_energy(cosine[first:last], sine[first:last])
            slopes.append(slope)
        if not gradient:
            return energies, []
        return energies, list(dihedral_gradient(b1, b2, b3, m, n, length, torch.cat(slopes)))

    def _map_energy(self, gradient: bool, head: Tensor, tail: Tensor) -> _Part:
        """In float64 from the coordinates on: a map is steep, and the energy of a residue on it passes through zero."""
        b1, b2, b3 = torch.chunk(head.double() - tail.double(), 3, dim=1)
        cosine, sine, m, n, length = dihedral(b1, b2, b3)
        energy, slope = self.cmap_energy(cosine, sine, gradient)
        slopes = dihedral_gradient(b1, b2, b3, m, n, length, slope) if gradient else ()
        return {"cmaps": energy.to(head.dtype)}, [part.to(head.dtype) for part in slopes]

    def torsion_energy(self, cosine: Tensor, sine: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """Energies of the torsions (n, B) and their slopes by dihedral."""
        p, p_slope = _horner(self.torsion[0], cosine, self.torsion_degree)
        slope = -sine * p_slope
        if self.torsion_sine_degree >= 0:
            q, q_slope = _horner(self.torsion[1], cosine, self.torsion_sine_degree)
            p = p + sine * q
            slope = slope + cosine * q - sine * sine * q_slope
        return p, slope

    def _improper_energy(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        k, theta0 = self.improper
        excess = torch.atan2(sine, cosine) - theta0
        excess = excess - (2 * math.pi) * torch.round(excess / (2 * math.pi))
        return k * excess * excess, 2 * k * excess

    def cmap_energy(self, cosine: Tensor, sine: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """Energies of the maps (n, B) and, when asked, their slopes by dihedral (2 n, B)."""
        scale = self.cmap_size.to(cosine.dtype) / (2 * math.pi)
        position = torch.atan2(sine, cosine)
        position = torch.where(position < 0, position + 2 * math.pi, position).unflatten(0, (2, self.n_cmaps)) * scale
        cell = position.to(torch.int64)
        # The angle may round up to the end of the last cell; NaN becomes any integer.
        cell = torch.minimum(cell.clamp(min=0), self.cmap_size - 1)
        t, u = position - cell
        c = self.cmap_table[:, self.cmap_start + cell[0] * self.cmap_size + cell[1]].unflatten(0, (4, 4))
        rows = ((c[:, 3] * u + c[:, 2]) * u + c[:, 1]) * u + c[:, 0]
        energy = ((rows[3] * t + rows[2]) * t + rows[1]) * t + rows[0]
        if not gradient:
            return energy, t
        row_slopes = (3 * c[:, 3] * u + 2 * c[:, 2]) * u + c[:, 1]
        by_t = (3 * rows[3] * t + 2 * rows[2]) * t + rows[1]
        by_u = ((row_slopes[3] * t + row_slopes[2]) * t + row_slopes[1]) * t + row_slopes[0]
        return energy, torch.cat((by_t * scale, by_u * scale))


def bicubic_coefficients(energy: Floats) -> Floats:
    """Coefficients of the natural periodic bicubic spline through a grid, as OpenMM's CMAP builds it.

    Parameters
    ----------
    energy : (size, size) array
        kJ/mol at multiples of 2 pi / size.

    Returns
    -------
    (16, size**2) array
        Row 4 a + b holds the coefficient of t^a u^b of each cell, t and u in [0, 1] along the first and second angle.
    """

    def slope(values: Floats, axis: int) -> Floats:
        closed = np.concatenate((values, np.take(values, [0], axis)), axis)
        return CubicSpline(np.arange(closed.shape[axis]), closed, axis, bc_type="periodic")(
            np.arange(values.shape[axis]), 1
        )

    first, second = slope(energy, 0), slope(energy, 1)
    mixed = slope(first, 1)

    def corners(values: Floats) -> Floats:
        right = np.roll(values, -1, 0)
        return np.array([[values, np.roll(values, -1, 1)], [right, np.roll(right, -1, 1)]])

    # Hermite data f[i, j] with i, j in (value 0, value 1, slope 0, slope 1) along the first and second angle.
    f = np.empty((4, 4, *energy.shape))
    f[:2, :2], f[:2, 2:], f[2:, :2], f[2:, 2:] = corners(energy), corners(second), corners(first), corners(mixed)
    hermite = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], dtype=np.float64)
    return np.einsum("ai,bj,ijxy->abxy", hermite, hermite, f).reshape(16, -1)


def _horner(coefficients: Tensor, c: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Polynomial and its derivative at c (n, B); coefficients (powers, n, 1)."""
    value = coefficients[degree].expand_as(c)
    slope = torch.zeros_like(c)
    for power in range(degree - 1, -1, -1):
        slope = slope * c + value
        value = value * c + coefficients[power]
    return value, slope


def _polynomials(parameters: Floats) -> Floats:
    return parameters.reshape(len(parameters), 2, MAX_PERIODICITY + 1).transpose(1, 2, 0)[..., None]


def _degree(coefficients: Floats) -> int:
    used = np.nonzero(np.any(coefficients != 0, axis=0))[0]
    return int(used[-1]) if len(used) else -1
