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
    short, long, largest_pull = _steep_ends(radial, grid, limit)
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


def _steep_ends(radial: Radial, grid: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Grid index before the short wall (-1: none) and at the long wall (_STEPS: none), and the largest pull between.

    One pass along the grid: the slopes of all pairs at all distances would take gigabytes.
    """
    like = radial(grid[:1])[1]
    nowhere = torch.full_like(like, -1, dtype=torch.int64)
    last_push = push_ended = not_pulled = not_pushed = leading = nowhere
    largest = before_pull = before_push = torch.zeros_like(like)
    flat = torch.ones_like(like, dtype=torch.bool)
    columns = (column for part in grid.split(16) for column in radial(part)[1].split(1, dim=-1))
    for index, slope in enumerate(columns):
        push, pull = slope <= -limit, slope >= limit
        leading = torch.where(pull & (leading == index - 1), index, leading)
        largest = torch.where(push | (leading == index), 0.0, torch.maximum(largest, slope))
        push_ended = torch.where(push, push_ended, last_push)
        last_push = torch.where(push, index, last_push)
        not_pushed, before_push = torch.where(push, not_pushed, index), torch.where(push, before_push, largest)
        not_pulled, before_pull = torch.where(pull, not_pulled, index), torch.where(pull, before_pull, largest)
        flat = flat & (slope == 0)
    # Where a steep slope lasts to the end of the grid there is a long wall; if it never relents, a short one.
    last = _STEPS - 1
    pushed_away = (not_pushed < last) & (not_pushed >= 0)
    last_push = torch.where(pushed_away, push_ended, last_push)
    short = torch.where(last_push >= 0, last_push, leading)
    # What is flat everywhere, such as excluded pairs, need not be evaluated where its parts overflow.
    short = torch.where(flat, last, short)
    long = torch.where(pushed_away, not_pushed + 1, not_pulled + 1)
    long = torch.where((long > short) & (long > 0), long, _STEPS)
    largest = torch.where(pushed_away, before_push, torch.where(not_pulled < last, before_pull, largest))
    return short, long, torch.where(long > short + 1, largest, 0.0)
