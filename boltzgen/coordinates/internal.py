"""Cartesian positions to internal coordinates and back, with exact log-determinants."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.coordinates.zmatrix import ZMatrix

__all__ = ["InternalCoordinates", "dihedral_angle", "local_vectors", "place_atoms", "with_virtual"]


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.cross(u, v, dim=-1)


def dihedral_angle(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral angle of four points (..., 3), IUPAC sign, in (-pi, pi]; stable for any geometry of finite bonds."""
    bond = c - b
    n1 = _cross(b - a, bond)
    n2 = _cross(bond, d - c)
    y = (_cross(n1, n2) * bond).sum(-1) / torch.linalg.vector_norm(bond, dim=-1)
    return torch.atan2(y, (n1 * n2).sum(-1))


def local_vectors(bonds: Tensor, angles: Tensor, dihedrals: Tensor) -> Tensor:
    """Vectors (B, n, 3) in nm from parents to atoms, in the frames that `place_atoms` erects, of coordinates (B, n)."""
    sin = angles.sin()
    unit = torch.stack([-angles.cos(), sin * dihedrals.cos(), sin * dihedrals.sin()], dim=-1)
    return bonds.unsqueeze(-1) * unit


def place_atoms(b: Tensor, a: Tensor, c: Tensor, local: Tensor) -> Tensor:
    """Atoms (B, n, 3) from their parents b, grandparents a, third references c (B, n, 3), and `local_vectors`."""
    axis = b - a
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    normal = _cross(a - c, axis)
    normal = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    along, across, out = local.split(1, dim=-1)
    return b + along * axis + across * _cross(normal, axis) + out * normal


def with_virtual(b: Tensor, a: Tensor, c: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """References a and c (B, n, 3), on some rows replaced by points on the normal of the plane a-b-c, 0.1 nm off b."""
    axis = nn.functional.normalize(b[:, rows] - a[:, rows], dim=-1)
    normal = 0.1 * nn.functional.normalize(_cross(a[:, rows] - c[:, rows], axis), dim=-1)
    on_normal = b[:, rows] + normal
    return a.index_copy(1, rows, on_normal), c.index_copy(1, rows, on_normal + 0.1 * axis)


class InternalCoordinates(nn.Module):
    """Bonds, angles and dihedrals of a Z-matrix.

    The layout of the last axis is N-1 bonds (nm), N-2 angles (rad), N-3 dihedrals (rad), each in the order in
    which the Z-matrix places atoms. The log-determinant is that of the map to positions modulo rigid motion
    (the volume of translations, and that of rotations with Haar measure of total mass 8 pi^2, are left out):
    ``sum 2 log r + sum log sin theta`` over every bond and angle.

    An atom that continues the line a-b (``zmatrix.is_linear``) has no dihedral about it. Its angle is that with the
    normal of the plane a-b-c, and its dihedral the azimuth about this normal, zero along the line: both are the
    ordinary ones with virtual points on the normal in the place of a and c, so the volume element is the same.

    Parameters
    ----------
    zmatrix : ZMatrix
    """

    _bond_atoms: Tensor
    _angle_atoms: Tensor
    _dihedral_atoms: Tensor
    _order: Tensor
    _linear: Tensor

    def __init__(self, zmatrix: ZMatrix) -> None:
        super().__init__()
        self.zmatrix = zmatrix
        self.n_atoms = zmatrix.n_atoms
        atoms, references = zmatrix.atoms, zmatrix.references
        index = lambda array: torch.as_tensor(np.asarray(array), dtype=torch.long)
        self.register_buffer("_bond_atoms", index([atoms[1:], references[1:, 0]]), persistent=False)
        self.register_buffer("_angle_atoms", index([atoms[2:], references[2:, 0], references[2:, 1]]), persistent=False)
        self.register_buffer("_dihedral_atoms", index([atoms[3:], *references[3:].T]), persistent=False)
        self.register_buffer("_linear", index(np.flatnonzero(zmatrix.is_linear) - 3), persistent=False)
        # Positions are assembled level by level; `_slot` says where each reference lies in that growing array.
        levels = zmatrix.levels()
        rows = [int(row) for level in levels for row in level]
        slot = {int(atoms[row]): k for k, row in enumerate(rows)}
        self._n_levels = len(levels)
        for k, level in enumerate(levels[1:], start=1):
            self.register_buffer(f"_rows{k}", index(level), persistent=False)
            slots = [[slot[int(atom)] for atom in references[row]] for row in level]
            self.register_buffer(f"_slots{k}", index(slots).T.contiguous(), persistent=False)
            self.register_buffer(f"_linear{k}", index(np.flatnonzero(zmatrix.is_linear[level])), persistent=False)
        self.register_buffer("_order", index([slot[atom] for atom in range(self.n_atoms)]), persistent=False)

    @property
    def n_coordinates(self) -> int:
        """3N - 6."""
        return 3 * self.n_atoms - 6

    def split(self, coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bonds, angles, dihedrals of (..., 3N-6) coordinates."""
        n = self.n_atoms
        bonds, angles, dihedrals = coordinates.split([n - 1, n - 2, n - 3], dim=-1)
        return bonds, angles, dihedrals

    def to_internal(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates of positions.

        Parameters
        ----------
        positions : (B, N, 3) tensor, nm

        Returns
        -------
        coordinates : (B, 3N-6) tensor
        log_abs_det : (B,) tensor
            log |d coordinates / d positions|.
        """
        i, j = positions[:, self._bond_atoms[0]], positions[:, self._bond_atoms[1]]
        bonds = torch.linalg.vector_norm(i - j, dim=-1)
        u = positions[:, self._angle_atoms[0]] - positions[:, self._angle_atoms[1]]
        v = positions[:, self._angle_atoms[2]] - positions[:, self._angle_atoms[1]]
        d, b, a, c = (positions[:, atoms] for atoms in self._dihedral_atoms)
        if len(self._linear):
            a, c = with_virtual(b, a, c, self._linear)
            v = torch.cat([v[:, :1], a - b], dim=1)
        # atan2 of sine and cosine keeps full precision near straight angles, where arccos does not.
        angles = torch.atan2(torch.linalg.vector_norm(_cross(u, v), dim=-1), (u * v).sum(-1))
        dihedrals = dihedral_angle(d, b, a, c)
        return torch.cat([bonds, angles, dihedrals], dim=-1), -_log_volume(bonds, angles)

    def to_cartesian(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Positions, centred on the middle of the heavy atoms' tree, of internal coordinates.

        Parameters
        ----------
        coordinates : (B, 3N-6) tensor

        Returns
        -------
        positions : (B, N, 3) tensor, nm
        log_abs_det : (B,) tensor
            log |d positions / d coordinates|, modulo rigid motion.
        """
        bonds, angles, dihedrals = self.split(coordinates)
        placed = self._roots(bonds, angles)
        local = local_vectors(bonds[:, 2:], angles[:, 1:], dihedrals)
        for level in range(1, self._n_levels):
            rows = getattr(self, f"_rows{level}")
            b, a, c = (placed[:, slots] for slots in getattr(self, f"_slots{level}"))
            linear: Tensor = getattr(self, f"_linear{level}")
            if len(linear):
                a, c = with_virtual(b, a, c, linear)
            placed = torch.cat([placed, place_atoms(b, a, c, local[:, rows - 3])], dim=1)
        return placed[:, self._order], _log_volume(bonds, angles)

    def _roots(self, bonds: Tensor, angles: Tensor) -> Tensor:
        """The middle atom at the origin, the first on the x axis, the third in the xy plane."""
        zero = torch.zeros_like(bonds[:, 0])
        first = torch.stack([bonds[:, 0], zero, zero], dim=-1)
        third = torch.stack([bonds[:, 1] * angles[:, 0].cos(), bonds[:, 1] * angles[:, 0].sin(), zero], dim=-1)
        return torch.stack([first, torch.zeros_like(first), third], dim=1)

    def log_volume(self, coordinates: Tensor) -> Tensor:
        """log |d positions / d coordinates| (B,) of coordinates (B, 3N-6), modulo rigid motion."""
        bonds, angles, _ = self.split(coordinates)
        return _log_volume(bonds, angles)

    def extra_repr(self) -> str:
        return f"n_atoms={self.n_atoms}, n_coordinates={self.n_coordinates}, levels={self._n_levels}"


def _log_volume(bonds: Tensor, angles: Tensor) -> Tensor:
    return 2 * bonds.log().sum(-1) + angles.sin().log().sum(-1)
