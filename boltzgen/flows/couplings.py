"""Coupling layers and the two conditional flows made of them: on the torus, and on real vectors.

Every flow maps base variables to coordinates in ``forward`` and back in ``inverse``; both return the value
and the log-determinant of that direction from one call. Variables and contexts are (D, B), the batch last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from boltzgen.flows.gaussian import ConditionalGaussian
from boltzgen.flows.networks import Conditioner, angle_rows, bounded_log_scale
from boltzgen.flows.splines import circular_spline, circular_spline_inverse, n_spline_parameters

__all__ = ["StiffFlow", "TorsionFlow", "log_normal"]


def _halves(n: int, layer: int) -> tuple[Tensor, Tensor]:
    """Indices that a layer leaves alone, and those that it moves: each pair of layers moves every variable once."""
    if n == 1:
        return torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(layer // 2))
    first, second = shuffled[: n // 2].sort().values, shuffled[n // 2 :].sort().values
    return (first, second) if layer % 2 == 0 else (second, first)


class _Coupling(nn.Module):
    keep: Tensor
    move: Tensor
    order: Tensor

    def __init__(self, n: int, layer: int, n_keep_features: int, n_parameters: int, n_context: int, n_hidden: int):
        super().__init__()
        keep, move = _halves(n, layer)
        self.register_buffer("keep", keep, persistent=False)
        self.register_buffer("move", move, persistent=False)
        self.register_buffer("order", torch.cat([keep, move]).argsort(), persistent=False)
        self.n_parameters = n_parameters
        n_in = len(keep) * n_keep_features + n_context
        self.network: nn.Module
        if n_in:
            self.network = Conditioner(n_in, n_hidden, len(move) * n_parameters)
        else:
            self.network = _Constant(len(move) * n_parameters)

    def parameters_from(self, features: Tensor, context: Tensor) -> Tensor:
        """(n_move, n_parameters, B) of kept features and a context."""
        raw: Tensor = self.network(torch.cat([features, context]))
        return raw.unflatten(0, (len(self.move), self.n_parameters))

    def merge(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved]).index_select(0, self.order)


class _Constant(nn.Module):
    """Parameters that depend on nothing, where a layer has neither kept variables nor context."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(n_out))

    def forward(self, features: Tensor) -> Tensor:
        return self.value.unsqueeze(1).expand(-1, features.shape[1])


class CircularCoupling(_Coupling):
    """Circular splines on half of the torsions, conditioned on the other half and on a context."""

    def __init__(self, n: int, layer: int, n_context: int, n_hidden: int, n_bins: int, n_harmonics: int) -> None:
        super().__init__(n, layer, 2 * n_harmonics, n_spline_parameters(n_bins), n_context, n_hidden)
        self.n_harmonics = n_harmonics

    def forward(self, angles: Tensor, context: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        kept, moved = angles[self.keep], angles[self.move]
        parameters = self.parameters_from(angle_rows(kept, self.n_harmonics), context)
        spline = circular_spline_inverse if inverse else circular_spline
        moved, log_derivative = spline(moved, parameters)
        return self.merge(kept, moved), log_derivative.sum(0)


class AffineCoupling(_Coupling):
    """Scale and shift of half of the variables, conditioned on the other half and on a context."""

    def __init__(self, n: int, layer: int, n_context: int, n_hidden: int) -> None:
        super().__init__(n, layer, 1, 2, n_context, n_hidden)

    def forward(self, z: Tensor, context: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        kept, moved = z[self.keep], z[self.move]
        raw_scale, shift = self.parameters_from(kept, context).unbind(1)
        log_scale = bounded_log_scale(raw_scale)
        if inverse:
            return self.merge(kept, (moved - shift) * torch.exp(-log_scale)), -log_scale.sum(0)
        return self.merge(kept, moved * log_scale.exp() + shift), log_scale.sum(0)


class _Stack(nn.Module):
    """Layers applied in turn, or backwards and inverted."""

    layers: nn.ModuleList

    def forward(self, base: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(D, B) base variables and (C, B) context to (D, B) values and log |det|, shape (B,)."""
        log_det = base.new_zeros(base.shape[1])
        for layer in self.layers:
            base, change = layer(base, context)
            log_det = log_det + change
        return base, log_det

    def inverse(self, values: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        log_det = values.new_zeros(values.shape[1])
        for layer in reversed(self.layers):
            values, change = layer(values, context, inverse=True)
            log_det = log_det + change
        return values, log_det


class TorsionFlow(_Stack):
    """Flow on the torus; its base is uniform.

    Parameters
    ----------
    n : int
        Number of torsions; zero is allowed.
    n_context : int
        Width of the context.
    """

    def __init__(self, n: int, n_context: int, n_layers: int, n_hidden: int, n_bins: int, n_harmonics: int) -> None:
        super().__init__()
        self.n = n
        layers = range(n_layers if n else 0)
        self.layers = nn.ModuleList(CircularCoupling(n, k, n_context, n_hidden, n_bins, n_harmonics) for k in layers)

    def sample_base(self, n_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        uniform = torch.rand(self.n, n_samples, device=like.device, dtype=like.dtype, generator=generator)
        return (2 * uniform - 1) * math.pi

    def log_base(self, base: Tensor) -> Tensor:
        return base.new_full((base.shape[1],), -self.n * math.log(2 * math.pi))


class StiffFlow(_Stack):
    """Affine couplings, then a conditional normal distribution; the base is normal.

    Parameters
    ----------
    n : int
        Number of variables.
    pairs : (2, n_pairs) int tensor
        Entries of the conditional covariance factor; see `ConditionalGaussian`.
    """

    def __init__(self, n: int, pairs: Tensor, n_context: int, n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.n = n
        self.layers = nn.ModuleList(AffineCoupling(n, k, n_context, n_hidden) for k in range(n_layers if n > 1 else 0))
        if n and n_context:
            self.layers.append(ConditionalGaussian(n, pairs, n_context, n_hidden))

    def sample_base(
        self, n_samples: int, like: Tensor, generator: torch.Generator | None, heat: Tensor | None = None
    ) -> Tensor:
        """Normal variables (D, B), of variance one or of variance ``heat`` (B,)."""
        base = torch.randn(self.n, n_samples, device=like.device, dtype=like.dtype, generator=generator)
        return base if heat is None else base * heat.sqrt()

    def log_base(self, base: Tensor, heat: Tensor | None = None) -> Tensor:
        return log_normal(base, heat)


def log_normal(base: Tensor, heat: Tensor | None = None) -> Tensor:
    """Log-density (B,) of independent normal variables (D, B), of variance one or of variance ``heat`` (B,)."""
    squares = base.square().sum(0)
    if heat is None:
        return -0.5 * (squares + len(base) * math.log(2 * math.pi))
    return -0.5 * (squares / heat + len(base) * (2 * math.pi * heat).log())
