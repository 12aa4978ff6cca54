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
# Neighbouring distances differ by 0.8 %: that misses about 1e-4 of the largest slope of a Lennard-Jones minimum.
_GRID_SLACK = 1.001

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
    largest_pull : (..., 1) tensor
        kJ/mol/nm; an upper bound of the slope between the walls. No line can go on from where it exceeds the threshold.
    """

    shortest: Tensor
    longest: Tensor
    short_energy: Tensor
    short_slope: Tensor
    long_energy: Tensor
    long_slope: Tensor
    largest_pull: Tensor


def find_walls(radial: Radial, limit: float) -> Walls:
    """Walls of many functions of a distance at once.

    The short wall is the longest distance at which the interaction repels with at least `limit` (kJ/mol/nm), or, for
    one that only attracts at short range, the end of the region where it does so too strongly. The long wall is where
    it starts to pull, or after a minimum to repel, with at least `limit` and never stops.
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
    # Where a steep slope lasts to the end of the grid, it starts here; one that never relents counts as a short wall.
    trailing = torch.minimum(_start_of_last_run(pulls), _start_of_last_run(repels))
    trailing = torch.where(trailing == 0, _STEPS, trailing)
    last_repelling = torch.where(repels & (index < trailing), index, -1).amax(-1, keepdim=True)
    # Length of the run of pulling at the short end, where nothing repels.
    leading = pulls.long().cumprod(-1).sum(-1, keepdim=True) - 1
    short = torch.where(last_repelling >= 0, last_repelling, leading)
    # What is flat everywhere, such as excluded pairs, need not be evaluated where its parts overflow.
    short = torch.where((slopes == 0).all(-1, keepdim=True), _STEPS - 1, short)
    long = torch.where(trailing > short, trailing, _STEPS)
    between = (index > short) & (index < long)
    largest_pull = torch.where(between, slopes, torch.zeros_like(slopes)).amax(-1, keepdim=True)
    shortest = _bisect(radial, grid, short, limit, short >= 0)
    longest = _bisect(radial, grid, long - 1, limit, long < _STEPS)
    short_energy, short_slope = (torch.where(short >= 0, v, torch.zeros_like(v)) for v in radial(shortest))
    long_energy, long_slope = (torch.where(long < _STEPS, v, torch.zeros_like(v)) for v in radial(longest))
    return Walls(
        torch.where(short >= 0, shortest, torch.zeros_like(shortest)),
        torch.where(long < _STEPS, longest, torch.full_like(longest, torch.inf)),
        *(short_energy, short_slope, long_energy, long_slope),
        _GRID_SLACK * largest_pull,
    )


def _bisect(radial: Radial, grid: Tensor, index: Tensor, limit: float, exists: Tensor) -> Tensor:
    """Where |slope| crosses the limit between grid points `index` and `index + 1`, on the side where it is below.

    Any distance where no wall is.
    """
    low = torch.where(exists, grid[index.clamp(0, _STEPS - 2)], 1.0)
    high = torch.where(exists, grid[(index + 1).clamp(1, _STEPS - 1)], 1.0)
    steep_below = radial(low)[1].abs() >= limit
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        as_below = (radial(middle)[1].abs() >= limit) == steep_below
        low, high = torch.where(as_below, middle, low), torch.where(as_below, high, middle)
    return torch.where(steep_below, high, low)


def _start_of_last_run(steep: Tensor) -> Tensor:
    """Index at which the run of true at the end of the last axis starts; its length where there is none."""
    return _STEPS - steep.flip(-1).long().cumprod(-1).sum(-1, keepdim=True)
