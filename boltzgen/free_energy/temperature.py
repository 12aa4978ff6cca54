"""Other temperatures from the same ensemble, and free energies split into energy and entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from openmm import unit

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import Verdict
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import EnergyEstimate, judged, sample_figures
from boltzgen.uncertainty import smooth_interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["Decomposition", "Reweighted", "at_temperature", "decompose"]

GAS_CONSTANT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


@dataclass(frozen=True, eq=False)
class Reweighted:
    """An ensemble at another temperature than the one it was weighted for.

    Attributes
    ----------
    ensemble : Ensemble
        The same samples with weights of the other temperature.
    temperature, temperature_before : float
        K.
    ess_fraction, ess_fraction_before : float
    """

    ensemble: Ensemble
    temperature: float
    temperature_before: float
    ess_fraction: float
    ess_fraction_before: float

    @property
    def verdict(self) -> Verdict:
        """On the weights at the other temperature."""
        return self.ensemble.verdict()

    def __str__(self) -> str:
        n = len(self.ensemble)
        return (
            f"{self.temperature_before:.1f} K to {self.temperature:.1f} K: ESS {self.ess_fraction_before:.1%} to "
            f"{self.ess_fraction:.1%} of {n:,} samples, {self.ess_fraction * n:,.0f} effective\n"
            f"verdict: {self.verdict}"
        )

    __repr__ = __str__


def at_temperature(ensemble: Ensemble, temperature: Any) -> Reweighted:
    """Weights of another temperature for the same samples, ``w exp[-(1/kT' - 1/kT) U]``, with the loss of ESS.

    Parameters
    ----------
    ensemble : Ensemble
        With energies.
    temperature : Quantity or float
        K without a unit.

    Raises
    ------
    EstimateError
        If the ensemble has no energies, or the temperature is not positive.
    """
    kelvin = _in_kelvin(temperature)
    if not kelvin > 0:
        raise EstimateError(f"the temperature must be above 0 K, not {kelvin:g}")
    ensemble = ensemble.unbiased()
    kT = GAS_CONSTANT * kelvin
    energies = _finite_energies(ensemble)
    log_weights = ensemble.log_weights - (1 / kT - 1 / ensemble.kT) * energies
    changed = replace(ensemble, log_weights=log_weights, kT=kT)
    return Reweighted(changed, kelvin, ensemble.kT / GAS_CONSTANT, changed.ess_fraction, ensemble.ess_fraction)


@dataclass(frozen=True)
class Decomposition:
    """A free energy as energy and entropy, ``F = U - T S``, of configurations (momenta left out).

    Attributes
    ----------
    free_energy, energy, minus_temperature_entropy : EnergyEstimate
        In kT; of the whole, or of a region less those of all else.
    """

    free_energy: EnergyEstimate
    energy: EnergyEstimate
    minus_temperature_entropy: EnergyEstimate

    def __str__(self) -> str:
        parts = (self.free_energy, self.energy, self.minus_temperature_entropy)
        values = [f"{part.name} = {part._value_text()}" for part in parts]
        return "\n".join([*values, f"(95 %; {self.free_energy.method})", f"verdict: {self.free_energy.verdict}"])

    __repr__ = __str__


def decompose(ensemble: Ensemble, region: str | np.ndarray | None = None, **options: Any) -> Decomposition:
    """Split a free energy into energy and entropy.

    Parameters
    ----------
    ensemble : Ensemble
        With energies. For another temperature, that of `at_temperature`.
    region : str or (n,) bool array, optional
        A basin: its differences to all else. The absolute values if absent, F = -kT log Z with Z in nm^d, d the
        dimension of the ensemble.
    **options
        `interval`, `replicates` and `seed` as in `basin_free_energies`.

    Raises
    ------
    EstimateError
        If the ensemble has no energies, or is a chain and no region is given (it does not know log Z).
    """
    ensemble = ensemble.unbiased()
    reduced = _finite_energies(ensemble) / ensemble.kT
    largest = float(np.max(ensemble.log_weights))
    weights = np.exp(ensemble.log_weights - largest)
    if region is None:
        if ensemble.kind == "chain":
            raise EstimateError("a chain does not know log Z; give a region to split its free energy")
        features = np.stack([weights, weights * reduced, np.ones(len(weights))], axis=1)
        functions = _absolute(largest)
        labels = ("F", "U", "-TS")
    else:
        inside = region
        if isinstance(region, str):
            basin = parse_basin(region, ensemble.require_molecule())
            inside = np.asarray(basin.contains(ensemble.positions))
        inside = np.asarray(inside, dtype=bool)
        features = np.stack([weights * inside, weights * ~inside], axis=1)
        features = np.concatenate([features, features * reduced[:, None]], axis=1)
        functions = (_free_energy, _energy, lambda sums: _free_energy(sums) - _energy(sums))
        labels = ("ΔF", "ΔU", "-TΔS")
    verdict, figures = ensemble.verdict(), sample_figures(ensemble)
    estimates = []
    for label, function in zip(labels, functions, strict=True):
        found = smooth_interval(features, function, ensemble.sampling, **options)
        estimates.append(
            EnergyEstimate(
                name=label,
                value=found.value,
                low=found.low,
                high=found.high,
                kT=ensemble.kT,
                method=found.method,
                n_samples=len(ensemble),
                diagnostics=figures,
                verdict=judged(verdict, found),
            )
        )
    return Decomposition(*estimates)


Function = Callable[[np.ndarray], np.ndarray]


def _absolute(largest: float) -> tuple[Function, Function, Function]:
    """F, U and -TS in kT from sums of (w, w u, 1)."""
    free_energy = lambda sums: -largest - np.log(sums[:, 0] / sums[:, 2])
    energy = lambda sums: sums[:, 1] / sums[:, 0]
    return free_energy, energy, lambda sums: free_energy(sums) - energy(sums)


def _free_energy(sums: np.ndarray) -> np.ndarray:
    """ΔF in kT from sums of (w in, w out, w u in, w u out)."""
    return np.asarray(np.log(sums[:, 1]) - np.log(sums[:, 0]))


def _energy(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 2] / sums[:, 0] - sums[:, 3] / sums[:, 1])


def _finite_energies(ensemble: Ensemble) -> np.ndarray:
    """Energies (n,) in kJ/mol, zero where they are infinite (and the weight is zero)."""
    if ensemble.energies is None:
        raise EstimateError("the energies of the samples are needed, as a generator or a sampler keeps them")
    return np.where(np.isfinite(ensemble.energies), ensemble.energies, 0.0)


def _in_kelvin(temperature: Any) -> float:
    kelvin = temperature.value_in_unit(unit.kelvin) if unit.is_quantity(temperature) else temperature
    return float(kelvin) if math.isfinite(float(kelvin)) else math.nan
