"""Targets and flows with known answers."""

import math

import torch
from torch import Tensor, nn

from boltzgen.energy import analytic
from boltzgen.energy.base import BatchedPotential, RawEvaluation

__all__ = ["DoubleWell", "GaussianFlow", "Harmonic"]


class Harmonic(BatchedPotential):
    """``U = 0.5 k |x|^2`` of one particle in three dimensions; at kT = 1, log Z = 1.5 log(2 pi / k)."""

    name = "harmonic"

    def __init__(self, stiffness: float = 4.0) -> None:
        super().__init__(1)
        self.stiffness = stiffness
        self.log_z = 1.5 * math.log(2 * math.pi / stiffness)

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        energy = 0.5 * self.stiffness * positions.square().sum((1, 2))
        return RawEvaluation(energy, -self.stiffness * positions if forces else None)


class DoubleWell(analytic.DoubleWell):
    """``u = 4 x^4 - 8 x^2 + 0.5 x + 0.5 (y^2 + z^2)`` of one particle: the minor well lies at x > 0."""

    def __init__(self) -> None:
        super().__init__(dimension=3, coefficients=(0.5, -8.0, 4.0), scale=1.0)


class GaussianFlow(nn.Module):
    """Normal density in three dimensions with a mean and a scale for each coordinate, on positions (B, 1, 3)."""

    def __init__(self, mean: float = 0.0, log_scale: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((3,), mean))
        self.log_scale = nn.Parameter(torch.full((3,), log_scale))

    def sample_and_log_prob(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        z = torch.randn(n_samples, 3, generator=generator)
        return (self.mean + z * self.log_scale.exp()).unsqueeze(1), self._log_normal(z)

    def log_prob(self, positions: Tensor) -> Tensor:
        return self._log_normal((positions[:, 0] - self.mean) * torch.exp(-self.log_scale))

    def _log_normal(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(-1) + 3 * math.log(2 * math.pi)) - self.log_scale.sum()
