"""The double well in one dimension that analytic targets are made of."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from boltzgen.errors import PotentialError

__all__ = ["QuarticWell"]

# Beyond this height above its minimum a well counts as empty: exp(-60) = 1e-26 is below the resolution of float64.
EMPTY_ABOVE = 60.0
QUADRATURE_NODES = 400
ENVELOPE_CELLS = 2048


class QuarticWell:
    """``u(x) = a x + b x^2 + c x^4`` with two minima: normaliser and populations by quadrature, exact samples.

    Attributes
    ----------
    log_z : float
        Log of the integral of exp(-u), by Gauss-Legendre quadrature on either side of the barrier.
    left_population : float
        Share of the well left of the barrier.
    barrier : float
        Position of the maximum between the wells.
    """

    def __init__(self, linear: float, quadratic: float, quartic: float) -> None:
        self.linear, self.quadratic, self.quartic = linear, quadratic, quartic
        if not all(map(math.isfinite, (linear, quadratic, quartic))) or quartic <= 0:
            raise PotentialError(f"a double well needs a quartic coefficient above zero, not {quartic}")
        # Where u' = a + 2 b x + 4 c x^3 has three real roots: its discriminant is positive.
        if -8 * quadratic**3 - 27 * quartic * linear**2 <= 0:
            raise PotentialError(
                f"{linear:g} x + {quadratic:g} x^2 + {quartic:g} x^4 has one minimum: lower the quadratic "
                "coefficient or the tilt"
            )
        self.stationary = np.sort(np.roots([4 * quartic, 0.0, 2 * quadratic, linear]).real)
        self.barrier = float(self.stationary[1])
        self._lowest = float(min(self._u(self.stationary)))
        ends = np.roots([quartic, 0.0, quadratic, linear, -self._lowest - EMPTY_ABOVE])
        real = ends.real[np.abs(ends.imag) < 1e-9 * np.abs(ends).max()]
        self.low, self.high = float(real.min()), float(real.max())
        left, right = self._mass(self.low, self.barrier), self._mass(self.barrier, self.high)
        self.log_z = math.log(left + right) - self._lowest
        self.left_population = left / (left + right)

    def energy(self, x: Tensor) -> Tensor:
        """Reduced energy, elementwise."""
        square = x.square()
        return self.linear * x + square * (self.quadratic + self.quartic * square)

    def gradient(self, x: Tensor) -> Tensor:
        """Derivative of the reduced energy, elementwise."""
        return self.linear + x * (2 * self.quadratic + 4 * self.quartic * x.square())

    def sample(self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Exact samples by rejection from a piecewise constant envelope, float64."""
        edges = np.linspace(self.low, self.high, ENVELOPE_CELLS + 1)
        on_device = lambda values: torch.as_tensor(values, dtype=torch.float64, device=device)
        height, left = on_device(self._envelope(edges)), on_device(edges[:-1])
        width = (self.high - self.low) / ENVELOPE_CELLS
        uniform = lambda n: torch.rand(n, dtype=torch.float64, device=device, generator=generator)
        accepted = torch.empty(0, dtype=torch.float64, device=device)
        n_samples = math.prod(shape)
        while len(accepted) < n_samples:
            n = n_samples - len(accepted)
            cell = torch.multinomial(height, n, replacement=True, generator=generator)
            x = left[cell] + width * uniform(n)
            keep = uniform(n) * height[cell] < torch.exp(self._lowest - self.energy(x))
            accepted = torch.cat([accepted, x[keep]])
        return accepted.reshape(shape)

    def _envelope(self, edges: np.ndarray) -> np.ndarray:
        """Largest value of exp(-(u - lowest)) in each cell: at an end, or at a minimum that lies inside."""
        density = np.exp(self._lowest - self._u(edges))
        height = np.maximum(density[:-1], density[1:])
        for minimum in self.stationary[[0, 2]]:
            cell = np.searchsorted(edges, minimum) - 1
            height[cell] = max(height[cell], np.exp(self._lowest - self._u(minimum)))
        return height

    def _mass(self, low: float, high: float) -> float:
        """Integral of exp(-(u - lowest)) between two points; exact to rounding, since the integrand is analytic."""
        nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
        x = low + 0.5 * (high - low) * (nodes + 1)
        return float(0.5 * (high - low) * (weights @ np.exp(self._lowest - self._u(x))))

    def _u(self, x: np.ndarray) -> np.ndarray:
        return self.linear * x + self.quadratic * x**2 + self.quartic * x**4
