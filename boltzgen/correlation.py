"""How strongly the samples of a chain depend on each other: statistical inefficiency and agreement between chains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["by_chain", "split_r_hat", "statistical_inefficiency"]


def by_chain(values: np.ndarray, groups: np.ndarray | None) -> list[np.ndarray]:
    """Values (n,) as one series for each label, in the order of the samples."""
    if groups is None:
        return [np.asarray(values)]
    order = np.argsort(groups, kind="stable")
    ends = np.nonzero(np.diff(np.asarray(groups)[order]))[0] + 1
    return np.split(np.asarray(values)[order], ends)


def statistical_inefficiency(chains: Sequence[np.ndarray]) -> float:
    """Number of successive samples that are worth one independent sample: ``1 + 2 sum of autocorrelations``.

    The autocovariances of all chains about their common mean are averaged, and summed over lags as long as the sums of
    neighbouring pairs are positive and do not grow (initial monotone sequence).

    Parameters
    ----------
    chains : sequence of (n,) arrays
        Series of one quantity in the order of time, of at least four values each.

    Returns
    -------
    float
        At least one; infinite if a chain is shorter than four values.

    References
    ----------
    Geyer, Stat. Sci. 7, 473 (1992), section 3.3.
    """
    length = min(len(chain) for chain in chains)
    if length < 4:
        return math.inf
    mean = np.concatenate(chains).mean()
    covariance = np.mean([_autocovariance(chain - mean)[:length] for chain in chains], axis=0)
    if covariance[0] <= 0:
        return 1.0
    pairs = covariance[: 2 * (length // 2)].reshape(-1, 2).sum(axis=1) / covariance[0]
    negative = np.nonzero(pairs <= 0)[0]
    kept = pairs[: negative[0]] if len(negative) else pairs
    return max(1.0, float(2 * np.minimum.accumulate(kept).sum() - 1)) if len(kept) else 1.0


def split_r_hat(chains: Sequence[np.ndarray]) -> float:
    """Potential scale reduction of chains, each cut into halves: near one where all halves tell the same.

    Returns
    -------
    float
        Infinite if a half is shorter than two values.

    References
    ----------
    Gelman et al., Bayesian Data Analysis (2013), section 11.4.
    """
    halves = [half for chain in chains for half in np.array_split(chain, 2)]
    n = min(len(half) for half in halves)
    if n < 2:
        return math.inf
    within = float(np.mean([half.var(ddof=1) for half in halves]))
    between = float(np.var([half.mean() for half in halves], ddof=1))
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return math.sqrt((n - 1) / n + between / within)


def _autocovariance(deviations: np.ndarray) -> np.ndarray:
    """Autocovariance (n,) of deviations from the mean, by fast Fourier transform, each lag divided by n."""
    n = len(deviations)
    transform = np.fft.rfft(deviations, 2 * n)
    return np.asarray(np.fft.irfft(np.abs(transform) ** 2)[:n] / n)
