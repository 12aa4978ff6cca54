"""Geometric measures of configurations, differentiable: distances, angles, torsions, RMSD, radius of gyration."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["angle", "distance", "radius_of_gyration", "rmsd", "torsion"]


def torsion(positions: Tensor, atoms: tuple[int, int, int, int]) -> Tensor:
    """Torsion angle in radians in (-pi, pi].

    Parameters
    ----------
    positions : (..., N, 3) tensor
        Any length unit.
    atoms : four indices
        IUPAC sign: positive when, seen along the middle bond, the far bond is clockwise from the near one.

    Returns
    -------
    (...) tensor
    """
    a, b, c, d = (positions[..., i, :] for i in atoms)
    axis = c - b
    left = torch.linalg.cross(b - a, axis)
    right = torch.linalg.cross(axis, d - c)
    sine = (torch.linalg.cross(left, right) * axis).sum(-1) / axis.norm(dim=-1)
    angle = torch.atan2(sine, (left * right).sum(-1))
    # atan2 gives -pi for a sine of -0.0; the branch is open there.
    return torch.where(angle <= -torch.pi, angle + 2 * torch.pi, angle)


def distance(positions: Tensor, atoms: tuple[int, int]) -> Tensor:
    """Distance of two atoms, in the unit of positions (..., N, 3); shape (...)."""
    return (positions[..., atoms[1], :] - positions[..., atoms[0], :]).norm(dim=-1)


def angle(positions: Tensor, atoms: tuple[int, int, int]) -> Tensor:
    """Angle at the middle atom in radians in [0, pi], of positions (..., N, 3); shape (...)."""
    a, b, c = (positions[..., i, :] for i in atoms)
    left, right = a - b, c - b
    # The arc tangent is exact near 0 and pi, where the arc cosine is not.
    return torch.atan2(torch.linalg.cross(left, right).norm(dim=-1), (left * right).sum(-1))


def rmsd(positions: Tensor, reference: Tensor) -> Tensor:
    """Root mean square deviation (...) of positions (..., n, 3) from a reference (n, 3) after the best superposition.

    Proper rotations only: a mirror image is not superposed. Computed in float64.

    References
    ----------
    Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    x = positions.double() - positions.double().mean(-2, keepdim=True)
    y = reference.to(x) - reference.to(x).mean(-2, keepdim=True)
    left, values, right = torch.linalg.svd(x.transpose(-1, -2) @ y)
    sign = torch.sign(torch.linalg.det(left) * torch.linalg.det(right)).detach()
    best = values[..., 0] + values[..., 1] + sign * values[..., 2]
    square = (x.square().sum((-1, -2)) + y.square().sum() - 2 * best) / x.shape[-2]
    return square.clamp(min=0).sqrt().to(positions)


def radius_of_gyration(positions: Tensor, masses: Tensor) -> Tensor:
    """Radius of gyration (...) of positions (..., N, 3) about the centre of mass; masses (N,) in any unit."""
    share = (masses / masses.sum()).to(positions)[:, None]
    centre = (share * positions).sum(-2, keepdim=True)
    return (share * (positions - centre).square()).sum((-1, -2)).sqrt()
