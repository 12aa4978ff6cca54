"""The leanest circular rational-quadratic splines of our own, which those of zuko are timed against."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["circular_spline", "circular_spline_inverse", "n_spline_parameters", "wrap"]

MIN_SIZE = 1e-3  # smallest share of the circle that a bin may hold
MIN_SLOPE = 1e-3


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
    angle = wrap(angle)
    x0, width, y0, height, slope0, slope1 = _bin(angle, parameters, inverse=False)
    xi = ((angle - x0) / width).clamp(0, 1)
    mean = height / width
    mixed = xi * (1 - xi)
    denominator = mean + (slope0 + slope1 - 2 * mean) * mixed
    y = y0 + height * (mean * xi.square() + slope0 * mixed) / denominator
    return wrap(y + parameters[:, -1]), _log_derivative(xi, mean, slope0, slope1, mixed, denominator)


def circular_spline_inverse(angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `circular_spline`; ``log_derivative`` is that of the inverse map (Durkan et al., equations 6 to 8)."""
    y = wrap(angle - parameters[:, -1])
    x0, width, y0, height, slope0, slope1 = _bin(y, parameters, inverse=True)
    mean = height / width
    rise = (y - y0).clamp(min=0)
    excess = slope0 + slope1 - 2 * mean
    a = height * (mean - slope0) + rise * excess
    b = height * slope0 - rise * excess
    c = -mean * rise
    root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
    xi = (2 * c / (-b - root)).clamp(0, 1)
    mixed = xi * (1 - xi)
    log_derivative = _log_derivative(xi, mean, slope0, slope1, mixed, mean + excess * mixed)
    return wrap(x0 + xi * width), -log_derivative


def _log_derivative(
    xi: Tensor, mean: Tensor, slope0: Tensor, slope1: Tensor, mixed: Tensor, denominator: Tensor
) -> Tensor:
    numerator = slope1 * xi.square() + 2 * mean * mixed + slope0 * (1 - xi).square()
    return (numerator * (mean / denominator).square()).log()


def _bin(angle: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """Left corner, size and end slopes of the bin that each angle falls into, (D, B) each."""
    n_bins = parameters.shape[1] // 3
    # Widths and heights through the same operations at once.
    raw_sizes = parameters[:, : 2 * n_bins].unflatten(1, (2, n_bins))
    sizes = 2 * math.pi * (MIN_SIZE + (1 - MIN_SIZE * n_bins) * functional.softmax(raw_sizes, dim=2))
    edges = sizes.cumsum(2)
    index = (angle.unsqueeze(1) + math.pi >= edges[:, int(inverse), :-1]).sum(1, keepdim=True)
    both = index.unsqueeze(1).expand(-1, 2, -1, -1)
    (width, height), right = (values.gather(2, both).squeeze(2).unbind(1) for values in (sizes, edges))
    x1, y1 = right
    ends = torch.cat([index, torch.remainder(index + 1, n_bins)], dim=1)
    raw_slopes = parameters[:, 2 * n_bins : 3 * n_bins].gather(1, ends)
    # log(e - 1) makes a zero parameter a slope of one
    slopes = MIN_SLOPE + (1 - MIN_SLOPE) * functional.softplus(raw_slopes + math.log(math.e - 1))
    slope0, slope1 = slopes.unbind(1)
    return x1 - width - math.pi, width, y1 - height - math.pi, height, slope0, slope1
