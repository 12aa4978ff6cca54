"""log Z and absolute free energy by importance sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from boltzgen.diagnostics import effective_sample_fraction, pareto_k
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import LogZ, judged, log_z_unit, sample_figures
from boltzgen.uncertainty import Interval, Sampling, smooth_interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["log_z"]


def log_z(weighted: Ensemble | np.ndarray, *, interval: str = "delta", replicates: int = 1000, seed: int = 0) -> LogZ:
    """log Z by importance sampling, ``log mean(w)``.

    Parameters
    ----------
    weighted : Ensemble or (n,) array
        Independent samples, or a particle system whose weights carry log Z; or log-weights log p~ - log q of
        independent samples, -inf counting in n. Of an Ensemble those of ``unbiased()`` are taken.
    interval, replicates, seed
        As in `basin_free_energies`.

    Raises
    ------
    EstimateError
        If the samples are a chain, which does not know its normalisation.
    """
    if isinstance(weighted, np.ndarray):
        found = _log_mean(weighted, Sampling(), interval, replicates, seed)
        figures = {"ESS": effective_sample_fraction(weighted), "Pareto k": pareto_k(weighted)}
        return _log_z(found, len(weighted), figures)
    if weighted.kind == "chain":
        raise EstimateError(
            "a chain does not know log Z: use free_energy.bar_log_z with samples of a generator, or annealed importance"
        )
    weighted = weighted.unbiased()
    found = _log_mean(weighted.log_weights, weighted.sampling, interval, replicates, seed)
    estimate = _log_z(found, len(weighted), sample_figures(weighted))
    verdict = judged(weighted.verdict(), found)
    return LogZ(**{**vars(estimate), "unit": log_z_unit(weighted), "kT": weighted.kT, "verdict": verdict})


def _log_mean(log_weights: np.ndarray, sampling: Sampling, interval: str, replicates: int, seed: int) -> Interval:
    largest = float(np.max(log_weights))
    if not np.isfinite(largest):
        return Interval(-np.inf, -np.inf, np.inf, 0.0, "importance sampling", False)
    features = np.stack([np.exp(log_weights - largest), np.ones(len(log_weights))], axis=1)
    found = smooth_interval(
        features,
        lambda sums: largest + np.log(sums[:, 0] / sums[:, 1]),
        sampling,
        interval=interval,
        replicates=replicates,
        seed=seed,
    )
    return replace(found, method=f"importance sampling, {found.method}")


def _log_z(found: Interval, n: int, figures: dict[str, float]) -> LogZ:
    return LogZ(
        name="log Z",
        value=found.value,
        low=found.low,
        high=found.high,
        method=found.method,
        n_samples=n,
        diagnostics=figures,
    )
