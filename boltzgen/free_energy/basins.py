"""Free energies of basins against all else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import Verdict
from boltzgen.free_energy.estimate import EnergyEstimate, judged, sample_figures
from boltzgen.free_energy.shares import shares
from boltzgen.uncertainty import bootstrap_interval, check_interval, smooth_interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["BasinFreeEnergy", "FreeEnergies", "basin_difference", "basin_free_energies", "free_energy_of"]


@dataclass(frozen=True, kw_only=True, repr=False)
class BasinFreeEnergy(EnergyEstimate):
    """Free energy of a basin against all else, ``-kT ln[P / (1 - P)]``; infinite where it holds no weight, or all.

    Attributes
    ----------
    expression : str
    probability : float
    n_in_basin : int
    """

    expression: str
    probability: float
    n_in_basin: int

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of ``result.json``."""
        return {
            "expression": self.expression,
            "probability": self.probability,
            "delta_f_kT": self.value,
            "delta_f_kT_low": self.low,
            "delta_f_kT_high": self.high,
            "delta_f_kJ_per_mol": self.delta_f_kJ_per_mol,
            "delta_f_kcal_per_mol": self.delta_f_kcal_per_mol,
        }

    def __str__(self) -> str:
        return f"ΔF({self.name}) = {self._value_text()}  (P = {self.probability:.4g}; {self.expression})"


@dataclass(frozen=True)
class FreeEnergies(Mapping[str, BasinFreeEnergy]):
    """Free energies by basin name, and the verdict on the ensemble that they come from."""

    basins: dict[str, BasinFreeEnergy]
    verdict: Verdict

    def __getitem__(self, name: str) -> BasinFreeEnergy:
        return self.basins[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.basins)

    def __len__(self) -> int:
        return len(self.basins)

    def __str__(self) -> str:
        return "\n".join([*(str(basin) for basin in self.basins.values()), f"verdict: {self.verdict}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "<div>" + "<br>".join(escape(line) for line in str(self).split("\n")) + "</div>"


def basin_free_energies(
    ensemble: Ensemble,
    basins: Mapping[str, str],
    verdict: Verdict | None = None,
    *,
    interval: str = "delta",
    replicates: int = 1000,
    seed: int = 0,
) -> FreeEnergies:
    """Free energy of each basin against all else.

    Parameters
    ----------
    ensemble : Ensemble
    basins : {name: expression}
        Named torsions in degrees, distances in nm.
    verdict : Verdict, optional
        On the samples; that of the ensemble if absent.
    interval : {"delta", "bootstrap"}
        How the 95 % interval is found; the bootstrap is for independent samples.
    replicates, seed : int
        Of the bootstrap.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    EstimateError
        If the samples cannot give the interval asked for.
    """
    ensemble = ensemble.unbiased()
    molecule = ensemble.require_molecule()
    verdict = verdict or ensemble.verdict()
    results = {}
    for name, expression in basins.items():
        inside = np.asarray(parse_basin(expression, molecule).contains(ensemble.positions))
        results[name] = free_energy_of(
            ensemble, inside, name, expression, verdict, interval=interval, replicates=replicates, seed=seed
        )
    return FreeEnergies(results, verdict)


def basin_difference(ensemble: Ensemble, first: str, second: str, **options: Any) -> EnergyEstimate:
    """Free energy of the second basin minus that of the first, ``-kT ln(P_second / P_first)``.

    Parameters
    ----------
    ensemble : Ensemble
    first, second : str
        Expressions; they may overlap.
    **options
        `interval`, `replicates` and `seed` as in `basin_free_energies`.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    EstimateError
        If the samples cannot give the interval asked for.
    """
    ensemble = ensemble.unbiased()
    molecule = ensemble.require_molecule()
    inside = [np.asarray(parse_basin(text, molecule).contains(ensemble.positions)) for text in (first, second)]
    features = ensemble.weights[:, None] * np.stack(inside, axis=1)
    found = smooth_interval(features, _minus_log_ratio, ensemble.sampling, **options)
    return EnergyEstimate(
        name=f"F({second}) - F({first})",
        value=found.value,
        low=found.low,
        high=found.high,
        kT=ensemble.kT,
        method=found.method,
        n_samples=len(ensemble),
        diagnostics=sample_figures(ensemble),
        verdict=judged(ensemble.verdict(), found),
    )


def free_energy_of(
    ensemble: Ensemble,
    inside: np.ndarray,
    name: str = "region",
    expression: str = "",
    verdict: Verdict | None = None,
    *,
    interval: str = "delta",
    replicates: int = 1000,
    seed: int = 0,
) -> BasinFreeEnergy:
    """Free energy of any region against all else.

    Parameters
    ----------
    ensemble : Ensemble
        Its weights are taken as they are: give ``ensemble.unbiased()`` for samples with an alignment penalty.
    inside : (n,) bool array
        Which samples lie in the region.
    name, expression : str
        To show.
    verdict, interval, replicates, seed
        As in `basin_free_energies`.
    """
    check_interval(interval)
    found = shares(np.where(inside, 0, -1), 1, ensemble.weights, ensemble.sampling)
    probability, value, half = float(found.probability[0]), -float(found.log_odds[0]), float(found.half_width[0])
    low, high = (value - half, value + half) if math.isfinite(value) else (-math.inf, math.inf)
    bounds = found.about(0, value, low, high)
    if interval == "bootstrap":
        features = ensemble.weights[:, None] * np.stack([inside, ~inside], axis=1)
        bounds = bootstrap_interval(features, _minus_log_odds, ensemble.sampling, None, replicates, seed)
    return BasinFreeEnergy(
        name=name,
        expression=expression,
        probability=probability,
        value=bounds.value,
        low=bounds.low,
        high=bounds.high,
        kT=ensemble.kT,
        n_samples=len(ensemble),
        n_in_basin=int(inside.sum()),
        method=f"importance sampling, {bounds.method}" if ensemble.kind == "independent" else bounds.method,
        diagnostics=sample_figures(ensemble),
        verdict=judged(verdict or ensemble.verdict(), bounds),
    )


def _minus_log_odds(sums: np.ndarray) -> np.ndarray:
    """From sums of weights in the basin and out of it."""
    return -_minus_log_ratio(sums)


def _minus_log_ratio(sums: np.ndarray) -> np.ndarray:
    """-ln of the second sum over the first."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(sums[:, 0]) - np.log(sums[:, 1]))
