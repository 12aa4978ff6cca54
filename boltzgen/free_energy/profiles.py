"""Free-energy profiles along one or two collective variables, with a 95 % band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.diagnostics import Verdict
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import EnergyEstimate, judged
from boltzgen.free_energy.observables import Observable, Observed, observe
from boltzgen.free_energy.shares import shares
from boltzgen.uncertainty import Interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["Profile", "profile"]

FEWEST_IN_CELL = 5  # samples, for the value of a cell to be used on its own


@dataclass(frozen=True, eq=False)
class Profile:
    """Free energy ``-ln p`` in kT over a grid, above its lowest cell; p is the probability density.

    Attributes
    ----------
    names, units : tuples of str
        Of the one or two variables.
    edges : tuple of (m+1,) arrays
        Of the cells along each variable.
    is_periodic : tuple of bool
    free_energy, low, high : (m,) or (m1, m2) arrays
        kT; NaN where no sample fell, and a band that is infinite where a single one did. The zero of the scale is the
        lowest cell of this ensemble and carries no error; the band is that of ``-ln p``.
    probability : like free_energy
        Of each cell; sums to one less what lies beyond the edges.
    n_samples : int array like free_energy
    offset : float
        Value of ``-ln p`` at the zero of the scale, p in units of one over the product of the variables' units.
    kT : float
        kJ/mol.
    method : str
    verdict : Verdict
        On the samples.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    edges: tuple[np.ndarray, ...]
    is_periodic: tuple[bool, ...]
    free_energy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    probability: np.ndarray
    n_samples: np.ndarray
    offset: float
    kT: float
    method: str
    verdict: Verdict

    @property
    def centres(self) -> tuple[np.ndarray, ...]:
        """Middles of the cells along each variable."""
        return tuple(0.5 * (edges[:-1] + edges[1:]) for edges in self.edges)

    @property
    def half_width(self) -> np.ndarray:
        """Half of the 95 % band, in kT."""
        return 0.5 * (self.high - self.low)

    def at(self, *point: float) -> EnergyEstimate:
        """The free energy of the cell that holds a point, above the lowest cell.

        Raises
        ------
        EstimateError
            If the point lies beyond the edges.
        """
        if len(point) != len(self.edges):
            raise EstimateError(f"a point of this profile has {len(self.edges)} value(s): {', '.join(self.names)}")
        cell = []
        for value, edges in zip(point, self.edges, strict=True):
            index = int(np.searchsorted(edges, value, side="right")) - 1
            index -= int(value == edges[-1])
            if not 0 <= index < len(edges) - 1:
                raise EstimateError(f"{value:g} lies beyond the profile, which goes from {edges[0]:g} to {edges[-1]:g}")
            cell.append(index)
        place = tuple(cell)
        where = ", ".join(f"{name} = {value:g}" for name, value in zip(self.names, point, strict=True))
        value, low, high = (float(values[place]) for values in (self.free_energy, self.low, self.high))
        supported = int(self.n_samples[place]) >= FEWEST_IN_CELL
        return EnergyEstimate(
            name=f"F({where})",
            value=value,
            low=low,
            high=high,
            kT=self.kT,
            method=self.method,
            n_samples=int(self.n_samples.sum()),
            diagnostics={"samples in the cell": float(self.n_samples[place])},
            verdict=judged(
                self.verdict, Interval(value, low, high, float(self.n_samples[place]), self.method, supported)
            ),
        )

    def plot(self, reference: Profile | None = None, ax: Any = None, **options: Any) -> Any:
        """Draw it; see `boltzgen.plotting.profile`."""
        from boltzgen.plotting.profiles import profile

        return profile(self, reference, ax, **options)

    def __str__(self) -> str:
        grid = " x ".join(str(n) for n in self.free_energy.shape)
        empty = int((self.n_samples == 0).sum())
        known = self.half_width[np.isfinite(self.half_width)]
        width = f"; median half-width {np.median(known):.3f} kT" if len(known) else ""
        head = f"profile of {', '.join(self.names)}: {grid} cells, {empty} of them empty{width}"
        return f"{head}  (95 %; {self.method})\nverdict: {self.verdict}"

    __repr__ = __str__


def profile(
    ensemble: Ensemble,
    variable: Observable,
    second: Observable | None = None,
    *,
    bins: int | Sequence[int] | None = None,
    range: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
    **options: Any,
) -> Profile:
    """Free-energy profile along a variable, or two.

    Parameters
    ----------
    ensemble : Ensemble
    variable, second : str or callable
        As in `observe`: "phi", "distance(4, 8)", "rg", or a function.
    bins : int or two ints, optional
        Cells along each variable; 72 for one, 36 by 36 for two.
    range : (low, high), or two of them, optional
        Samples beyond it count in the whole but in no cell. All samples with weight if absent, the whole circle for
        torsions.
    **options
        Of `observe`, for functions.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    EstimateError
        If a variable is a region or not finite, a range is empty, or a particle system has too few repeats.
    """
    ensemble = ensemble.unbiased()
    weights = ensemble.weights
    seen = [observe(ensemble, each, **options) for each in (variable, second) if each is not None]
    counts = _counts(bins, len(seen))
    ranges: Sequence[Any] = [None] * len(seen) if range is None else [range] if np.ndim(range) == 1 else range
    if len(ranges) != len(seen):
        raise EstimateError(f"{len(seen)} variable(s) need as many ranges, not {len(ranges)}")
    edges = [_edges(one, weights, n, limits) for one, n, limits in zip(seen, counts, ranges, strict=True)]
    cells: np.ndarray = np.zeros(len(ensemble), dtype=np.int64)
    for one, grid in zip(seen, edges, strict=True):
        along = np.clip(np.searchsorted(grid, one.values, side="right") - 1, -1, len(grid) - 1)
        along = np.where(one.values == grid[-1], len(grid) - 2, along)
        outside = (along < 0) | (along >= len(grid) - 1) | ~np.isfinite(one.values)
        cells = np.where(outside | (cells < 0), -1, cells * (len(grid) - 1) + along)
    found = shares(cells, math.prod(counts), weights, ensemble.sampling)
    if not found.probability.any():
        raise EstimateError("no sample with weight lies within the range")
    volume = _volumes(edges)
    with np.errstate(divide="ignore"):
        value = -np.log(found.probability.reshape(counts) / volume)
    offset = float(value.min())
    value = np.where(np.isfinite(value), value - offset, np.nan)
    half = (found.half_width * (1 - found.probability)).reshape(counts)  # d ln P = (1 - P) d ln[P/(1-P)]
    return Profile(
        names=tuple(one.name for one in seen),
        units=tuple(one.unit for one in seen),
        edges=tuple(edges),
        is_periodic=tuple(one.is_periodic for one in seen),
        free_energy=value,
        low=value - half,
        high=value + half,
        probability=found.probability.reshape(counts),
        n_samples=found.n_samples.reshape(counts),
        offset=offset,
        kT=ensemble.kT,
        method=found.method,
        verdict=ensemble.verdict(),
    )


def _counts(bins: int | Sequence[int] | None, n_variables: int) -> tuple[int, ...]:
    if bins is None:
        return (72,) if n_variables == 1 else (36, 36)
    counts = tuple(int(n) for n in np.broadcast_to(np.asarray(bins), n_variables))
    if min(counts) < 1 or math.prod(counts) < 2:
        raise EstimateError(f"bins = {bins}: a profile compares cells, so it needs two at least")
    return counts


def _edges(seen: Observed, weights: np.ndarray, n: int, limits: tuple[float, float] | None) -> np.ndarray:
    if seen.is_indicator:
        raise EstimateError(f"{seen.name} is a region; a profile needs a variable such as 'phi'")
    if limits is None:
        weighted = seen.values[weights > 0]
        if not np.isfinite(weighted).all():
            raise EstimateError(f"{seen.name} is not finite in some samples that have weight; give a range")
        limits = (-180.0, 180.0) if seen.is_periodic else (float(weighted.min()), float(weighted.max()))
    if not limits[1] > limits[0]:
        raise EstimateError(f"the range of {seen.name}, {limits[0]:g} to {limits[1]:g}, is empty")
    return np.linspace(*limits, n + 1)


def _volumes(edges: Sequence[np.ndarray]) -> np.ndarray:
    widths = [np.diff(grid) for grid in edges]
    return widths[0] if len(widths) == 1 else np.outer(widths[0], widths[1])
