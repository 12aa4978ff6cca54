"""95 % intervals of smooth functions of sums over samples, honest about how the samples hang together.

Every estimator here is a function of a few sums over the samples. Leaving out one unit at a time (the jackknife) gives
the contribution of each unit to the error: the delta method, with heavy weights counted in full. A unit is

- a sample, where samples are independent (or all copies of one sample);
- a whole chain, where there are enough of them; else a sample, and the variance is multiplied by the statistical
  inefficiency of the contributions along the chain;
- an independent repeat of a particle system.

The quantile is Student's, with degrees of freedom from the fourth moment of the contributions: where a few units make
up the variance, the variance itself is known badly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from boltzgen.correlation import by_chain, statistical_inefficiency
from boltzgen.errors import EstimateError

__all__ = [
    "KINDS",
    "Deviation",
    "Interval",
    "Sampling",
    "bootstrap_interval",
    "check_interval",
    "combined",
    "deviation",
    "jackknife",
    "smooth_interval",
]

KINDS = ("independent", "chain", "particles")
FEWEST_CHAINS = 16  # fewer are judged by their autocorrelation
FEWEST_REPEATS = 3
MOST_UNITS = 20_000  # of a bootstrap; more independent samples are merged into so many groups, which are as independent
LEVEL = 0.95
# Least effective number of contributions (see `Deviation`) that an interval may rest on: of independent samples, which
# are about five in a rare basin; and of whole chains or repeats.
FEWEST_EFFECTIVE = 20.0
FEWEST_EFFECTIVE_UNITS = 3.0

# From sums (k, m) to values (k,).
Statistic = Callable[[np.ndarray], np.ndarray]
# From values and the estimate to signed differences; wraps round the circle for angles.
Difference = Callable[[np.ndarray, float], np.ndarray]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How the samples of an ensemble depend on each other.

    Attributes
    ----------
    kind : {"independent", "chain", "particles"}
    groups : (n,) int array, optional
        Labels of what is independent of each other: copies of one sample, chains, or repeats of a particle system.
    """

    kind: str = "independent"
    groups: np.ndarray | None = None

    @property
    def is_autocorrelated(self) -> bool:
        """Whether samples one by one are the units, and follow each other in time."""
        return self.kind == "chain" and self.n_groups < FEWEST_CHAINS

    @property
    def n_groups(self) -> int:
        return 1 if self.groups is None else len(np.unique(self.groups))

    def unit_sums(self, values: np.ndarray) -> np.ndarray:
        """Sums (G, ...) of per-sample values (n, ...) over each unit.

        Raises
        ------
        EstimateError
            If a particle system has too few independent repeats.
        """
        if self.kind == "particles" and self.n_groups < FEWEST_REPEATS:
            raise EstimateError(
                f"these samples are one particle system with {self.n_groups} independent repeat(s): its particles "
                f"depend on each other, so its error comes from repeats; run it with n_repeats of at least "
                f"{FEWEST_REPEATS}, better 20"
            )
        if self.groups is None or self.is_autocorrelated:
            return values
        order = np.argsort(self.groups, kind="stable")
        starts = np.concatenate([[0], np.nonzero(np.diff(np.asarray(self.groups)[order]))[0] + 1])
        return np.asarray(np.add.reduceat(values[order], starts, axis=0))

    def is_enough(self, n_effective: float) -> bool:
        """Whether an interval may rest on so many effective units (see `Deviation`)."""
        whole = self.kind == "particles" or (self.kind == "chain" and not self.is_autocorrelated)
        return n_effective >= (FEWEST_EFFECTIVE_UNITS if whole else FEWEST_EFFECTIVE)

    def describe(self, n_units: int) -> str:
        """How errors are found, in words."""
        if self.is_autocorrelated:
            return "autocorrelation time"
        if self.kind == "chain":
            return f"{n_units} independent chains"
        return f"{n_units} independent repeats" if self.kind == "particles" else "delta method"


@dataclass(frozen=True)
class Deviation:
    """Variance of an estimate, how well that variance is known, and on how many units it rests.

    Attributes
    ----------
    variance, degrees : float
        Degrees of freedom of the variance.
    n_effective : float
        ``(sum |c|)^2 / sum c^2`` of the contributions: about four times the number of samples in a rare basin.
    method : str
    is_supported : bool
        Whether it rests on enough units.
    """

    variance: float
    degrees: float
    n_effective: float
    method: str
    is_supported: bool = False

    @property
    def half_width(self) -> float:
        """Of the 95 % interval."""
        if not (math.isfinite(self.variance) and self.degrees > 0):
            return math.inf
        return float(student_t.ppf(0.5 + LEVEL / 2, self.degrees)) * math.sqrt(self.variance)

    def about(self, value: float) -> Interval:
        """The 95 % interval about a value."""
        half = self.half_width
        return Interval(value, value - half, value + half, self.n_effective, self.method, self.is_supported)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and what it rests on (see `Deviation`)."""

    value: float
    low: float
    high: float
    n_effective: float
    method: str
    is_supported: bool = True


def jackknife(
    features: np.ndarray, statistic: Statistic, sampling: Sampling, difference: Difference | None = None
) -> tuple[float, np.ndarray]:
    """A function of sums over samples, and the contribution of each unit to its error.

    Parameters
    ----------
    features : (n, m) array
        What is summed.
    statistic : callable
        From sums (k, m) to values (k,).
    sampling : Sampling
    difference : callable, optional
        Of values and the estimate; plain subtraction if absent.

    Returns
    -------
    value, contributions : float, (G,) array
        The sum of the squares of the contributions is the jackknife variance.

    References
    ----------
    Efron and Stein, Ann. Stat. 9, 586 (1981).
    """
    sums = sampling.unit_sums(features)
    total = sums.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(total[None])[0])
        left = statistic(total - sums)
        change = left - value if difference is None else difference(left, value)
    n = len(sums)
    if n < 2 or not np.isfinite(change).all():
        return value, np.full(n, math.inf)
    return value, math.sqrt((n - 1) / n) * (change.mean() - change)


def deviation(contributions: np.ndarray, sampling: Sampling) -> Deviation:
    """Variance of an estimate from the contributions of its units; see `jackknife`."""
    n, square = len(contributions), np.square(contributions)
    variance = float(square.sum())
    if not math.isfinite(variance):
        return Deviation(math.inf, 0.0, 0.0, sampling.describe(n))
    if variance == 0:
        return Deviation(0.0, math.inf, math.inf, sampling.describe(n), True)
    n_effective = float(np.abs(contributions).sum() ** 2 / variance)
    excess = float(np.square(square).sum()) - variance**2 / n
    degrees = min(n - 1.0, 2 * variance**2 / excess) if excess > 0 else n - 1.0
    g = 1.0
    if sampling.is_autocorrelated:
        g = statistical_inefficiency(by_chain(contributions, sampling.groups))
    enough = sampling.is_enough(n_effective / g)
    return Deviation(variance * g, degrees / g, n_effective / g, sampling.describe(n), enough)


def combined(*deviations: Deviation) -> Deviation:
    """Of a sum of independent contributions, one part from each ensemble (Welch and Satterthwaite)."""
    variance = sum(part.variance for part in deviations)
    if not 0 < variance < math.inf:
        return Deviation(variance, 0.0 if variance else math.inf, 0.0, deviations[0].method, variance == 0)
    inverse = sum((part.variance / variance) ** 2 / part.degrees for part in deviations if part.variance)
    return Deviation(
        variance,
        1 / inverse if inverse else math.inf,
        min(part.n_effective for part in deviations if part.variance),
        ", ".join(dict.fromkeys(part.method for part in deviations)),
        all(part.is_supported for part in deviations if part.variance),
    )


def smooth_interval(
    features: np.ndarray,
    statistic: Statistic,
    sampling: Sampling,
    *,
    difference: Difference | None = None,
    interval: str = "delta",
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """Value and 95 % interval of a function of sums over samples.

    Parameters
    ----------
    features, statistic, sampling, difference
        As in `jackknife`.
    interval : {"delta", "bootstrap"}
    replicates, seed : int
        Of the bootstrap.

    Raises
    ------
    EstimateError
        If the kind of interval is unknown, or an independent-sample bootstrap is asked for samples that are not.
    """
    check_interval(interval)
    if interval == "bootstrap":
        return bootstrap_interval(features, statistic, sampling, difference, replicates, seed)
    value, contributions = jackknife(features, statistic, sampling, difference)
    return deviation(contributions, sampling).about(value)


def check_interval(interval: str) -> None:
    """Raise EstimateError unless the kind of interval is known."""
    if interval not in ("delta", "bootstrap"):
        raise EstimateError(f"interval must be 'delta' or 'bootstrap', not {interval!r}")


def bootstrap_interval(
    features: np.ndarray,
    statistic: Statistic,
    sampling: Sampling,
    difference: Difference | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % interval by the bootstrap of independent units, corrected for bias and skewness (BCa).

    Raises
    ------
    EstimateError
        If the samples are a chain or a particle system.

    References
    ----------
    Efron, J. Am. Stat. Assoc. 82, 171 (1987).
    """
    if sampling.kind != "independent":
        what = "follow each other in a chain" if sampling.kind == "chain" else "are particles of one system"
        raise EstimateError(
            f"a bootstrap of independent samples would be too narrow: these {what}; use interval='delta', which takes "
            "autocorrelation times of chains and independent repeats of particle systems"
        )
    value, contributions = jackknife(features, statistic, sampling, difference)
    found = deviation(contributions, sampling)
    sums = _merged(sampling.unit_sums(features))
    rng, n = np.random.default_rng(seed), len(sums)
    rows = max(1, 2_000_000 // n)
    parts = [
        statistic(rng.multinomial(n, np.full(n, 1 / n), size=min(rows, replicates - start)) @ sums)
        for start in range(0, replicates, rows)
    ]
    values = np.concatenate(parts)
    spread = values - value if difference is None else difference(values, value)
    method = f"bootstrap (BCa, {replicates} replicates)"
    if not (np.isfinite(spread).all() and math.isfinite(found.variance)):
        return Interval(value, -math.inf, math.inf, found.n_effective, method, False)
    low, high = _bias_corrected(spread, contributions)
    return Interval(value, value + low, value + high, found.n_effective, method, found.is_supported)


def _bias_corrected(spread: np.ndarray, contributions: np.ndarray) -> tuple[float, float]:
    """Bounds of the BCa interval from bootstrap differences and the contributions of the units."""
    variance = float(np.square(contributions).sum())
    if variance == 0:
        return 0.0, 0.0
    bias = norm.ppf(np.clip(np.mean(spread < 0) + 0.5 * np.mean(spread == 0), 1e-6, 1 - 1e-6))
    acceleration = float((contributions**3).sum()) / (6 * variance**1.5)
    z = bias + norm.ppf(np.array([0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    shares = norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(spread, shares)
    return float(low), float(high)


def _merged(sums: np.ndarray) -> np.ndarray:
    if len(sums) <= MOST_UNITS:
        return sums
    starts = np.linspace(0, len(sums), MOST_UNITS, endpoint=False).astype(int)
    return np.asarray(np.add.reduceat(sums, starts, axis=0))
