"""What surrounds each heavy atom in space, which small networks would not find out from a chain of torsions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.internal import InternalCoordinates
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.flows.hydrogen_groups import bonds_between

__all__ = ["Surroundings", "find_surroundings"]

NEAR = 3  # bonds; what is no further than that follows from bonds, angles and one torsion
WIDTHS_NM = (0.2, 0.3, 0.45)
UNIT_NM = 0.3


def find_surroundings(chart: CoordinateChart) -> Surroundings | None:
    """The surroundings of a molecule's heavy atoms; None if none of them are more than three bonds apart."""
    zmatrix = chart.internal.zmatrix
    heavy = zmatrix.atoms[: zmatrix.n_heavy]
    are_first = set(zmatrix.references[: zmatrix.n_heavy].flat) <= {*heavy.tolist(), -1}
    are_far = bool((bonds_between(chart)[np.ix_(heavy, heavy)] > NEAR).any())
    return Surroundings(chart) if are_first and are_far else None


class Surroundings(nn.Module):
    """Sums over the surroundings of each heavy atom, from the internal coordinates of the heavy atoms.

    An atom i gets ``sum_j exp(-r_ij^2 / 2 s^2) (1, R_i (x_j - x_i) / 0.3 nm)`` over the heavy atoms more than three
    bonds away, for three widths s, with R_i the axes of a frame of the atom and two others nearby. Atoms with one bond
    only (carbonyl oxygens, halogens; methyl carbons too in a chart without hydrogens) and the rest are summed apart.
    The number of features of an atom does not depend on the size of the molecule, and they do not change under
    rotations.

    Parameters
    ----------
    chart : CoordinateChart
        Of a molecule whose Z-matrix places all heavy atoms first.
    """

    _columns: Tensor
    _frames: Tensor
    _is_far: Tensor
    _kinds: Tensor
    _exponents: Tensor

    def __init__(self, chart: CoordinateChart) -> None:
        super().__init__()
        zmatrix, n, total = chart.internal.zmatrix, chart.internal.zmatrix.n_heavy, chart.internal.n_atoms
        heavy = zmatrix.atoms[:n]
        self._place = {int(atom): k for k, atom in enumerate(heavy)}
        references = np.array([[self._place.get(int(atom), -1) for atom in row] for row in zmatrix.references[:n]])
        self.internal = InternalCoordinates(
            ZMatrix(np.arange(n), references, zmatrix.is_improper[:n], zmatrix.is_linear[:n], n)
        )
        starts = (0, total - 1, 2 * total - 3)  # of bonds, angles, dihedrals
        columns = [start + k for skipped, start in enumerate(starts, 1) for k in range(n - skipped)]
        # An atom that continues a line has its parent and grandparent on it: only its third reference gives a plane.
        other = np.where(zmatrix.is_linear[:n], references[:, 2], references[:, 1])
        frames = np.concatenate([[(1, 2), (0, 2), (1, 0)], np.stack([references[:, 0], other], axis=1)[3:]])
        distance = bonds_between(chart)[heavy]
        has_one_bond = (distance == 1).sum(1) == 1
        real = torch.get_default_dtype()
        buffer = lambda name, value, dtype: self.register_buffer(
            name, torch.as_tensor(np.array(value), dtype=dtype), persistent=False
        )
        buffer("_columns", columns, torch.long)
        buffer("_frames", frames.T, torch.long)
        buffer("_is_far", distance[:, heavy] > NEAR, real)
        buffer("_kinds", np.stack([has_one_bond, ~has_one_bond]).T, real)
        buffer("_exponents", -0.5 / np.square(WIDTHS_NM), real)

    @property
    def n_per_atom(self) -> int:
        return 4 * self._kinds.shape[1] * len(self._exponents)

    @property
    def n_features(self) -> int:
        """Rows of what this returns."""
        return len(self._place) * self.n_per_atom

    def rows(self) -> dict[int, range]:
        """Which rows belong to which heavy atom."""
        n = self.n_per_atom
        return {atom: range(k * n, (k + 1) * n) for atom, k in self._place.items()}

    def forward(self, coordinates: Tensor) -> Tensor:
        """(n_features, B) of internal coordinates (B, 3N-6); those of hydrogens are not looked at."""
        positions, _ = self.internal.to_cartesian(coordinates[:, self._columns])
        products = positions @ positions.mT
        lengths = products.diagonal(dim1=1, dim2=2)
        squares = lengths.unsqueeze(1) + lengths.unsqueeze(2) - 2 * products
        near = torch.exp(squares.unsqueeze(1) * self._exponents.reshape(-1, 1, 1)) * self._is_far  # (B, widths, n, n)
        with_one = torch.cat([positions, torch.ones_like(positions[..., :1])], dim=-1)
        by_kind = (self._kinds.unsqueeze(-1) * with_one.unsqueeze(2)).flatten(2)
        sums = (near.flatten(1, 2) @ by_kind).unflatten(1, near.shape[1:3]).unflatten(-1, (-1, 4))
        counts = sums[..., 3:]  # (B, widths, n, kinds, 1)
        vectors = (sums[..., :3] - positions[:, None, :, None] * counts) / UNIT_NM
        turned = (vectors.unsqueeze(-2) * self._axes(positions)[:, None, :, None]).sum(-1)
        return torch.cat([counts, turned], dim=-1).permute(2, 1, 3, 4, 0).flatten(0, 3)

    def _axes(self, positions: Tensor) -> Tensor:
        """Three axes of each atom, (B, n, 3, 3): towards a neighbour, in the plane of another, and normal to it."""
        along, other = (positions[:, atoms] - positions for atoms in self._frames)
        along = nn.functional.normalize(along, dim=-1)
        normal = nn.functional.normalize(torch.linalg.cross(along, other, dim=-1), dim=-1)
        return torch.stack([along, torch.linalg.cross(normal, along, dim=-1), normal], dim=2)
