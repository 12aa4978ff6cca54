"""Flows of the sizes of ours in the designs that normflows and bgflow publish, written from their descriptions.

Both work on all internal coordinates, batch first: the coupled neural spline flow of normflows' Boltzmann generators
(every layer moves half of all coordinates by circular or linear-tailed rational-quadratic splines, residual
conditioner), and the channels of bgflow (torsions against torsions, then angles and bonds given the others, one dense
network for each block). Mathematics: Durkan et al. (2019), Rezende et al. (2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ChannelStack", "CoupledSplineStack", "InternalStack"]

TAIL = 5.0  # linear-tailed splines act within this many widths


def spline(x: Tensor, raw: Tensor, bound: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Rational-quadratic splines of (B, D) within +-bound, the identity beyond; raw is (B, D, 3K+1)."""
    n_bins = raw.shape[-1] // 3
    raw_widths, raw_heights, raw_slopes = raw.split([n_bins, n_bins, n_bins + 1], dim=-1)
    x_knots, widths = _knots(raw_widths, bound)
    y_knots, heights = _knots(raw_heights, bound)
    slopes = 1e-3 + functional.softplus(raw_slopes + math.log(math.e - 1 - 1e-3))
    inside = x.abs() < bound
    clamped = torch.where(inside, x, torch.zeros_like(x))
    knots = (y_knots if inverse else x_knots).contiguous()
    index = (torch.searchsorted(knots, clamped.unsqueeze(-1), right=True) - 1).clamp(0, n_bins - 1)
    take = lambda values: values.gather(-1, index).squeeze(-1)
    x0, width, y0, height = take(x_knots), take(widths), take(y_knots), take(heights)
    d0, d1, mean = take(slopes), slopes.gather(-1, index + 1).squeeze(-1), take(heights / widths)
    excess = d0 + d1 - 2 * mean
    if inverse:
        rise = clamped - y0
        a, b, c = height * (mean - d0) + rise * excess, height * d0 - rise * excess, -mean * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        moved = t * width + x0
    else:
        t = (clamped - x0) / width
        moved = y0 + height * (mean * t.square() + d0 * t * (1 - t)) / (mean + excess * t * (1 - t))
    numerator = mean.square() * (d1 * t.square() + 2 * mean * t * (1 - t) + d0 * (1 - t).square())
    log_derivative = numerator.log() - 2 * (mean + excess * t * (1 - t)).log()
    log_derivative = -log_derivative if inverse else log_derivative
    return torch.where(inside, moved, x), torch.where(inside, log_derivative, torch.zeros_like(x))


def _knots(raw: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    sizes = 1e-3 + (1 - 1e-3 * raw.shape[-1]) * functional.softmax(raw, dim=-1)
    knots = functional.pad(sizes.cumsum(-1), (1, 0))
    knots = bound.unsqueeze(-1) * (2 * knots - 1)
    return knots, knots[..., 1:] - knots[..., :-1]


class ResidualNet(nn.Module):
    """Linear layer, residual blocks of two linear layers with activations before them, linear layer."""

    def __init__(self, n_in: int, n_out: int, hidden: int, blocks: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(n_in, hidden), nn.Linear(hidden, n_out)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def dense_net(n_in: int, n_out: int, hidden: int) -> nn.Sequential:
    """Two hidden layers with SiLU."""
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, n_out)
    )


def features(x: Tensor, circular: Tensor) -> Tensor:
    """Sine and cosine of angles on the circle, other coordinates as they are."""
    return torch.cat([x[:, circular].sin(), x[:, circular].cos(), x[:, ~circular]], dim=1)


class SplineCoupling(nn.Module):
    """Moves some coordinates given others; those on the circle are turned as well."""

    def __init__(self, given: Tensor, moved: Tensor, circular: Tensor, n_bins: int, hidden: int, residual: bool):
        super().__init__()
        self.register_buffer("given", given)
        self.register_buffer("moved", moved)
        self.register_buffer("is_circular", circular[moved])
        self.register_buffer("given_circular", circular[given])
        self.register_buffer("bound", torch.where(circular[moved], math.pi, TAIL))
        self.n_parameters = 3 * n_bins + 2  # widths, heights, slopes at the knots, rotation
        n_in = len(given) + int(circular[given].sum())
        build = ResidualNet if residual else dense_net
        self.network = build(n_in, len(moved) * self.n_parameters, hidden)

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = self.network(features(x[:, self.given], self.given_circular)).unflatten(1, (-1, self.n_parameters))
        raw, turn = raw[..., :-1], torch.where(self.is_circular, raw[..., -1], 0.0)
        # The slope at the seam of a circle is one number.
        last = torch.where(self.is_circular.unsqueeze(-1), raw[..., -(raw.shape[-1] // 3) - 1, None], raw[..., -1:])
        raw = torch.cat([raw[..., :-1], last], dim=-1)
        y = x[:, self.moved]
        y = self._wrapped(y - turn) if inverse else y
        y, log_derivative = spline(y, raw, self.bound, inverse)
        y = y if inverse else self._wrapped(y + turn)
        return x.index_copy(1, self.moved, y), log_derivative.sum(1)

    def _wrapped(self, y: Tensor) -> Tensor:
        return torch.where(self.is_circular, torch.remainder(y + math.pi, 2 * math.pi) - math.pi, y)


class InternalStack(nn.Module):
    """Couplings on all internal coordinates of a molecule; the same map to Cartesian positions as ours."""

    def __init__(self, chart, couplings: list[SplineCoupling]) -> None:
        super().__init__()
        self.internal = chart.internal
        column = lambda name: torch.tensor([getattr(row, name) for row in chart.rows])
        self.register_buffer("circular", is_dihedral(chart))
        self.register_buffer("centre", column("centre"))
        self.register_buffer("width", torch.where(self.circular, 1.0, column("width")))
        self.couplings = nn.ModuleList(couplings)

    def sample_and_log_prob(self, n_samples: int) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 3) and log-density (B,)."""
        z = torch.randn(n_samples, len(self.centre))
        uniform = (2 * torch.rand_like(z) - 1) * math.pi
        log_q = torch.where(self.circular, -math.log(2 * math.pi), -0.5 * z.square()).sum(1)
        x = torch.where(self.circular, uniform, z)
        for coupling in self.couplings:
            x, change = coupling(x, inverse=False)
            log_q = log_q - change
        positions, log_det = self.internal.to_cartesian(self.centre + self.width * x)
        return positions, log_q - log_det

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,)."""
        coordinates, log_q = self.internal.to_internal(positions)
        x = (coordinates - self.centre) / self.width
        x = torch.where(self.circular, torch.remainder(x + math.pi, 2 * math.pi) - math.pi, x)
        for coupling in reversed(self.couplings):
            x, change = coupling(x, inverse=True)
            log_q = log_q + change
        return log_q + torch.where(self.circular, -math.log(2 * math.pi), -0.5 * x.square()).sum(1)


def is_dihedral(chart) -> Tensor:
    """Coordinates on the circle: torsions free or not, and improper torsions."""
    return torch.tensor([len(row.atoms) == 4 for row in chart.rows])


def CoupledSplineStack(chart, n_layers: int, hidden: int, n_bins: int) -> InternalStack:
    """As normflows: every layer moves half of all coordinates."""
    circular, couplings = is_dihedral(chart), []
    for k in range(n_layers):
        order = torch.randperm(len(circular), generator=torch.Generator().manual_seed(k // 2))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        couplings.append(SplineCoupling(halves[k % 2], halves[1 - k % 2], circular, n_bins, hidden, residual=True))
    return InternalStack(chart, couplings)


def ChannelStack(chart, torsion_layers: int, other_layers: int, hidden: int, n_bins: int) -> InternalStack:
    """As bgflow: torsions split in two, then angles and bonds given what stands before them."""
    circular = is_dihedral(chart)
    bonds, angles, torsions = (
        torch.tensor([k for k, row in enumerate(chart.rows) if len(row.atoms) == n]) for n in (2, 3, 4)
    )
    couplings = []
    for k in range(torsion_layers):
        order = torsions[torch.randperm(len(torsions), generator=torch.Generator().manual_seed(k // 2))]
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        couplings.append(SplineCoupling(halves[k % 2], halves[1 - k % 2], circular, n_bins, hidden, residual=False))
    for k in range(other_layers):
        given, moved = (torsions, angles) if k % 2 == 0 else (torch.cat([torsions, angles]), bonds)
        couplings.append(SplineCoupling(given, moved, circular, n_bins, hidden, residual=False))
    return InternalStack(chart, couplings)
