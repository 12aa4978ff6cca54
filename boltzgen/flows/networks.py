"""Conditioner networks and the features they see."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MAX_LOG_SCALE", "angle_features", "multilayer_perceptron"]

MAX_LOG_SCALE = 2.0  # one affine layer scales by at most e^2; a stack of them by as much as is needed


def multilayer_perceptron(
    n_in: int, n_hidden: int, n_out: int, n_layers: int = 2, activation: type[nn.Module] = nn.SiLU
) -> nn.Sequential:
    """Fully connected network; its last layer starts at zero, so a coupling starts as the identity."""
    sizes = [n_in] + [n_hidden] * n_layers
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    last = nn.Linear(sizes[-1], n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def angle_features(angles: Tensor, n_harmonics: int) -> Tensor:
    """Sines and cosines of the first harmonics of (B, D) angles: (B, 2 D n_harmonics)."""
    multiples = torch.arange(1, n_harmonics + 1, device=angles.device, dtype=angles.dtype)
    phases = (angles.unsqueeze(-1) * multiples).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)
