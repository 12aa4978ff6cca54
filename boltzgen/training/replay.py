"""Configurations whose energy was paid for, to be used again.

L2+ and its relatives compare log p and log q at given configurations and need no gradient of the energy, so a
configuration may be used again at any later step and temperature: its energy is known, and log q is computed anew under
the present parameters. Such a batch is a mixture of samples of the present flow and of earlier ones. Its objective is
off-policy: zero for q = p as the other, but with another gradient on the way there. K, the level above which L2+ asks
for more probability, is taken from the fresh samples alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ReplayBuffer"]


class ReplayBuffer:
    """The configurations of the last steps, oldest replaced first.

    Parameters
    ----------
    capacity : int
        Configurations to keep.
    sharpness : float
        Configurations are drawn in proportion to ``w^sharpness``, with w their weights at the present temperature under
        the parameters that drew them: 0 for all alike, 1 as if drawn from the target. A sharper buffer shows the flow
        more of what it has least of.
    """

    def __init__(self, capacity: int = 65_536, sharpness: float = 0.5) -> None:
        if capacity < 1 or sharpness < 0:
            raise ValueError("a replay buffer needs a capacity of at least one and a sharpness of at least zero")
        self.capacity = capacity
        self.sharpness = sharpness
        self._positions = torch.empty(0)
        self._terms = torch.empty(0, 3)
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, positions: Tensor, energy: Tensor, offset: Tensor, log_q: Tensor) -> None:
        """Keep configurations (B, N, 3) with their energies (kJ/mol), offsets and log-densities, all (B,)."""
        terms = torch.stack([energy, offset, log_q], dim=1)
        if not len(self._positions):
            self._positions = positions.new_empty(self.capacity, *positions.shape[1:])
            self._terms = terms.new_empty(self.capacity, 3)
        positions, terms = positions[-self.capacity :], terms[-self.capacity :]
        rows = (self._next + torch.arange(len(positions), device=positions.device)) % self.capacity
        self._positions[rows] = positions
        self._terms[rows] = terms
        self._next = int((self._next + len(positions)) % self.capacity)
        self._filled = min(self._filled + len(positions), self.capacity)

    def draw(self, n: int, kT: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Configurations (n, N, 3), with replacement, and their reduced energies (n,) at a temperature."""
        energy, offset, log_q = self._terms[: self._filled].unbind(1)
        reduced = energy / kT + offset
        log_weights = self.sharpness * (-reduced - log_q).double()
        # Inversion of the cumulative weights: torch.multinomial takes 2^24 categories at most, and more time.
        cumulative = (log_weights - log_weights.max()).exp().cumsum(0)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=cumulative.device) * cumulative[-1]
        rows = torch.searchsorted(cumulative, uniform).clamp(max=self._filled - 1)
        return self._positions[rows], reduced[rows]

    def state_dict(self) -> dict[str, Any]:
        """The content, as tensors and numbers."""
        return {
            "positions": self._positions[: self._filled].clone(),
            "terms": self._terms[: self._filled].clone(),
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take over a `state_dict` of a buffer of the same capacity."""
        self._filled, self._next = 0, 0
        self._positions, self._terms = torch.empty(0), torch.empty(0, 3)
        if len(state["positions"]):
            self.add(state["positions"].to(device), *state["terms"].to(device).unbind(1))
        self._next = int(state["next"])
