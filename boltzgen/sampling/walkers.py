"""Many walkers in one batch: where they are, with their energies, and how their state is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["LayoutForces", "Walkers"]

# Coordinates (3, N, B) in nm to energy (B,) in kJ/mol and gradient (3, N, B) in kJ/mol/nm.
LayoutForces = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Walkers:
    """Configurations that move under forces; subclasses say how.

    Parameters
    ----------
    forces : LayoutForces
        Energy and gradient of (3, N, B) coordinates.
    positions : (3, N, B) tensor
        nm; copied.
    generator : torch.Generator
        Source of all randomness.

    Attributes
    ----------
    positions : (3, N, B) tensor
        nm.
    energies : (B,) tensor
        kJ/mol.
    """

    def __init__(self, forces: LayoutForces, positions: Tensor, generator: torch.Generator) -> None:
        self.positions = positions.clone(memory_format=torch.contiguous_format)
        self._forces, self._generator = forces, generator
        self.energies, self._gradient = self._evaluate(self.positions)

    @property
    def n_walkers(self) -> int:
        """Number of walkers B."""
        return self.positions.shape[2]

    def run(self, n_steps: int) -> None:
        """Advance all walkers."""
        raise NotImplementedError

    def permute(self, order: Tensor, velocity_scale: Tensor) -> None:
        """Give walker b the state of walker order[b], velocities multiplied by velocity_scale (B,) if it has any."""
        self.positions = self.positions[:, :, order].contiguous()
        self._gradient = self._gradient[:, :, order].contiguous()
        self.energies = self.energies[order]

    def frames(self) -> Tensor:
        """Positions as (B, N, 3) in nm, a copy."""
        return self.positions.permute(2, 1, 0).contiguous()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "positions": self.positions,
            "energies": self.energies,
            "gradient": self._gradient,
            "random": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where equal walkers were."""
        self.positions.copy_(state["positions"])
        self.energies.copy_(state["energies"])
        self._gradient.copy_(state["gradient"])
        self._generator.set_state(state["random"])

    def _evaluate(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient = self._forces(positions)
        assert gradient is not None
        return energies, gradient
