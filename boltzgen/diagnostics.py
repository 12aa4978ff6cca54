"""How far importance weights can be trusted: effective sample size, Pareto tail, coverage, verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

__all__ = [
    "Coverage",
    "Verdict",
    "coverage",
    "effective_sample_fraction",
    "normalized_weights",
    "pareto_k",
    "verdict",
]

PARETO_LIMIT = 0.7  # Vehtari et al. (2024): above it the mean of the weights is not to be trusted
ESS_LIMIT = 0.01
COVERAGE_LIMIT = 0.3  # below it a good part of the basin is out of the generator's practical reach
FEWEST_REFERENCE_SAMPLES = 30  # in a basin, for a coverage to mean anything


def normalized_weights(log_weights: np.ndarray) -> np.ndarray:
    """Weights (n,) that sum to one; samples of log-weight -inf get zero.

    Raises
    ------
    ValueError
        If every weight is zero.
    """
    largest = np.max(log_weights)
    if not np.isfinite(largest):
        raise ValueError("no sample has a finite log-weight: every generated configuration has infinite energy")
    weights = np.exp(log_weights - largest)
    return np.asarray(weights / weights.sum())


def effective_sample_fraction(log_weights: np.ndarray) -> float:
    """Kish's effective sample size divided by n: ``(sum w)^2 / (n sum w^2)``, in (0, 1]."""
    if not np.isfinite(np.max(log_weights)):
        return 0.0
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights)) / len(log_weights))


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape of the generalized Pareto distribution fitted to the largest weights.

    The tail holds ``min(n/5, 3 sqrt(n))`` samples. Below 0.5 the variance of the weights is finite, above 0.7
    estimates are unreliable at any practical n. Infinite where the tail has no spread to fit or too few samples.

    References
    ----------
    Vehtari et al., Pareto smoothed importance sampling (2024); Zhang and Stephens, Technometrics 51, 316 (2009).
    """
    n = len(log_weights)
    n_tail = min(n // 5, math.ceil(3 * math.sqrt(n)))
    if n_tail < 5 or not np.isfinite(np.max(log_weights)):
        return math.inf
    tail = np.sort(np.exp(log_weights - np.max(log_weights)))[-n_tail - 1 :]
    excess = tail[1:] - tail[0]
    if excess[-1] <= 0:
        return -math.inf  # equal weights: no tail at all
    return _fit_generalized_pareto(excess[excess > 0])


def _fit_generalized_pareto(x: np.ndarray) -> float:
    """Shape k from sorted positive excesses, with the weak prior of PSIS (10 observations at k = 0.5)."""
    n = len(x)
    if n < 5:
        return math.inf
    n_grid = 30 + int(math.sqrt(n))
    grid = np.arange(1, n_grid + 1)
    theta = 1 / x[-1] + (1 - np.sqrt(n_grid / (grid - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1])
    k = np.log1p(-theta[:, None] * x).mean(axis=1)
    log_likelihood = n * (np.log(-theta / k) - k - 1)
    posterior = np.exp(log_likelihood - logsumexp(log_likelihood))
    shape = float(np.log1p(-(theta @ posterior) * x).mean())
    return (n * shape + 10 * 0.5) / (n + 10)


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


def coverage(log_ratio: np.ndarray, in_basin: np.ndarray, reference_weights: np.ndarray) -> Coverage:
    """Coverage of a basin.

    Parameters
    ----------
    log_ratio : (n,) array
        log q - log p at reference samples, with p normalised (log Z from `log_z_bar`).
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


def log_z_bar(
    generated_log_weights: np.ndarray, reference_log_weights: np.ndarray, reference_weights: np.ndarray
) -> float:
    """log Z by Bennett's acceptance ratio between generated and (weighted) reference samples.

    Parameters
    ----------
    generated_log_weights : (n_G,) array
        log p~ - log q at generated samples; -inf allowed.
    reference_log_weights : (n_B,) array
        The same at reference samples; +inf (outside the generator's domain) allowed.
    reference_weights : (n_B,) array
        Statistical weights of the reference samples.

    References
    ----------
    Bennett, J. Comput. Phys. 22, 245 (1976); Shirts and Pande, J. Chem. Phys. 122, 144107 (2005), equation 8.
    """
    w = reference_weights / reference_weights.sum()
    n_generated, n_reference = len(generated_log_weights), 1 / np.square(w).sum()
    log_odds = math.log(n_reference / n_generated)

    def imbalance(log_z: float) -> float:
        forward = expit(generated_log_weights - log_z + log_odds).sum()
        backward = n_reference * (w @ expit(log_z - log_odds - reference_log_weights))
        return float(forward - backward)

    finite = np.concatenate([x[np.isfinite(x)] for x in (generated_log_weights, reference_log_weights)])
    return float(brentq(imbalance, finite.min() - 20, finite.max() + 20, xtol=1e-10))


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
    log_weights: np.ndarray, n_defects: int = 0, coverages: dict[str, Coverage] | None = None, disagreement: str = ""
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
    """
    ess, k = effective_sample_fraction(log_weights), pareto_k(log_weights)
    unstable = _halves_disagree(log_weights)
    figures = f"ESS {ess:.1%} of {len(log_weights):,} samples, Pareto k {k:.2f}"
    if n_defects:
        return Verdict("do not use", f"{n_defects} samples had an undefined energy or density")
    if ess < ESS_LIMIT or ess * len(log_weights) < 50:
        return Verdict("do not use", f"too few effective samples ({figures})")
    if k > PARETO_LIMIT:
        return Verdict("do not use", f"the weights have too heavy a tail ({figures}; k must be below {PARETO_LIMIT})")
    if unstable:
        return Verdict("do not use", f"the two halves of the samples disagree on log Z ({figures})")
    if not coverages:
        return Verdict("consistent; missing modes not checked", f"{figures}; no reference samples to look for modes")
    if disagreement:
        return Verdict("do not use", disagreement)
    rare = [name for name, value in coverages.items() if value.n_reference < FEWEST_REFERENCE_SAMPLES]
    for name, value in coverages.items():
        if name not in rare and value.coverage < COVERAGE_LIMIT:
            return Verdict("do not use", f"basin {name} is covered to only {value.coverage:.1%} of the reference")
    if rare:
        return Verdict(
            "consistent; missing modes not checked",
            f"{figures}; the reference holds only {coverages[rare[0]].n_reference} samples of {rare[0]}",
        )
    worst = min(coverages.values(), key=lambda value: value.coverage)
    return Verdict("usable", f"{figures}; every basin covered to at least {worst.coverage:.0%} of the reference")


def _halves_disagree(log_weights: np.ndarray) -> bool:
    """Whether log Z from either half of the samples differs by more than five of its standard errors."""
    halves = np.array_split(log_weights, 2)
    if any(not np.isfinite(half.max()) for half in halves):
        return True
    values = [logsumexp(half) - math.log(len(half)) for half in halves]
    variances = [(1 / effective_sample_fraction(half) - 1) / len(half) for half in halves]
    return abs(values[0] - values[1]) > 5 * math.sqrt(max(sum(variances), 0.0)) + 1e-9
