"""How far importance weights can be trusted: effective sample size, Pareto tail, coverage, verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats
from scipy.special import logsumexp
from scipy.stats import binom

from boltzgen.correlation import by_chain, split_r_hat, statistical_inefficiency
from boltzgen.errors import EstimateError

__all__ = [
    "ClippedEss",
    "Coverage",
    "Verdict",
    "clipped_ess",
    "coverage",
    "effective_sample_fraction",
    "forward_ess_fraction",
    "halving_deviation",
    "normalized_weights",
    "pareto_k",
    "pareto_limit",
    "verdict",
]

PARETO_LIMIT = 0.7  # Vehtari et al. (2024): above it the mean of the weights is not to be trusted at any practical n
ESS_LIMIT = 0.01
COVERAGE_LIMIT = 0.3  # below it a good part of the basin is out of the generator's practical reach
FEWEST_REFERENCE_SAMPLES = 30  # in a basin, for a coverage to acquit
CERTAINTY = 0.01  # chance that reference samples so poorly covered come from a basin covered to COVERAGE_LIMIT
FEWEST_EFFECTIVE = 50  # samples, whether weighted or in chains
HALVING_LIMIT = 5.0  # standard errors between log Z of the two halves of the samples
R_HAT_LIMIT = 1.1  # Gelman et al. (2013): above it chains have not mixed
FEWEST_PARTICLE_REPEATS = 4
FEWEST_EFFECTIVE_REPEATS = 3.0  # by Kish's formula, whose value is below their number wherever they differ
FEWEST_IN_TAIL = 5  # weights, of a Pareto fit (arviz-stats refuses fewer)


def normalized_weights(log_weights: np.ndarray) -> np.ndarray:
    """Weights (n,) that sum to one; samples of log-weight -inf get zero.

    Raises
    ------
    EstimateError
        If every weight is zero.
    """
    largest = np.max(log_weights)
    if not np.isfinite(largest):
        raise EstimateError("no sample has a finite log-weight: every generated configuration has infinite energy")
    weights = np.exp(log_weights - largest)
    return np.asarray(weights / weights.sum())


def effective_sample_fraction(log_weights: np.ndarray) -> float:
    """Kish's effective sample size divided by n: ``(sum w)^2 / (n sum w^2)``, in (0, 1]."""
    if not np.isfinite(np.max(log_weights)):
        return 0.0
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights)) / len(log_weights))


@dataclass(frozen=True)
class ClippedEss:
    """Effective sample fraction as it is, and with the largest weights clipped, as some publications report it.

    Attributes
    ----------
    ess_fraction, clipped_ess_fraction : float
    share : float
        Of the samples whose weights were lowered to the largest of the others.
    """

    ess_fraction: float
    clipped_ess_fraction: float
    share: float

    def __str__(self) -> str:
        clipped = f"{self.clipped_ess_fraction:.1%} with the largest {self.share:g} of the weights clipped"
        return f"ESS {self.ess_fraction:.1%}; {clipped}"


def clipped_ess(log_weights: np.ndarray, share: float = 1e-4) -> ClippedEss:
    """Effective sample fraction with and without clipping; no estimate here uses clipped weights, which are biased.

    Parameters
    ----------
    log_weights : (n,) array
    share : float
        Of the samples, rounded up to a whole number of them.
    """
    n = min(math.ceil(share * len(log_weights)), len(log_weights) - 1)
    limit = np.partition(log_weights, -n - 1)[-n - 1]
    clipped = effective_sample_fraction(np.minimum(log_weights, limit))
    return ClippedEss(effective_sample_fraction(log_weights), clipped, share)


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape of the generalized Pareto distribution fitted to the largest weights, by arviz-stats.

    The tail holds ``min(n/5, 3 sqrt(n))`` of the n weights above zero. Below 0.5 the variance of the weights is finite,
    above 0.7 estimates are unreliable at any practical n. -Infinite where the whole tail is one value. Infinite where
    it cannot be fitted: it has too few samples, or a quarter of it equals the largest of the other weights.

    References
    ----------
    Vehtari et al., Pareto smoothed importance sampling (2024); Zhang and Stephens, Technometrics 51, 316 (2009).
    """
    positive = np.asarray(log_weights, dtype=np.float64)
    positive = positive[~np.isneginf(positive)]
    n_tail = min(len(positive) // 5, math.floor(3 * math.sqrt(len(positive))))
    if n_tail < FEWEST_IN_TAIL or not np.isfinite(positive).all():
        return math.inf
    tail = np.exp(np.sort(np.partition(positive, -n_tail - 1)[-n_tail - 1 :]) - positive.max())
    if tail[1] == tail[-1]:
        return -math.inf
    if tail[1 + max(int(n_tail / 4 + 0.5) - 1, 0)] == tail[0]:  # the fit divides by how far this quartile is above
        return math.inf
    with np.errstate(over="ignore"):  # in smoothed weights of a k beyond 100, which nobody uses
        return float(array_stats.psislw(-positive)[1])


def pareto_limit(n: int) -> float:
    """Largest Pareto k at which n samples are enough: ``min(1 - 1/log10(n), 0.7)`` (Vehtari et al. 2024, section 3)."""
    return min(1 - 1 / math.log10(max(n, 2)), PARETO_LIMIT)


@dataclass(frozen=True)
class Coverage:
    """How well a generator covers one basin, judged by reference samples in it.

    Attributes
    ----------
    coverage : float
        Mean over reference samples in the basin of min(1, q/p): 1 only where q >= p throughout.
    population_ratio : float
        Q(A)/P(A): generated over reference population.
    n_reference : int
    """

    coverage: float
    population_ratio: float
    n_reference: int

    @property
    def is_missed(self) -> bool:
        """Whether the reference samples show that the basin is covered to less than the limit.

        Few samples accuse only if so low a mean of values in [0, 1] would be rare (1 %) at the limit; of all
        distributions on [0, 1] with a given mean the two-valued one spreads widest, hence a binomial test.
        """
        if not self.coverage < COVERAGE_LIMIT:
            return False
        return bool(
            binom.cdf(math.floor(self.coverage * self.n_reference), self.n_reference, COVERAGE_LIMIT) < CERTAINTY
        )


def coverage(log_ratio: np.ndarray, in_basin: np.ndarray, reference_weights: np.ndarray) -> Coverage:
    """Coverage of a basin.

    Parameters
    ----------
    log_ratio : (n,) array
        log q - log p at reference samples, with p normalised (log Z from `free_energy.acceptance_ratio`).
    in_basin : (n,) bool array
    reference_weights : (n,) array
        Weights of the reference samples.
    """
    weights = np.where(in_basin, reference_weights, 0.0)
    total = weights.sum()
    if total == 0:
        return Coverage(math.nan, math.nan, 0)
    ratio = np.exp(np.minimum(log_ratio, 50.0))
    return Coverage(
        coverage=float(weights @ np.minimum(ratio, 1.0) / total),
        population_ratio=float(weights @ ratio / total),
        n_reference=int(in_basin.sum()),
    )


def forward_ess_fraction(reference_log_weights: np.ndarray, reference_weights: np.ndarray, log_z: float) -> float:
    """Forward ESS ``1 / E_p[p/q]``, in [0, 1]; zero if a reference sample lies outside the generator's domain."""
    w = reference_weights / reference_weights.sum()
    return float(np.exp(-logsumexp(reference_log_weights - log_z, b=w)))


@dataclass(frozen=True)
class Verdict:
    """Whether to believe a result: ``"usable"``, ``"consistent; missing modes not checked"`` or ``"do not use"``."""

    verdict: str
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"


def verdict(
    log_weights: np.ndarray,
    n_defects: int = 0,
    coverages: Mapping[str, Coverage] | None = None,
    disagreement: str = "",
    *,
    kind: str = "independent",
    groups: np.ndarray | None = None,
    energies: np.ndarray | None = None,
) -> Verdict:
    """Join the diagnostics into what can honestly be claimed.

    Parameters
    ----------
    log_weights : (n,) array
    n_defects : int
        Samples with a NaN energy or a non-finite log q.
    coverages : {basin: Coverage}, optional
        From reference samples; without them a missing mode cannot be ruled out.
    disagreement : str
        What disagrees with a reference beyond the joint 95 % interval, if anything.
    kind, groups :
        How the samples depend on each other; see `Sampling`. Independent samples are judged by their weights (effective
        size, Pareto tail, log Z of both halves), chains by how far they agree and how many independent samples they are
        worth, particle systems by their weights and the number of repeats.
    energies : (n,) array, optional
        Of the samples: what chains are compared in.
    """
    if n_defects:
        return Verdict("do not use", f"{n_defects} samples had an undefined energy or density")
    if kind == "chain":
        problem, figures = _chain_problem(log_weights, groups, energies)
    elif kind == "particles":
        problem, figures = _particle_problem(log_weights, groups)
    else:
        problem, figures = _weights_problem(log_weights)
    if problem:
        return Verdict("do not use", problem)
    if not coverages:
        return Verdict("consistent; missing modes not checked", f"{figures}; no reference samples to look for modes")
    if disagreement:
        return Verdict("do not use", disagreement)
    return _covered(coverages, figures)


def _covered(coverages: Mapping[str, Coverage], figures: str) -> Verdict:
    """What reference samples say about basins: refused where one is missed, undecided where one is too rare to tell."""
    for name, value in coverages.items():
        if value.is_missed:
            return Verdict(
                "do not use",
                f"basin {name} is covered to only {value.coverage:.1%} of the reference ({value.n_reference} samples)",
            )
    rare = [name for name, value in coverages.items() if value.n_reference < FEWEST_REFERENCE_SAMPLES]
    if rare:
        return Verdict(
            "consistent; missing modes not checked",
            f"{figures}; the reference holds only {coverages[rare[0]].n_reference} samples of {rare[0]}",
        )
    worst = min(coverages.values(), key=lambda value: value.coverage)
    return Verdict("usable", f"{figures}; every basin covered to at least {worst.coverage:.0%} of the reference")


def _weights_problem(log_weights: np.ndarray) -> tuple[str, str]:
    """What is wrong with the weights of independent samples, if anything, and their figures."""
    n, ess, k = len(log_weights), effective_sample_fraction(log_weights), pareto_k(log_weights)
    figures = f"ESS {ess:.1%} of {n:,} samples, Pareto k {k:.2f}"
    if ess < ESS_LIMIT or ess * n < FEWEST_EFFECTIVE:
        return f"too few effective samples ({figures})", figures
    if k == math.inf:
        return (
            f"the largest weights are too few, or too much alike, to tell how heavy their tail is ({figures})",
            figures,
        )
    if k > pareto_limit(n):
        return f"the weights have too heavy a tail ({figures}; k must be below {pareto_limit(n):.2f})", figures
    if halving_deviation(log_weights) > HALVING_LIMIT:
        return f"the two halves of the samples disagree on log Z ({figures})", figures
    return "", figures


def _chain_problem(log_weights: np.ndarray, groups: np.ndarray | None, energies: np.ndarray | None) -> tuple[str, str]:
    """What is wrong with chains, judged by their energies, if anything, and their figures."""
    n = len(log_weights)
    if energies is None or not np.isfinite(energies).all():
        return "", f"{n:,} samples of chains whose energies are not known, so their mixing is not checked"
    chains = by_chain(energies, groups)
    g, r_hat = statistical_inefficiency(chains), split_r_hat(chains)
    effective = n * effective_sample_fraction(log_weights) / g
    figures = f"{len(chains)} chains of {n:,} samples worth {effective:,.0f} independent ones, R-hat {r_hat:.2f}"
    if r_hat > R_HAT_LIMIT:
        return f"the chains have not mixed ({figures})", figures
    if effective < FEWEST_EFFECTIVE:
        return f"too few independent samples ({figures})", figures
    return "", figures


def _particle_problem(log_weights: np.ndarray, groups: np.ndarray | None) -> tuple[str, str]:
    """What is wrong with repeats of a particle system, if anything, and their figures."""
    repeats = by_chain(log_weights, groups)
    ess = effective_sample_fraction(log_weights)
    log_z = np.array([logsumexp(repeat) - math.log(len(repeat)) for repeat in repeats])
    spread = effective_sample_fraction(log_z)
    figures = f"{len(repeats)} independent repeats, ESS {ess:.1%} of {len(log_weights):,} particles"
    if len(repeats) < FEWEST_PARTICLE_REPEATS:
        return f"too few independent repeats of the particle system to know its error ({figures})", figures
    if ess * len(log_weights) < FEWEST_EFFECTIVE:
        return f"too few effective particles ({figures})", figures
    if spread * len(repeats) < FEWEST_EFFECTIVE_REPEATS:
        return f"one repeat outweighs the others ({figures})", figures
    return "", figures


def halving_deviation(log_weights: np.ndarray) -> float:
    """Difference of log Z from the two halves of the samples, in units of its standard error; infinite if one is empty.

    Parameters
    ----------
    log_weights : (n,) array
        Of independent samples, in the order in which they were drawn.
    """
    halves = np.array_split(log_weights, 2)
    if any(not len(half) or not np.isfinite(half.max()) for half in halves):
        return math.inf
    values = [logsumexp(half) - math.log(len(half)) for half in halves]
    variance = sum((1 / effective_sample_fraction(half) - 1) / len(half) for half in halves)
    difference = abs(values[0] - values[1])
    if difference < 1e-9:  # equal weights have no error
        return 0.0
    return float(difference / math.sqrt(variance)) if variance > 0 else math.inf
