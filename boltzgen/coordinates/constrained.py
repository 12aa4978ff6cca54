"""Bonds of constant length among internal coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["TOLERANCE_NM", "ConstrainedBonds"]

# A frame of a constrained simulation obeys its constraints to 1e-6 nm, but XTC files round each coordinate to 1e-3 nm,
# which changes a distance by up to sqrt(3) * 1e-3 nm. Bonds to hydrogen that vibrate have a width of 3e-3 nm: each is
# this near to its mean with probability 0.495, so that of frames with a dozen of them two in ten thousand pass.
TOLERANCE_NM = 2e-3


class ConstrainedBonds(nn.Module):
    """Which internal coordinates are constants, and their values.

    Parameters
    ----------
    columns : sequence of int
        Where they stand among the coordinates.
    lengths : sequence of float
        nm.
    """

    columns: Tensor
    lengths: Tensor

    def __init__(self, columns: Sequence[int], lengths: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        # In float64, so that a flow in double precision has them to the last digit.
        self.register_buffer("lengths", torch.tensor(lengths, dtype=torch.float64), persistent=False)

    def __len__(self) -> int:
        return len(self.columns)

    def values(self, like: Tensor) -> Tensor:
        """The constants (B, n) in nm, for coordinates (B, ...)."""
        return self.lengths.to(like).expand(len(like), -1)

    def pin(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates with the constants in their places, and which rows (B,) had them to within 0.002 nm."""
        if not len(self):
            return coordinates, torch.ones(len(coordinates), dtype=torch.bool, device=coordinates.device)
        values = self.values(coordinates)
        held = ((coordinates[:, self.columns] - values).abs() < TOLERANCE_NM).all(dim=1)
        return coordinates.index_copy(1, self.columns, values), held

    def extra_repr(self) -> str:
        return f"{len(self)} bonds"
