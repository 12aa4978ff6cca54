"""Averages of observables over weighted ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, logit

from boltzgen.collective_variables import is_region, parse_basin, parse_variable
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import Estimate, judged, sample_figures
from boltzgen.free_energy.shares import shares
from boltzgen.uncertainty import Interval, bootstrap_interval, check_interval, smooth_interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["Observable", "Observed", "expectation", "observe"]

# An expression; or a function of positions (n, N, 3) in nm, or of an mdtraj.Trajectory, that returns (n,) numbers.
Observable = str | Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Observed:
    """Values of an observable in every sample.

    Attributes
    ----------
    name, unit : str
    values : (n,) array
    is_periodic : bool
        Whether the values are angles in degrees on a circle.
    """

    name: str
    unit: str
    values: np.ndarray
    is_periodic: bool = False

    @property
    def is_indicator(self) -> bool:
        """Whether the values are true or false."""
        return self.values.dtype == bool


def observe(
    ensemble: Ensemble, observable: Observable, *, on: str = "positions", unit: str = "", periodic: bool = False
) -> Observed:
    """Values of an observable in every sample of an ensemble.

    Parameters
    ----------
    ensemble : Ensemble
    observable : str or callable
        A variable ("phi", "angle(4, 6, 8)", "rmsd", "rg"), a region ("0 < phi < 150"), or a function.
    on : {"positions", "trajectory"}
        What a function takes: positions (n, N, 3) in nm, or an ``mdtraj.Trajectory``.
    unit : str
        Of the values of a function.
    periodic : bool
        Whether the values of a function are angles in degrees.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    EstimateError
        If a function does not return one number for each sample.
    """
    if isinstance(observable, str):
        molecule = ensemble.require_molecule()
        if is_region(observable):
            return Observed(observable, "", np.asarray(parse_basin(observable, molecule).contains(ensemble.positions)))
        variable = parse_variable(observable, molecule)
        values = np.asarray(variable(ensemble.positions), dtype=np.float64)
        return Observed(variable.name, variable.unit, values, variable.is_periodic)
    if on not in ("positions", "trajectory"):
        raise EstimateError(f"on must be 'positions' or 'trajectory', not {on!r}")
    values = np.asarray(observable(ensemble.trajectory if on == "trajectory" else ensemble.positions))
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    name = getattr(observable, "__name__", "observable")
    if values.shape != (len(ensemble),):
        raise EstimateError(
            f"{name} returned shape {values.shape}; one number for each of the {len(ensemble):,} samples is needed "
            "(give the columns of a larger result one by one)"
        )
    return Observed(name, unit, values if values.dtype == bool else values.astype(np.float64), periodic)


def expectation(
    ensemble: Ensemble,
    observable: Observable,
    *,
    on: str = "positions",
    unit: str = "",
    periodic: bool = False,
    interval: str = "delta",
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Average of an observable; the circular mean where it is a torsion, the population where it is a region.

    Parameters
    ----------
    ensemble : Ensemble
    observable, on, unit, periodic
        As in `observe`.
    interval, replicates, seed
        As in `basin_free_energies`.

    Returns
    -------
    Estimate
        The interval of a circular mean may reach beyond 180 degrees; its diagnostics hold the resultant length, one
        where all angles agree and zero where no direction prevails.

    Raises
    ------
    EstimateError
        If an observable is not finite where there is weight, or as `observe` and `smooth_interval` raise.
    """
    check_interval(interval)
    ensemble = ensemble.unbiased()
    seen = observe(ensemble, observable, on=on, unit=unit, periodic=periodic)
    weights = ensemble.weights
    broken = int((~np.isfinite(seen.values) & (weights > 0)).sum())
    if broken:
        raise EstimateError(f"{seen.name} is not finite in {broken:,} samples that have weight")
    seen = Observed(
        seen.name, seen.unit, np.where(weights > 0, seen.values, 0).astype(seen.values.dtype), seen.is_periodic
    )
    options: dict[str, Any] = {"interval": interval, "replicates": replicates, "seed": seed}
    figures = sample_figures(ensemble)
    if seen.is_indicator:
        found = _share(ensemble, seen.values, options)
    elif seen.is_periodic:
        found, length = _circular_mean(ensemble, seen.values, options)
        figures["resultant length"] = length
    else:
        found = smooth_interval(
            weights[:, None] * np.stack([np.ones(len(weights)), seen.values], axis=1),
            lambda sums: sums[:, 1] / sums[:, 0],
            ensemble.sampling,
            **options,
        )
    return Estimate(
        name=f"P({seen.name})" if seen.is_indicator else f"<{seen.name}>",
        value=found.value,
        low=found.low,
        high=found.high,
        unit=seen.unit,
        method=found.method,
        n_samples=len(ensemble),
        diagnostics=figures,
        verdict=judged(ensemble.verdict(), found),
    )


def _share(ensemble: Ensemble, inside: np.ndarray, options: dict[str, Any]) -> Interval:
    """Population of a region; the interval is that of its log-odds, so it stays within zero and one."""
    found = shares(np.where(inside, 0, -1), 1, ensemble.weights, ensemble.sampling)
    if options["interval"] == "delta":
        low, high = (float(bound[0]) for bound in found.bounds)
        return found.about(0, float(found.probability[0]), low, high)
    features = ensemble.weights[:, None] * np.stack([inside, ~inside], axis=1)
    odds = bootstrap_interval(features, _log_odds, ensemble.sampling, None, options["replicates"], options["seed"])
    value, low, high = (float(expit(bound)) for bound in (odds.value, odds.low, odds.high))
    return replace(odds, value=value, low=low, high=high)


def _log_odds(sums: np.ndarray) -> np.ndarray:
    return np.asarray(logit(sums[:, 0] / sums.sum(axis=1)))


def _circular_mean(ensemble: Ensemble, degrees: np.ndarray, options: dict[str, Any]) -> tuple[Interval, float]:
    """Direction of the mean unit vector in degrees, and the length of that vector."""
    angle = np.deg2rad(degrees)
    features = ensemble.weights[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = smooth_interval(
        features,
        lambda sums: np.rad2deg(np.arctan2(sums[:, 1], sums[:, 0])),
        ensemble.sampling,
        difference=lambda values, value: (values - value + 180) % 360 - 180,
        **options,
    )
    length = float(np.hypot(*features.sum(axis=0)))
    if not found.high - found.low < 360:
        return replace(found, low=-math.inf, high=math.inf, is_supported=False), length
    return found, length
