"""Rigid motions drawn as an alignment penalty has them, and their integral: the bridge to densities of shapes alone.

A configuration of N atoms is a shape s (internal coordinates), the centroid c of the aligned atoms, and a rotation R,
with ``dx = J(s) ds dc dR``, where J is the volume element of the internal coordinates and dR has a total of 8 pi^2. The
penalised target is therefore

    exp(-U(s)/kT - lambda D^2(s, c, R)) dx  =  J(s) exp(-U(s)/kT) ds  x  exp(-lambda D^2) dc dR,

and integrating the rigid motion out leaves the Boltzmann distribution of shapes times

    G(s) = int exp(-lambda D^2) dc dR = (pi / (lambda M))^(3/2)  x  8 pi^2  x  g(s),

g being the mean over rotations (`AlignmentPenalty.log_rotation_integral`). Under the target, populations of shapes are
thus weighted by g. A weight of the target divided by G is a weight of the Boltzmann distribution; its log Z is the one
of internal coordinates, "with respect to positions modulo rigid motion".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boltzgen.energy.alignment import AlignmentPenalty

__all__ = ["draw_rigid_motions", "log_rigid_integral"]


def log_rigid_integral(penalty: AlignmentPenalty, positions: Tensor) -> Tensor:
    """Log of G(x), the integral of exp(-penalty) over all rigid motions of each configuration.

    Parameters
    ----------
    positions : (B, N, 3) tensor
        nm.

    Returns
    -------
    (B,) float64 tensor
        Translations count in nm^3, rotations have a total of 8 pi^2.
    """
    constant = penalty.log_translation_integral + math.log(8 * math.pi**2)
    return penalty.log_rotation_integral(positions) + constant


def draw_rigid_motions(
    penalty: AlignmentPenalty, positions: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Positions moved and turned at random, distributed as exp(-penalty) given their shape.

    For data that come in any orientation. After the best alignment a rotation by theta about n costs
    ``4 lambda v.I.v`` with ``v = n sin(theta/2)``, and the uniform measure is ``dv / sqrt(1 - |v|^2)``: v is drawn from
    the normal distribution and accepted accordingly. Rotations beyond the cap, where the penalty is flat, are left out.

    Parameters
    ----------
    positions : (B, N, 3) tensor
        nm.

    Returns
    -------
    (B, N, 3) tensor
        Of the dtype of the positions, without gradient.
    """
    with torch.no_grad():
        chosen = positions if penalty.atoms is None else positions[:, penalty.atoms.to(positions.device)]
        centroid = chosen.double().mean(1, keepdim=True)
        aligned = (positions.double() - centroid) @ penalty.rotation(positions).transpose(1, 2)
        turned = _turn(aligned, _draw_half_turns(penalty, aligned, generator))
        spread = 1 / math.sqrt(2 * penalty.strength * len(penalty.reference))
        shift = torch.randn(len(turned), 1, 3, dtype=turned.dtype, device=turned.device, generator=generator)
        return (turned + penalty.reference.to(turned).mean(0) + spread * shift).to(positions)


def _draw_half_turns(penalty: AlignmentPenalty, aligned: Tensor, generator: torch.Generator | None) -> Tensor:
    """Vectors v = n sin(theta/2), (B, 3), of rotations within the cap."""
    x = aligned if penalty.atoms is None else aligned[:, penalty.atoms.to(aligned.device)]
    second = x.transpose(1, 2) @ x
    trace = second.diagonal(dim1=1, dim2=2).sum(1)
    inertia = trace[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device) - second
    factor = torch.linalg.cholesky(torch.linalg.inv(8 * penalty.strength * inertia))
    largest = math.sin(penalty.max_angle / 2)
    v = x.new_zeros(len(x), 3)
    left = torch.arange(len(x), device=x.device)
    while len(left):
        normal = torch.randn(len(left), 3, dtype=x.dtype, device=x.device, generator=generator)
        trial = (factor[left] @ normal.unsqueeze(2)).squeeze(2)
        square = trial.square().sum(1)
        uniform = torch.rand(len(left), dtype=x.dtype, device=x.device, generator=generator)
        # 1/sqrt(1 - |v|^2) over its largest value, which is at the cap; without a cap it has none, and is capped.
        ratio = torch.sqrt(max(1 - largest**2, 1e-4) / (1 - square).clamp(min=1e-4))
        accepted = (square < largest**2) & (uniform < ratio)
        v[left[accepted]] = trial[accepted]
        left = left[~accepted]
    return v


def _turn(x: Tensor, v: Tensor) -> Tensor:
    """Rotate (B, N, 3) by unit quaternions with vector part v (B, 3)."""
    v = v.unsqueeze(1).expand_as(x)
    w = torch.sqrt((1 - v.square().sum(2, keepdim=True)).clamp(min=0))
    twice = 2 * torch.linalg.cross(v, x, dim=-1)
    return x + w * twice + torch.linalg.cross(v, twice, dim=-1)
