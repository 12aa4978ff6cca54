"""Targets whose log Z is known: the double well in 12 dimensions, Gaussian mixtures, many wells.

Each is one particle with d coordinates, so that positions have shape (B, 1, d), and each is a *reduced* energy u times
kT: ``U(x) = kT u(x)`` in kJ/mol. With the default kT = 1 kJ/mol energies are in units of kT; with another one the
density ``exp(-U/kT)``, its log Z and its samples stay the same. Coordinates are plain numbers where molecules have nm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.quartic_well import QuarticWell
from boltzgen.errors import PotentialError

__all__ = ["AnalyticTarget", "DoubleWell", "GaussianMixture", "ManyWell"]

# Coefficients (linear, quadratic, quartic) of published double wells.
NOE_2019 = (1.0, -6.0, 1.0)
MIDGLEY_2023 = (-0.5, -6.0, 1.0)


class AnalyticTarget(BatchedPotential):
    """Base class: a reduced energy in d dimensions with known log Z.

    A subclass implements `_reduced` and `_draw`.

    Attributes
    ----------
    dimension : int
        Number of coordinates d.
    kT : float
        kJ/mol; the temperature at which everything here is stated.
    log_z : float
        Log of the integral of exp(-U/kT) over all d coordinates.
    """

    def __init__(self, dimension: int, log_z: float, kT: float = 1.0) -> None:
        super().__init__(1)
        if not (math.isfinite(kT) and kT > 0):
            raise PotentialError(f"kT must be a positive number in kJ/mol, not {kT}")
        self.dimension = dimension
        self.log_z = log_z
        self.kT = kT

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent exact samples of exp(-U/kT) / Z, (n, 1, d) float64, on the device of the generator."""
        device = "cpu" if generator is None else generator.device
        return self._draw(n_samples, torch.device(device), generator).unsqueeze(1)

    def log_prob(self, positions: Tensor) -> Tensor:
        """Normalised log-density (B,) of positions (B, 1, d), differentiable as the energy is."""
        return -self(positions) / self.kT - self.log_z

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        self._check(positions)
        return {self.name: self._evaluate(positions.detach(), forces=False).energy}

    def report(self) -> str:
        counts = self.counts
        return (
            f"{self.name}: analytic energy in {self.dimension} dimensions, kT = {self.kT:g} kJ/mol, "
            f"log Z = {self.log_z:.6f}\n"
            f"evaluated: {counts.energy:,} energies, {counts.force:,} of them with forces; "
            f"{counts.infinite} infinite, {counts.defect} undefined"
        )

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        reduced, gradient = self._reduced(positions.squeeze(1), forces)
        return RawEvaluation(self.kT * reduced, None if gradient is None else -self.kT * gradient.unsqueeze(1))

    def _reduced(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Reduced energy (B,) at x (B, d), and its gradient (B, d) if asked for."""
        raise NotImplementedError

    def _draw(self, n_samples: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Exact samples (n, d) in float64."""
        raise NotImplementedError


class DoubleWell(AnalyticTarget):
    """One bimodal coordinate, the others independent and normal: ``u = a x1 + b x1^2 + c x1^4 + sum xi^2 / (2 s^2)``.

    Felardos et al. (2022, section 2) use 12 dimensions, "the first dimension is bimodal and the 11 other dimensions are
    independent and Gaussian with a standard deviation of 10", without the constants of the first. Taken here are those
    of the work they call theirs similar to: a = 1, b = -6, c = 1 in the code published with Noé et al. (2019), which
    leave 3.3 % in the minor well, at x1 > 0. Midgley et al. (2023) tilt the same well by a = -0.5: 15.6 %, at x1 < 0.

    Parameters
    ----------
    dimension : int
    coefficients : (a, b, c)
        Of the first coordinate; c > 0 and b < 0 with a tilt small enough to leave two minima.
    scale : float
        Standard deviation s of the others.
    kT : float
        kJ/mol, see `AnalyticTarget`.

    Attributes
    ----------
    minor_population : float
        Share of the less populated well, by quadrature on either side of the barrier.
    barrier : float
        The first coordinate at the top of the barrier.

    Raises
    ------
    PotentialError
        If the first coordinate is not bimodal, or a number is out of range.
    """

    def __init__(
        self,
        dimension: int = 12,
        coefficients: tuple[float, float, float] = NOE_2019,
        scale: float = 10.0,
        kT: float = 1.0,
    ) -> None:
        _positive("scale", scale)
        if dimension < 1:
            raise PotentialError(f"a double well needs at least one dimension, not {dimension}")
        self.well = QuarticWell(*coefficients)
        self.scale = scale
        normal = (dimension - 1) * (math.log(scale) + 0.5 * math.log(2 * math.pi))
        super().__init__(dimension, self.well.log_z + normal, kT)
        self.name = f"double well {dimension}D"
        self.barrier = self.well.barrier
        self.minor_population = min(self.well.left_population, 1 - self.well.left_population)

    def in_minor_well(self, positions: Tensor) -> Tensor:
        """Which of the positions (B, 1, d) lie in the less populated well, (B,) bool."""
        left = positions[:, 0, 0] < self.barrier
        return left if self.well.left_population < 0.5 else ~left

    def _reduced(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        first, rest = x[:, :1], x[:, 1:] / self.scale
        reduced = self.well.energy(first).squeeze(1) + 0.5 * rest.square().sum(1)
        return reduced, torch.cat([self.well.gradient(first), rest / self.scale], dim=1) if gradient else None

    def _draw(self, n_samples: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        first = self.well.sample((n_samples, 1), device, generator)
        rest = torch.randn(n_samples, self.dimension - 1, dtype=torch.float64, device=device, generator=generator)
        return torch.cat([first, self.scale * rest], dim=1)


class ManyWell(AnalyticTarget):
    """Copies of a two-dimensional double well side by side: 2^(d/2) modes.

    Coordinates 0, 2, 4, ... are bimodal with the quartic of `DoubleWell`, coordinates 1, 3, 5, ... standard normal. The
    default, 32 dimensions and 65,536 modes with ``x^4 - 6 x^2 - x/2 + y^2/2`` in each pair, is the many-well target of
    Midgley et al., Flow Annealed Importance Sampling Bootstrap (2023).

    Parameters
    ----------
    dimension : int
        Even.
    coefficients : (a, b, c)
    kT : float
        kJ/mol, see `AnalyticTarget`.

    Attributes
    ----------
    minor_population : float
        Of the less populated well of each pair.
    n_modes : int

    Raises
    ------
    PotentialError
        If the dimension is odd or the coefficients give no double well.
    """

    def __init__(
        self, dimension: int = 32, coefficients: tuple[float, float, float] = MIDGLEY_2023, kT: float = 1.0
    ) -> None:
        if dimension < 2 or dimension % 2:
            raise PotentialError(f"a many-well target has an even number of dimensions, not {dimension}")
        self.well = QuarticWell(*coefficients)
        n_wells = dimension // 2
        super().__init__(dimension, n_wells * (self.well.log_z + 0.5 * math.log(2 * math.pi)), kT)
        self.name = f"many-well {dimension}D"
        self.n_modes = 2**n_wells
        self.barrier = self.well.barrier
        self.minor_population = min(self.well.left_population, 1 - self.well.left_population)

    def _reduced(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        bimodal, normal = x[:, 0::2], x[:, 1::2]
        reduced = self.well.energy(bimodal).sum(1) + 0.5 * normal.square().sum(1)
        return reduced, torch.stack([self.well.gradient(bimodal), normal], dim=2).flatten(1) if gradient else None

    def _draw(self, n_samples: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        n_wells = self.dimension // 2
        bimodal = self.well.sample((n_samples, n_wells), device, generator)
        normal = torch.randn(n_samples, n_wells, dtype=torch.float64, device=device, generator=generator)
        return torch.stack([bimodal, normal], dim=2).flatten(1)


class GaussianMixture(AnalyticTarget):
    """Normal components with diagonal covariance, normalised: log Z = 0.

    Parameters
    ----------
    means : (K, d) array
    scales : float or (K, d) array
        Standard deviations.
    weights : (K,) array, optional
        Positive, normalised here; equal if absent.
    kT : float
        kJ/mol, see `AnalyticTarget`.

    Raises
    ------
    PotentialError
        If a shape does not fit, or a scale or weight is not positive.
    """

    def __init__(
        self,
        means: np.ndarray | Tensor | Sequence[Sequence[float]],
        scales: float | np.ndarray | Tensor | Sequence[Sequence[float]] = 1.0,
        weights: np.ndarray | Tensor | Sequence[float] | None = None,
        kT: float = 1.0,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2 or not self.means.numel() or not bool(torch.isfinite(self.means).all()):
            raise PotentialError(f"means must be finite, of shape (K, d), but have shape {tuple(self.means.shape)}")
        shape = tuple(self.means.shape)
        given = torch.as_tensor(scales, dtype=torch.float64)
        self.scales = (given.expand(shape) if given.ndim == 0 else given).clone()
        share = torch.as_tensor([1.0] * shape[0] if weights is None else weights, dtype=torch.float64)
        for name, values, expected in (("scales", self.scales, shape), ("weights", share, shape[:1])):
            if tuple(values.shape) != expected:
                raise PotentialError(f"{name} must have shape {expected}, not {tuple(values.shape)}")
            if not bool((torch.isfinite(values) & (values > 0)).all()):
                raise PotentialError(f"{name} must be positive and finite")
        self.weights = share / share.sum()
        super().__init__(shape[1], 0.0, kT)
        self.name = f"mixture of {shape[0]} Gaussians in {shape[1]}D"
        self._log_norm = self.weights.log() - self.scales.log().sum(1) - 0.5 * shape[1] * math.log(2 * math.pi)

    @classmethod
    def forty_modes(cls, seed: int = 0, kT: float = 1.0) -> GaussianMixture:
        """Forty equal modes in two dimensions, the usual test of mode coverage.

        Means uniform in [-40, 40]^2 and standard deviations softplus(1) = 1.313, as Midgley et al. (2023) construct it
        (``loc_scaling`` 40, ``log_var_scaling`` 1). Drawn by torch's CPU generator in float32: at seed 0, the one that
        is used in the literature, these are the published means.
        """
        uniform = torch.rand((40, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        return cls((uniform - 0.5) * 2 * 40, math.log1p(math.e), kT=kT)

    def component(self, positions: Tensor) -> Tensor:
        """The component most likely to have given each of the positions (B, 1, d): (B,) int64."""
        return self._log_components(positions.squeeze(1)).argmax(1)

    def _log_components(self, x: Tensor) -> Tensor:
        """Weighted log-density (B, K) of each component."""
        z = (x.unsqueeze(1) - self.means.to(x)) / self.scales.to(x)
        return self._log_norm.to(x) - 0.5 * z.square().sum(2)

    def _reduced(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        log_components = self._log_components(x)
        reduced = -log_components.logsumexp(1)
        if not gradient:
            return reduced, None
        pull = (x.unsqueeze(1) - self.means.to(x)) / self.scales.to(x).square()
        return reduced, (log_components.softmax(1).unsqueeze(2) * pull).sum(1)

    def _draw(self, n_samples: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        k = torch.multinomial(self.weights.to(device), n_samples, replacement=True, generator=generator)
        z = torch.randn(n_samples, self.dimension, dtype=torch.float64, device=device, generator=generator)
        return self.means.to(device)[k] + self.scales.to(device)[k] * z


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise PotentialError(f"{name} must be positive, not {value}")
