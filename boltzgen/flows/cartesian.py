"""A flow on Cartesian coordinates: affine couplings on all of them, as in the paper."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from boltzgen.flows.base import Base
from boltzgen.flows.networks import multilayer_perceptron

__all__ = ["CartesianFlow"]

BLOCKS_PER_ROUND = 4
# One block scales by at most this power of e; 48 blocks move each coordinate. After 200 steps on data of the dipeptide
# 24 x 4 blocks with 2 gave NaN; with 0.5 one of 2,000 samples lost 200 nm on the way there and back in float32, with
# 0.25 none more than 5e-6 nm. Held-out likelihoods of 0.5 and 0.25 were equal.
MAX_LOG_SCALE = 0.25
PRIOR_FRAMES = 10  # for each coordinate: what the starting covariance counts against data


class CartesianFlow(nn.Module):
    """Density on positions (B, N, d): a standard normal base, affine couplings, then one fixed linear map.

    The last map, ``centre + factor @ z``, carries the units. The couplings start as the identity, so an untrained flow
    is the normal distribution with that centre and the covariance ``factor @ factor.T``. Before the first training on
    data `start_at` moves both to those of the data.

    "24 x 4 coupling blocks (as described in [Real NVP])" is read as 24 rounds of four couplings: two random partitions
    of the coordinates into halves, either half moved in turn. "Two layers with an internal feature size of 256,
    separated by a CELU" is read as two linear layers with one hidden layer of 256 features between them.

    Parameters
    ----------
    shape : (N, d)
        Of one configuration, with at least two coordinates; ``(1, 12)`` for the double well of the paper.
    centre : (N, d) tensor, optional
        nm; zero if absent.
    factor : float or (N d, N d) lower triangular tensor
        nm; a float means that multiple of the identity.
    n_rounds : int
        24 for molecules and 8 for the double well in the paper.
    n_hidden : int
        256 for molecules and 64 for the double well in the paper.
    n_layers : int
        Linear layers of each sub-network.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), section 5; Dinh et al., Density estimation using Real NVP (2017).
    """

    centre: Tensor
    factor: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        centre: Tensor | None = None,
        factor: float | Tensor = 1.0,
        n_rounds: int = 24,
        n_hidden: int = 256,
        n_layers: int = 2,
    ) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]))
        self.n_rounds, self.n_hidden, self.n_layers = n_rounds, n_hidden, n_layers
        n = self.n_coordinates
        if n < 2 or n_rounds < 0 or n_hidden < 1 or n_layers < 1:
            raise ValueError(
                f"a Cartesian flow needs two coordinates, layers and features, not shape={self.shape}, "
                f"n_rounds={n_rounds}, n_hidden={n_hidden}, n_layers={n_layers}"
            )
        dtype = torch.get_default_dtype()
        middle = torch.zeros(self.shape) if centre is None else centre
        matrix = factor * torch.eye(n) if isinstance(factor, (int, float)) else factor
        if tuple(middle.shape) != self.shape or tuple(matrix.shape) != (n, n):
            raise ValueError(
                f"centre {tuple(middle.shape)} and factor {tuple(matrix.shape)} do not fit the shape {self.shape}"
            )
        self.register_buffer("centre", middle.to(dtype))
        self.register_buffer("factor", matrix.to(dtype))
        self.blocks = nn.ModuleList(_AffineBlock(n, k, n_hidden, n_layers) for k in range(BLOCKS_PER_ROUND * n_rounds))

    @property
    def n_coordinates(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def is_untrained(self) -> bool:
        """Whether every block still is the identity."""
        last = [block.get_submodule(f"network.{2 * self.n_layers - 2}") for block in self.blocks]
        return not any(bool(parameter.any()) for layer in last for parameter in layer.parameters())

    def start_at(self, positions: Tensor, weights: Tensor) -> None:
        """Centre and covariance of an untrained flow from data; nothing happens to a trained one.

        What the flow has counts as much as ten configurations for each coordinate.

        Parameters
        ----------
        positions : (n, N, d) tensor
        weights : (n,) tensor
        """
        if not self.is_untrained:
            return
        share = (weights / weights.sum()).to(device=positions.device, dtype=torch.float64)
        n_effective, n_prior = float(1 / share.square().sum()), PRIOR_FRAMES * self.n_coordinates
        x, factor = positions.flatten(1).double(), self.factor.double()
        centre = share @ x
        observed = ((x - centre) * share.unsqueeze(1)).T @ (x - centre)
        covariance = (n_effective * observed + n_prior * factor @ factor.T) / (n_effective + n_prior)
        self.centre.copy_(centre.unflatten(0, self.shape))
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def sample_and_log_prob(self, n_samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, N, d), differentiable in the parameters, and their log-density (B,)."""
        return self.place(self.draw(n_samples, generator))

    def draw(self, n_samples: int, generator: torch.Generator | None = None) -> Base:
        """The random numbers that `place` makes configurations of: normal variables alone."""
        like = self.factor
        normal = torch.randn(n_samples, self.n_coordinates, device=like.device, dtype=like.dtype, generator=generator)
        nothing = like.new_empty(0, n_samples)
        return Base(nothing, normal.T, nothing, nothing, nothing.long())

    def place(self, base: Base) -> tuple[Tensor, Tensor]:
        """Positions (B, N, d), and their log-density (B,), of what `draw` gives: no random numbers in here."""
        normal = base.stiff.T
        positions, log_det = self(normal)
        return positions, self._log_base(normal) - log_det

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log-density (B,) of positions (B, N, d)."""
        base, log_det = self.inverse(positions)
        return self._log_base(base) + log_det

    def forward(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Base variables (B, N d) to positions (B, N, d) and log |det| (B,)."""
        log_det = base.new_zeros(len(base))
        z = base
        for block in self.blocks:
            z, change = block(z)
            log_det = log_det + change
        return self.centre + (z @ self.factor.T).unflatten(1, self.shape), log_det + self._log_volume()

    def inverse(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, N, d) to base variables (B, N d) and log |det| (B,) of this direction."""
        deviation = (positions - self.centre).flatten(1)
        z = torch.linalg.solve_triangular(self.factor, deviation.T, upper=False).T
        log_det = -self._log_volume().expand(len(z))
        for block in reversed(self.blocks):
            z, change = block(z, inverse=True)
            log_det = log_det + change
        return z, log_det

    def _log_volume(self) -> Tensor:
        return self.factor.diagonal().abs().log().sum()

    @staticmethod
    def _log_base(base: Tensor) -> Tensor:
        return -0.5 * (base.square().sum(1) + base.shape[1] * math.log(2 * math.pi))

    def extra_repr(self) -> str:
        return f"shape={self.shape}, blocks={self.n_rounds} x {BLOCKS_PER_ROUND}, hidden={self.n_hidden}"


class _AffineBlock(nn.Module):
    """Scale and shift of half of the variables, given the other half."""

    order: Tensor
    back: Tensor

    def __init__(self, n: int, index: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        # Two blocks share a partition. It is a function of the index alone: equal sizes, equal partitions.
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(index // 2))
        order = shuffled if index % 2 == 0 else shuffled.flip(0)
        self.n_keep = n // 2 if index % 2 == 0 else n - n // 2
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.network = multilayer_perceptron(
            self.n_keep, n_hidden, 2 * (n - self.n_keep), n_layers - 1, activation=nn.CELU
        )

    def forward(self, z: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Variables (B, n) moved forth or back, and log |det| (B,)."""
        kept, moved = z[:, self.order].tensor_split([self.n_keep], dim=1)
        raw_scale, shift = self.network(kept).chunk(2, dim=1)
        log_scale = MAX_LOG_SCALE * torch.tanh(raw_scale / MAX_LOG_SCALE)
        if inverse:
            moved, log_scale = (moved - shift) * torch.exp(-log_scale), -log_scale
        else:
            moved = moved * log_scale.exp() + shift
        return torch.cat([kept, moved], dim=1)[:, self.back], log_scale.sum(1)
