"""Stiff internal coordinates as bounded, whitened deviations from the minimised structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["BoundedCoordinates", "bend", "unbend"]

BEND_AT = 0.6  # share of the limit inside which `bend` is the identity


def bend(y: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Identity near zero, bending smoothly to stay within (-limit, limit).

    For |y| <= a = 0.6 limit the map is the identity, so a Gaussian stays a Gaussian; beyond, it continues as
    ``a + (limit - a) tanh((|y| - a) / (limit - a))``, twice continuously differentiable at the seam.

    Returns
    -------
    bent, log_derivative : tensors of the shape of y
    """
    knee = BEND_AT * limit
    room = limit - knee
    t = (y.abs() - knee).clamp(min=0) / room
    bent = torch.copysign(torch.minimum(y.abs(), knee) + room * t.tanh(), y)
    # log(1 - tanh^2 t) without cancellation
    return bent, 2 * (math.log(2) - t - nn.functional.softplus(-2 * t))


def unbend(bent: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `bend`; ``log_derivative`` is that of the inverse. Values beyond the limit give infinities."""
    knee = BEND_AT * limit
    room = limit - knee
    s = (bent.abs() - knee).clamp(min=0) / room
    t = torch.atanh(s.clamp(max=1))
    y = torch.copysign(torch.minimum(bent.abs(), knee) + room * t, bent)
    return y, -torch.log1p(-s.clamp(max=1).square())


class BoundedCoordinates(nn.Module):
    """Standard-normal-like variables to stiff coordinates: whitening, bounds, widths and centres.

    ``coordinate = centre + width * bend(factor @ z)``, where ``factor`` is the Cholesky factor of the correlation
    matrix of the harmonic approximation. The factor is lower triangular, so coordinates that stand first
    (heavy atoms) never depend on variables that stand later (hydrogens).

    Parameters
    ----------
    centre, width, limit : (D,) tensors
        In nm or rad; ``limit`` is the largest deviation from the centre that can be reached.
    factor : (D, D) lower triangular tensor
        Or one of the first coordinates only, (d, d); variables that stand later are then deviations in widths.
    periodic : (D,) bool tensor
        Coordinates that are angles on the circle.
    """

    centre: Tensor
    width: Tensor
    limit: Tensor
    factor: Tensor
    periodic: Tensor

    def __init__(self, centre: Tensor, width: Tensor, limit: Tensor, factor: Tensor, periodic: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("width", width)
        self.register_buffer("limit", limit)
        self.register_buffer("factor", factor)
        self.register_buffer("periodic", periodic)

    @property
    def n(self) -> int:
        return len(self.centre)

    def whitened_up_to(self, n: int) -> BoundedCoordinates:
        """The same with only the first n coordinates whitened."""
        return BoundedCoordinates(self.centre, self.width, self.limit, self.factor[:n, :n], self.periodic)

    def _log_scale(self) -> Tensor:
        return self.width.log().sum() + self.factor.diagonal().log().sum()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) variables to coordinates and log |det|, shape (B,)."""
        n = len(self.factor)
        y = torch.cat([z[:, :n] @ self.factor.T, z[:, n:]], dim=-1)
        bent, log_derivative = bend(y, self.limit / self.width)
        return self.centre + self.width * bent, log_derivative.sum(-1) + self._log_scale()

    def leading(self, z: Tensor) -> Tensor:
        """Coordinates of the whitened variables alone, which stand first: (B, d) to (B, d)."""
        n = len(self.factor)
        bent, _ = bend(z @ self.factor.T, (self.limit / self.width)[:n])
        return self.centre[:n] + self.width[:n] * bent

    def deviations(self, coordinates: Tensor) -> Tensor:
        """(B, D) coordinates less their centres, the shorter way round where they are periodic."""
        deviation = coordinates - self.centre
        wrapped = torch.remainder(deviation + math.pi, 2 * math.pi) - math.pi
        return torch.where(self.periodic, wrapped, deviation)

    def inverse(self, coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates to variables, log |det| of the inverse, and which rows lie within the bounds."""
        deviation = self.deviations(coordinates)
        inside = (deviation.abs() < self.limit).all(dim=-1)
        # A row outside has no preimage; its centre stands in so that no infinity enters a gradient.
        deviation = torch.where(inside.unsqueeze(-1), deviation, torch.zeros_like(deviation))
        y, log_derivative = unbend(deviation / self.width, self.limit / self.width)
        n = len(self.factor)
        z = torch.linalg.solve_triangular(self.factor, y[:, :n].T, upper=False).T
        return torch.cat([z, y[:, n:]], dim=-1), log_derivative.sum(-1) - self._log_scale(), inside
