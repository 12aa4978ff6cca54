"""Weighted shares of samples in cells (basins, clusters, bins of a profile) with intervals of their log-odds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import t as student_t

from boltzgen.uncertainty import LEVEL, Interval, Sampling, deviation

__all__ = ["Shares", "shares"]


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of cells and how well they are known.

    Attributes
    ----------
    probability : (m,) array
    half_width : (m,) array
        Of the 95 % interval of the log-odds ``ln[P/(1-P)]``; infinite where a cell holds one sample or none.
    n_samples : (m,) int array
        Samples of weight above zero in each cell.
    n_effective : (m,) array
        See `Deviation`.
    method : str
    sampling : Sampling
    """

    probability: np.ndarray
    half_width: np.ndarray
    n_samples: np.ndarray
    n_effective: np.ndarray
    method: str
    sampling: Sampling

    def about(self, cell: int, value: float, low: float, high: float) -> Interval:
        """The interval of any function of the share of a cell."""
        effective = float(self.n_effective[cell])
        return Interval(value, low, high, effective, self.method, self.sampling.is_enough(effective))

    @property
    def log_odds(self) -> np.ndarray:
        """(m,) array; infinite for empty cells."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.probability) - np.log1p(-self.probability))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound (m,) of the probabilities, between zero and one."""
        known = np.isfinite(self.half_width)
        with np.errstate(invalid="ignore"):
            low, high = expit(self.log_odds - self.half_width), expit(self.log_odds + self.half_width)
        return np.where(known, low, 0.0), np.where(known, high, 1.0)


def shares(cells: np.ndarray, n_cells: int, weights: np.ndarray, sampling: Sampling) -> Shares:
    """Share of the weight in each cell, with the interval of its log-odds by leaving out one unit at a time.

    Parameters
    ----------
    cells : (n,) int array
        Cell of each sample from 0, or -1 for none (which counts in the whole).
    n_cells : int
    weights : (n,) array
        Not negative; normalised here.
    sampling : Sampling

    Raises
    ------
    EstimateError
        If a particle system has too few independent repeats.
    """
    weights = weights / weights.sum()
    cells = np.where(weights > 0, cells, -1)
    counted = cells >= 0
    counts = np.bincount(cells[counted], minlength=n_cells)
    probability = np.minimum(np.bincount(cells[counted], weights[counted], n_cells), 1.0)
    # All weight in one cell: rounding must not leave a trace of others.
    probability[counts == np.count_nonzero(weights)] = 1.0
    if sampling.groups is None and not sampling.is_autocorrelated and sampling.kind == "independent":
        half, effective = _of_samples(cells, counts, probability, weights)
        return Shares(probability, half, counts, effective, sampling.describe(len(weights)), sampling)
    half, effective = np.full(n_cells, np.inf), np.zeros(n_cells)
    whole = sampling.unit_sums(weights)
    for cell in np.nonzero((probability > 0) & (probability < 1))[0]:
        inside = sampling.unit_sums(np.where(cells == cell, weights, 0.0))
        found = deviation(_log_odds_contributions(inside, whole, probability[cell]), sampling)
        half[cell], effective[cell] = found.half_width, found.n_effective
    return Shares(probability, half, counts, effective, sampling.describe(len(whole)), sampling)


def _log_odds_contributions(inside: np.ndarray, whole: np.ndarray, probability: float) -> np.ndarray:
    """Contribution (G,) of each unit to the log-odds, by leaving it out; infinite if it holds one side alone."""
    rest_in, rest_out = probability - inside, 1 - probability - (whole - inside)
    # A side that one unit holds alone leaves rounding noise behind.
    rest_in = np.where(rest_in < 1e-12 * probability, 0.0, rest_in)
    rest_out = np.where(rest_out < 1e-12 * (1 - probability), 0.0, rest_out)
    with np.errstate(divide="ignore"):
        change = np.log(rest_in / probability) - np.log(rest_out / (1 - probability))
    if not np.isfinite(change).all():
        return np.full(len(change), np.inf)
    n = len(change)
    return np.asarray(np.sqrt((n - 1) / n) * (change.mean() - change))


def _of_samples(
    cells: np.ndarray, counts: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Half-widths and effective numbers (m,) for independent samples, all cells at once.

    Leaving out sample i of weight w changes the log-odds of its own cell by ``ln(1 - w/P)``, and those of any other
    cell by ``-ln(1 - w/(1-P))``. The latter is taken as ``w / ((1-P)(1-w))`` but for cells with more than half of the
    weight, where few samples may lie outside.
    """
    n = len(weights)
    sums = np.zeros((3, len(counts)))  # of |c|, c^2, c^4
    usable = (counts > 1) & (probability < 1)
    if n > 1 and usable.any():
        own = np.nonzero(cells >= 0)[0]
        own = own[usable[cells[own]]]
        with np.errstate(divide="ignore"):
            change = -np.log1p(-np.minimum(weights[own] / probability[cells[own]], 1.0))
        other = weights / np.maximum(1 - weights, 1e-300)
        for row, power in enumerate((1, 2, 4)):
            outside = np.full(len(counts), (other**power).sum())
            outside -= np.bincount(cells[cells >= 0], (other**power)[cells >= 0], len(counts))
            for cell in np.nonzero(usable & (probability > 0.5))[0]:
                with np.errstate(divide="ignore"):
                    left = np.minimum(weights[cells != cell] / (1 - probability[cell]), 1.0)
                    outside[cell] = ((-np.log1p(-left)) ** power).sum() * (1 - probability[cell]) ** power
            inside = np.bincount(cells[own], change**power, len(counts))
            with np.errstate(divide="ignore", invalid="ignore"):
                sums[row] = inside + outside / (1 - probability) ** power
    usable &= np.isfinite(sums).all(axis=0)
    first, second, fourth = np.where(usable, sums, 1.0)
    excess = fourth - second**2 / n
    degrees = np.minimum(n - 1.0, 2 * second**2 / np.where(excess > 0, excess, np.inf))
    degrees = np.where(excess > 0, degrees, n - 1.0)
    half = np.sqrt(second) * student_t.ppf(0.5 + LEVEL / 2, np.maximum(degrees, 1e-3))
    return np.where(usable, half, np.inf), np.where(usable, first**2 / second, 0.0)
