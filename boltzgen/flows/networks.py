"""Conditioner networks and the features they see.

Inside the flows of internal coordinates features stand first and the batch last, (D, B): rows are then contiguous, so
picking, joining and summing features, and the bins of a spline, are long vector operations instead of many short ones.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = [
    "MAX_LOG_SCALE",
    "Conditioner",
    "GroupedConditioner",
    "angle_features",
    "angle_rows",
    "bounded_log_scale",
    "multilayer_perceptron",
]

MAX_LOG_SCALE = 2.0  # one affine layer scales by at most e^2; a stack of them by as much as is needed


def multilayer_perceptron(
    n_in: int,
    n_hidden: int,
    n_out: int,
    n_layers: int = 2,
    activation: type[nn.Module] = nn.SiLU,
    zero: bool = True,
) -> nn.Sequential:
    """Fully connected network; its last layer starts at zero unless said otherwise: a coupling starts as identity."""
    sizes = [n_in] + [n_hidden] * n_layers
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    last = nn.Linear(sizes[-1], n_out)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class Conditioner(nn.Sequential):
    """`multilayer_perceptron` on (n_in, B) features."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, n_layers: int = 2, zero: bool = True) -> None:
        super().__init__(*multilayer_perceptron(n_in, n_hidden, n_out, n_layers, zero=zero))

    def forward(self, features: Tensor) -> Tensor:
        """(n_in, B) to (n_out, B)."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                features = torch.addmm(layer.bias.unsqueeze(1), layer.weight, features)
            else:
                features = layer(features)
        return features


class GroupedConditioner(nn.Module):
    """One network for each of several groups, of equal width, evaluated together.

    Parameters
    ----------
    n_inputs : sequence of int
        Inputs of each group that count; the others up to the largest number are padding, which holds zeros.
    sizes : sequence of int
        Widths of the hidden layers, and number of outputs.
    zero : bool
        Whether the last layer starts at zero.
    """

    def __init__(self, n_inputs: list[int], sizes: list[int], zero: bool = True) -> None:
        super().__init__()
        widths = [max(n_inputs, default=0), *sizes]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for depth, (a, b) in enumerate(pairwise(widths)):
            weight, bias = torch.zeros(len(n_inputs), b, a), torch.zeros(len(n_inputs), b, 1)
            if depth < len(sizes) - 1 or not zero:
                for k, n in enumerate(n_inputs):
                    bound = 1 / math.sqrt(max(n if depth == 0 else a, 1))  # that of nn.Linear
                    weight[k].uniform_(-bound, bound)
                    bias[k].uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, features: Tensor, groups: Tensor | None = None) -> Tensor:
        """(G, n_in, B) features of all groups, or of some, to (G, n_out, B)."""
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if groups is not None:
                weight, bias = weight[groups], bias[groups]
            features = torch.baddbmm(bias, weight, features)
            if depth < last:
                features = nn.functional.silu(features)
        return features


def angle_features(angles: Tensor, n_harmonics: int) -> Tensor:
    """Sines, then cosines, of the first harmonics of (B, D) angles: (B, 2 D n_harmonics), harmonics of one angle
    next to each other."""
    return angle_rows(angles.T, n_harmonics).T


def angle_rows(angles: Tensor, n_harmonics: int) -> Tensor:
    """`angle_features` with the batch last: (D, B) angles to (2 D n_harmonics, B)."""
    multiples = torch.arange(1, n_harmonics + 1, device=angles.device, dtype=angles.dtype)
    phases = (angles.unsqueeze(1) * multiples.unsqueeze(1)).flatten(0, 1)
    return torch.cat([phases.sin(), phases.cos()])


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Logarithm of a scale, within MAX_LOG_SCALE of zero."""
    return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)
