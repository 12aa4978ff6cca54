"""Regions of configuration space: comparisons of collective variables joined by and, or, not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from boltzgen.collective_variables import CollectiveVariable

__all__ = ["Arc", "Not", "Pair", "Range", "Region", "can_hold", "comparisons"]

Values = Callable[["CollectiveVariable"], Tensor]


@dataclass(frozen=True)
class Range:
    """Values between two bounds, on a line."""

    variable: CollectiveVariable
    low: float
    high: float
    open_low: bool
    open_high: bool

    def __call__(self, value_of: Values) -> Tensor:
        values = value_of(self.variable)
        above = values > self.low if self.open_low else values >= self.low
        below = values < self.high if self.open_high else values <= self.high
        return above & below


@dataclass(frozen=True)
class Arc:
    """Values on the arc that goes from `low` upward by `width` degrees."""

    variable: CollectiveVariable
    low: float
    width: float
    open_low: bool
    open_high: bool

    def __call__(self, value_of: Values) -> Tensor:
        half = self.width / 2
        # Measured from the middle of the arc, where rounding cannot throw a value near its ends across the wrap.
        offset = torch.remainder(value_of(self.variable) - (self.low + half) + 180, 360) - 180
        above = offset > -half if self.open_low else offset >= -half
        below = offset < half if self.open_high else offset <= half
        return above & below


@dataclass(frozen=True)
class Not:
    operand: Region

    def __call__(self, value_of: Values) -> Tensor:
        return ~self.operand(value_of)


@dataclass(frozen=True)
class Pair:
    operator: str
    left: Region
    right: Region

    def __call__(self, value_of: Values) -> Tensor:
        left, right = self.left(value_of), self.right(value_of)
        return left & right if self.operator == "and" else left | right


Region = Range | Arc | Not | Pair


def comparisons(region: Region) -> list[Range | Arc]:
    """All comparisons of a region, in the order in which they are written."""
    if isinstance(region, Not):
        return comparisons(region.operand)
    if isinstance(region, Pair):
        return comparisons(region.left) + comparisons(region.right)
    return [region]


def can_hold(region: Region) -> bool:
    """Whether any values of the variables, each taken alone, satisfy the expression.

    The bounds cut the range of each variable into pieces; one value of each piece, and the bounds themselves, are
    tried in all combinations, which decides the question. Expressions of very many bounds are let through.
    """
    edges: dict[tuple[str, tuple[int, ...]], set[float]] = {}
    limits = {}
    for part in comparisons(region):
        variable = part.variable
        limits[variable.key] = low, high = variable.range
        found = edges.setdefault(variable.key, set())
        bounds = (part.low, part.low + part.width) if isinstance(part, Arc) else (part.low, part.high)
        for bound in bounds:
            if variable.is_periodic:
                found.add(180 - (180 - max(min(bound, 720.0), -720.0)) % 360)  # in (-180, 180]
            elif math.isfinite(bound):
                found.add(min(max(bound, low), high))
    grids = []
    for key, inner in edges.items():
        low, high = limits[key]
        outer = {low, high if math.isfinite(high) else max(inner, default=0.0) + 1.0}
        ends = sorted(inner | outer)
        middles = {(a + b) / 2 for a, b in pairwise(ends)}
        grids.append(torch.tensor(sorted((inner | outer | middles) - {-180.0}), dtype=torch.float64))
    if math.prod(len(grid) for grid in grids) > 100_000:
        return True
    mesh = dict(zip(edges, torch.meshgrid(*grids, indexing="ij"), strict=True))
    return bool(region(lambda variable: mesh[variable.key]).any())
