"""Circular rational-quadratic splines: those of zuko, with one slope on both sides of the seam.

A whole training step with them takes 1.1 to 1.3 times as long as with the leanest code of our own, which
``python benchmarks/flow.py`` keeps for comparison (benchmarks/own_splines.py, benchmarks/results/flow.md). The bound on
what is tolerable was set at 1.3 beforehand. They are no worse otherwise: on alanine dipeptide with ``--budget quick``,
seeds 0 and 1, the ESS was 83.3 % and 84.3 %, and 78.5 % and 82.1 % with our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

__all__ = ["circular_spline", "circular_spline_inverse", "n_spline_parameters", "wrap"]

MIN_SLOPE = 1e-3  # and the smallest ratio of two bins


def n_spline_parameters(n_bins: int) -> int:
    """Widths, heights and slopes of each bin, and one rotation."""
    return 3 * n_bins + 1


def wrap(angle: Tensor) -> Tensor:
    """Angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def circular_spline(angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Monotonic map of the circle onto itself, a rational-quadratic spline followed by a rotation.

    Parameters
    ----------
    angle : (D, B) tensor, rad
    parameters : (D, 3K+1, B) tensor
        Unconstrained; zeros give the identity.

    Returns
    -------
    angle : (D, B) tensor in [-pi, pi)
    log_derivative : (D, B) tensor

    References
    ----------
    Durkan et al., Neural Spline Flows (2019), equations 4 and 5; on the circle: Rezende et al. (2020), section 2.
    """
    moved, log_derivative = _spline(parameters).call_and_ladj(wrap(angle))
    return wrap(moved + parameters[:, -1]), log_derivative


def circular_spline_inverse(angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `circular_spline`; ``log_derivative`` is that of the inverse map (Durkan et al., equations 6 to 8)."""
    moved, log_derivative = _spline(parameters).inv.call_and_ladj(wrap(angle - parameters[:, -1]))
    if angle.dtype == torch.float32 and not torch.compiler.is_compiling() and bool(torch.isnan(moved).any()):
        # Rounding makes a discriminant negative in one of 1e6 very uneven bins (parameters of 4 and more). Compiled
        # code cannot look; who compiles, looks at the result: see `boltzgen.flows.compilation`.
        moved, log_derivative = circular_spline_inverse(angle.double(), parameters.double())
        return moved.to(angle), log_derivative.to(angle)
    return wrap(moved), log_derivative


class _PeriodicSpline(MonotonicRQSTransform):
    """The spline of zuko with free slopes (..., K) at all knots; the first is at either end, where zuko's is one."""

    derivatives: Tensor

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> None:
        super().__init__(widths, heights, slopes[..., 1:], bound=math.pi, slope=MIN_SLOPE)
        first = slopes[..., :1]
        seam = torch.exp(first / (1 + abs(first / math.log(MIN_SLOPE))))  # bounded as zuko bounds the others
        self.derivatives = torch.cat([seam, self.derivatives[..., 1:-1], seam], dim=-1)

    @staticmethod
    def searchsorted(seq: Tensor, value: Tensor) -> Tensor:
        """The bin of a value, counted from one: on the circle the seam itself lies in a bin too."""
        return MonotonicRQSTransform.searchsorted(seq, value).clamp(min=1, max=seq.shape[-1] - 1)


def _spline(parameters: Tensor) -> _PeriodicSpline:
    n_bins = parameters.shape[1] // 3
    return _PeriodicSpline(*parameters[:, :-1].movedim(1, -1).split(n_bins, dim=-1))
