"""Circular rational-quadratic splines."""

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
    angle : (B, D) tensor, rad
    parameters : (B, D, 3K+1) tensor
        Unconstrained; zeros give the identity.

    Returns
    -------
    angle : (B, D) tensor in [-pi, pi)
    log_derivative : (B, D) tensor

    References
    ----------
    Durkan et al., Neural Spline Flows (2019), equations 4 and 5; on the circle: Rezende et al. (2020), section 2.
    """
    x0, width, y0, height, slope0, slope1 = _bin(wrap(angle), parameters, inverse=False)
    xi = ((wrap(angle) - x0) / width).clamp(0, 1)
    mean = height / width
    mixed = xi * (1 - xi)
    denominator = mean + (slope0 + slope1 - 2 * mean) * mixed
    y = y0 + height * (mean * xi.square() + slope0 * mixed) / denominator
    return wrap(y + _rotation(parameters)), _log_derivative(xi, mean, slope0, slope1, mixed, denominator)


def circular_spline_inverse(angle: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `circular_spline`; ``log_derivative`` is that of the inverse map (Durkan et al., equations 6 to 8)."""
    y = wrap(angle - _rotation(parameters))
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


def _rotation(parameters: Tensor) -> Tensor:
    return parameters[..., -1]


def _log_derivative(
    xi: Tensor, mean: Tensor, slope0: Tensor, slope1: Tensor, mixed: Tensor, denominator: Tensor
) -> Tensor:
    numerator = slope1 * xi.square() + 2 * mean * mixed + slope0 * (1 - xi).square()
    return 2 * mean.log() + numerator.log() - 2 * denominator.log()


def _bin(angle: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """Left corner, size and end slopes of the bin that each angle falls into."""
    n_bins = parameters.shape[-1] // 3
    raw_widths, raw_heights, raw_slopes = parameters[..., :-1].split(n_bins, dim=-1)
    widths, x_edges = _edges(raw_widths)
    heights, y_edges = _edges(raw_heights)
    # log(e - 1) makes a zero parameter a slope of one
    slopes = MIN_SLOPE + (1 - MIN_SLOPE) * functional.softplus(raw_slopes + math.log(math.e - 1))
    edges = y_edges if inverse else x_edges
    index = (angle.unsqueeze(-1) >= edges[..., 1:]).sum(-1, keepdim=True)
    following = torch.remainder(index + 1, n_bins)
    take = lambda values, at: values.gather(-1, at).squeeze(-1)
    return (
        take(x_edges, index),
        take(widths, index),
        take(y_edges, index),
        take(heights, index),
        take(slopes, index),
        take(slopes, following),
    )


def _edges(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Bin sizes that fill the circle, and the left edges of the bins."""
    n_bins = raw.shape[-1]
    sizes = 2 * math.pi * (MIN_SIZE + (1 - MIN_SIZE * n_bins) * functional.softmax(raw, dim=-1))
    return sizes, sizes.cumsum(-1) - sizes - math.pi
