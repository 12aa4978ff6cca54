"""Free energies from weighted ensembles, each a value with its 95 % interval, units and verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm
from scipy.stats import t as student_t

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import Verdict, effective_sample_fraction, normalized_weights
from boltzgen.diagnostics import verdict as verdict_on

if TYPE_CHECKING:
    from boltzgen.energy import Potential
    from boltzgen.ensemble import Ensemble
    from boltzgen.molecule import Molecule

__all__ = ["BasinFreeEnergy", "FreeEnergies", "LogZ", "Perturbation", "basin_free_energies", "log_z", "perturb"]

KJ_PER_KCAL = 4.184


@dataclass(frozen=True)
class BasinFreeEnergy:
    """Free energy of a basin against all else, ``-kT ln[P / (1 - P)]``, with a 95 % interval.

    Attributes
    ----------
    name, expression : str
    probability : float
    delta_f_kT, low_kT, high_kT : float
        In units of kT; infinite where the basin holds no weight, or all of it.
    kT : float
        kJ/mol.
    n_samples, n_in_basin : int
    method : str
    """

    name: str
    expression: str
    probability: float
    delta_f_kT: float
    low_kT: float
    high_kT: float
    kT: float
    n_samples: int
    n_in_basin: int
    method: str

    @property
    def half_width_kT(self) -> float:
        return 0.5 * (self.high_kT - self.low_kT)

    @property
    def delta_f_kJ_per_mol(self) -> float:
        return self.delta_f_kT * self.kT

    @property
    def delta_f_kcal_per_mol(self) -> float:
        return self.delta_f_kT * self.kT / KJ_PER_KCAL

    def to_dict(self) -> dict[str, float | str]:
        """The stable keys of ``result.json``."""
        return {
            "expression": self.expression,
            "probability": self.probability,
            "delta_f_kT": self.delta_f_kT,
            "delta_f_kT_low": self.low_kT,
            "delta_f_kT_high": self.high_kT,
            "delta_f_kJ_per_mol": self.delta_f_kJ_per_mol,
            "delta_f_kcal_per_mol": self.delta_f_kcal_per_mol,
        }

    def __str__(self) -> str:
        unit_values = [
            f"{self.delta_f_kT * scale:.2f} [{self.low_kT * scale:.2f}, {self.high_kT * scale:.2f}] {symbol}"
            for scale, symbol in ((1.0, "kT"), (self.kT, "kJ/mol"), (self.kT / KJ_PER_KCAL, "kcal/mol"))
        ]
        return f"ΔF({self.name}) = {', '.join(unit_values)}  (P = {self.probability:.4g}; {self.expression})"


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


@dataclass(frozen=True)
class LogZ:
    """log of the partition function of the domain, with a 95 % interval; carries nm^(3N-6)."""

    value: float
    low: float
    high: float


def log_z(log_weights: np.ndarray) -> LogZ:
    """log Z by importance sampling, ``log mean(w)``, with a delta-method interval.

    Parameters
    ----------
    log_weights : (n,) array
        log p~ - log q of independent samples; -inf counts in n.
    """
    n = len(log_weights)
    value = float(logsumexp(log_weights) - math.log(n))
    relative_variance = (1 / effective_sample_fraction(log_weights) - 1) / n
    spread = norm.ppf(0.975) * math.sqrt(max(relative_variance, 0.0))
    return LogZ(value, value - spread, value + spread)


def basin_free_energies(ensemble: Ensemble, basins: Mapping[str, str], verdict: Verdict | None = None) -> FreeEnergies:
    """Free energy of each basin against all else.

    Parameters
    ----------
    ensemble : Ensemble
    basins : {name: expression}
        Named torsions in degrees, distances in nm.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    """
    ensemble = ensemble.unbiased()
    molecule = ensemble.require_molecule()
    results = {}
    for name, expression in basins.items():
        inside = np.asarray(parse_basin(expression, molecule).contains(ensemble.positions))
        results[name] = _basin(name, expression, ensemble, inside)
    return FreeEnergies(results, verdict or ensemble.verdict())


@dataclass(frozen=True)
class Perturbation:
    """Free-energy difference from one energy function to another on the same atoms, with a 95 % interval.

    Attributes
    ----------
    delta_f_kT, low_kT, high_kT : float
        In units of kT.
    kT : float
        kJ/mol.
    ess_fraction : float
        Effective sample size under the other energy, over n: small where the two hardly overlap.
    verdict : Verdict
        On the weights under the other energy.
    """

    delta_f_kT: float
    low_kT: float
    high_kT: float
    kT: float
    ess_fraction: float
    verdict: Verdict

    @property
    def delta_f_kJ_per_mol(self) -> float:
        return self.delta_f_kT * self.kT

    @property
    def delta_f_kcal_per_mol(self) -> float:
        return self.delta_f_kT * self.kT / KJ_PER_KCAL

    def __str__(self) -> str:
        half = 0.5 * (self.high_kT - self.low_kT)
        value = f"ΔF = {self.delta_f_kT:.3f} ± {half:.3f} kT = {self.delta_f_kJ_per_mol:.2f} kJ/mol"
        return f"{value} (95 %; ESS under the other energy {self.ess_fraction:.1%})\nverdict: {self.verdict}"


def perturb(ensemble: Ensemble, other: Molecule | Potential) -> Perturbation:
    """Free energy of another energy function minus that of the ensemble's own, at the same temperature and domain.

    One-sided: ``-kT ln <exp(-(U_other - U) / kT)>`` over the weighted ensemble, with a delta-method interval.

    Parameters
    ----------
    ensemble : Ensemble
        Independent samples with energies.
    other : Molecule or Potential
        On the same atoms in the same order.

    Raises
    ------
    ValueError
        If the ensemble has no energies, or its samples are correlated.
    PotentialError
        If the number of atoms differs.

    References
    ----------
    Zwanzig, J. Chem. Phys. 22, 1420 (1954); Felardos, Hénin, Charpiat (2022), equation 8.
    """
    import torch

    from boltzgen.energy import potential as choose_potential

    if ensemble.energies is None or ensemble.groups is not None:
        raise ValueError("a perturbation needs independent samples with energies, as a generator draws them")
    ensemble = ensemble.unbiased()
    target = choose_potential(other) if hasattr(other, "topology") else other
    with torch.no_grad():
        energies = target(torch.as_tensor(ensemble.positions).double()).numpy()
    n_undefined = int(np.isnan(energies).sum())
    here = ensemble.log_weights
    with np.errstate(invalid="ignore"):
        there = here - (energies - ensemble.energies) / ensemble.kT
    there = np.where(np.isfinite(here) & ~np.isnan(energies), there, -np.inf)
    difference = float(logsumexp(here) - logsumexp(there))
    influence = normalized_weights(there) - normalized_weights(here)
    spread = float(norm.ppf(0.975) * np.sqrt(np.square(influence).sum()))
    judged = verdict_on(there, ensemble.n_defects + n_undefined)
    ess = effective_sample_fraction(there)
    return Perturbation(difference, difference - spread, difference + spread, ensemble.kT, ess, judged)


def _basin(name: str, expression: str, ensemble: Ensemble, inside: np.ndarray) -> BasinFreeEnergy:
    weights = normalized_weights(ensemble.log_weights)
    probability = float(min(max(weights[inside].sum(), 0.0), 1.0))
    if ensemble.groups is None:
        error, quantile, method = _delta_method(weights, inside, probability)
    else:
        error, quantile, method = _jackknife(weights, inside, ensemble.groups)
    if not inside.any() or inside.all() or probability in (0.0, 1.0):
        value = math.inf if probability < 0.5 else -math.inf
        low, high = (-math.inf, math.inf)
    else:
        value = -math.log(probability / (1 - probability))
        low, high = value - quantile * error, value + quantile * error
    return BasinFreeEnergy(
        name, expression, probability, value, low, high, ensemble.kT, len(weights), int(inside.sum()), method
    )


def _delta_method(weights: np.ndarray, inside: np.ndarray, probability: float) -> tuple[float, float, str]:
    """Standard error of log[P/(1-P)] of a self-normalised importance estimate of independent samples.

    The influence of sample i on the log-odds is ``w_i (1_A - P) / (P (1 - P))`` (Owen, Monte Carlo theory, 9.2).
    """
    spread = probability * (1 - probability)
    if spread == 0:
        return math.inf, float(norm.ppf(0.975)), "importance sampling, delta method"
    influence = weights * (inside - probability) / spread
    return float(np.sqrt(np.square(influence).sum())), float(norm.ppf(0.975)), "importance sampling, delta method"


def _jackknife(weights: np.ndarray, inside: np.ndarray, groups: np.ndarray) -> tuple[float, float, str]:
    """Standard error of log[P/(1-P)] by leaving out one independent group at a time."""
    labels = np.unique(groups)
    totals = np.array([[weights[m].sum(), weights[m & inside].sum()] for m in (groups == label for label in labels)])
    remaining, remaining_inside = totals.sum(axis=0)[:, None] - totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(remaining_inside) - np.log(remaining - remaining_inside)
    n = len(labels)
    error = float(np.sqrt((n - 1) * np.var(values))) if n > 1 and np.isfinite(values).all() else math.inf
    quantile = float(student_t.ppf(0.975, n - 1)) if n > 1 else math.inf
    return error, quantile, f"jackknife over {n} independent groups"
