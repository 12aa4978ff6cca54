"""Where a function of one distance gets steeper than a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Walls", "find_walls"]

# Distances (nm) between which the threshold is looked for, and in how many steps before bisection.
_SHORTEST, _LONGEST, _STEPS = 1e-4, 10.0, 1500
_BISECTIONS = 50

# From distances that broadcast against the interactions, (..., n), to energies and slopes.
Radial = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Walls:
    """Distances between which an interaction is less steep than the threshold, and its lines beyond.

    Attributes
    ----------
    shortest, longest : (..., 1) tensors
        nm; 0 and infinity where there is no wall.
    short_energy, short_slope, long_energy, long_slope : (..., 1) tensors
        kJ/mol and kJ/mol/nm at the walls; zero where there is none.
    too_attractive : (..., 1) bool tensor
        The slope exceeds the threshold somewhere between the walls: no line can go on from there.
    """

    shortest: Tensor
    longest: Tensor
    short_energy: Tensor
    short_slope: Tensor
    long_energy: Tensor
    long_slope: Tensor
    too_attractive: Tensor


def find_walls(radial: Radial, limit: float) -> Walls:
    """Walls of many functions of a distance at once.

    The short wall is the longest distance at which the interaction repels with at least `limit` (kJ/mol/nm), or, for
    one that only attracts at short range, the end of the region where it does so too strongly. The long wall is where
    it starts to pull with at least `limit` and never stops.
    """
    grid = torch.logspace(
        torch.log10(torch.tensor(_SHORTEST)).item(),
        torch.log10(torch.tensor(_LONGEST)).item(),
        _STEPS,
        dtype=torch.float64,
    )
    slopes = torch.cat([radial(part)[1] for part in grid.split(16)], dim=-1)
    repels, pulls = slopes <= -limit, slopes >= limit
    index = torch.arange(_STEPS)
    last_repelling = torch.where(repels, index, -1).amax(-1, keepdim=True)
    # Length of the run of pulling at the short end, where nothing repels; and the start of the one at the long end.
    leading = pulls.long().cumprod(-1).sum(-1, keepdim=True) - 1
    short = torch.where(last_repelling >= 0, last_repelling, leading)
    trailing = _STEPS - pulls.flip(-1).long().cumprod(-1).sum(-1, keepdim=True)
    long = torch.where(trailing > short, trailing, _STEPS)
    between = (index > short) & (index < long)
    too_attractive = (pulls & between).any(-1, keepdim=True)
    shortest = _bisect(radial, grid, short, limit, short >= 0)
    longest = _bisect(radial, grid, long - 1, limit, long < _STEPS)
    short_energy, short_slope = (torch.where(short >= 0, v, torch.zeros_like(v)) for v in radial(shortest))
    long_energy, long_slope = (torch.where(long < _STEPS, v, torch.zeros_like(v)) for v in radial(longest))
    return Walls(
        torch.where(short >= 0, shortest, torch.zeros_like(shortest)),
        torch.where(long < _STEPS, longest, torch.full_like(longest, torch.inf)),
        *(short_energy, short_slope, long_energy, long_slope),
        too_attractive,
    )


def _bisect(radial: Radial, grid: Tensor, index: Tensor, limit: float, exists: Tensor) -> Tensor:
    """Where |slope| crosses the limit between grid points `index` and `index + 1`; any distance where no wall is."""
    low = torch.where(exists, grid[index.clamp(0, _STEPS - 2)], 1.0)
    high = torch.where(exists, grid[(index + 1).clamp(1, _STEPS - 1)], 1.0)
    steep_below = radial(low)[1].abs() >= limit
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        as_below = (radial(middle)[1].abs() >= limit) == steep_below
        low, high = torch.where(as_below, middle, low), torch.where(as_below, high, middle)
    return 0.5 * (low + high)
