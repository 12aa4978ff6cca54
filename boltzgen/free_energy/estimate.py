"""What every estimator returns: value, 95 % interval, unit, method, sample counts, diagnostics and verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from boltzgen.diagnostics import Verdict, halving_deviation
from boltzgen.errors import EstimateError
from boltzgen.uncertainty import Interval

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble

__all__ = ["KJ_PER_KCAL", "EnergyEstimate", "Estimate", "LogZ", "judged", "log_z_unit", "sample_figures"]

KJ_PER_KCAL = 4.184


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """A value with its 95 % interval.

    Attributes
    ----------
    name : str
        What was estimated.
    value, low, high : float
        In `unit`; the interval is infinite where the samples cannot tell.
    unit : str
        Empty for pure numbers.
    method : str
        How value and interval were found.
    n_samples : int
        Samples behind it, those of weight zero included.
    diagnostics : {name: float}
    verdict : Verdict or None
        On these samples, for this estimate.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    method: str = ""
    n_samples: int = 0
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval."""
        return 0.5 * (self.high - self.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return {
            "name": self.name,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "method": self.method,
            "n_samples": self.n_samples,
            "diagnostics": dict(self.diagnostics),
            "verdict": None if self.verdict is None else str(self.verdict),
        }

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return self._text(self._value_text())

    def __repr__(self) -> str:
        return str(self)

    def _value_text(self) -> str:
        return _with_interval(self.value, self.low, self.high, self.unit)

    def _text(self, values: str) -> str:
        figures = ", ".join(f"{name} {_plain(value)}" for name, value in self.diagnostics.items())
        source = "; ".join(part for part in (self.method, f"{self.n_samples:,} samples", figures) if part)
        judged = "" if self.verdict is None else f"\nverdict: {self.verdict}"
        return f"{self.name} = {values}  (95 %; {source}){judged}"

    def _repr_html_(self) -> str:
        lines = str(self).split("\n")
        return f"<div><b>{escape(lines[0])}</b>" + "".join(f"<br>{escape(line)}" for line in lines[1:]) + "</div>"


@dataclass(frozen=True, kw_only=True, repr=False)
class EnergyEstimate(Estimate):
    """An energy or free energy in units of kT, which it can be read in others of.

    Attributes
    ----------
    kT : float
        kJ/mol.
    """

    unit: str = "kT"
    kT: float = 1.0

    @property
    def delta_f_kT(self) -> float:
        return self.value

    @property
    def low_kT(self) -> float:
        return self.low

    @property
    def high_kT(self) -> float:
        return self.high

    @property
    def half_width_kT(self) -> float:
        return self.half_width

    @property
    def delta_f_kJ_per_mol(self) -> float:
        return self.value_in("kJ/mol")

    @property
    def delta_f_kcal_per_mol(self) -> float:
        return self.value_in("kcal/mol")

    def value_in(self, unit: str) -> float:
        """The value in "kT", "kJ/mol" or "kcal/mol"."""
        return self.value * self._factor(unit)

    def interval_in(self, unit: str) -> tuple[float, float]:
        """The 95 % interval in "kT", "kJ/mol" or "kcal/mol"."""
        return self.low * self._factor(unit), self.high * self._factor(unit)

    def _factor(self, unit: str) -> float:
        factors = {"kT": 1.0, "kJ/mol": self.kT, "kcal/mol": self.kT / KJ_PER_KCAL}
        if unit not in factors:
            raise EstimateError(f"unit must be {', '.join(factors)}, not {unit!r}")
        return factors[unit]

    def _value_text(self) -> str:
        units = ("kT", "kJ/mol", "kcal/mol")
        return ", ".join(_with_interval(self.value_in(unit), *self.interval_in(unit), unit) for unit in units)


@dataclass(frozen=True, kw_only=True, repr=False)
class LogZ(Estimate):
    """log of the partition function of the domain, in the unit of Z: nm^d for a density of d coordinates.

    Attributes
    ----------
    kT : float or None
        kJ/mol, where it is known.
    """

    kT: float | None = None

    @property
    def free_energy_kJ_per_mol(self) -> float:
        """Absolute free energy ``-kT log Z`` of configurations: comparable between energy functions on the same atoms.

        Raises
        ------
        EstimateError
            If the temperature is not known.
        """
        if self.kT is None:
            raise EstimateError("this log Z comes without a temperature: take it from an ensemble, as ens.log_z")
        return -self.kT * self.value

    def _value_text(self) -> str:
        return _with_interval(self.value, self.low, self.high, f"(Z in {self.unit})" if self.unit else "")


def log_z_unit(ensemble: Ensemble) -> str:
    """What Z is measured in: one nm for each coordinate that can change; empty where their number is not known."""
    return "" if ensemble.dimension is None else f"nm^{ensemble.dimension}"


def sample_figures(ensemble: Ensemble) -> dict[str, float]:
    """Diagnostics of the weights of an ensemble that every estimate shows."""
    if ensemble.kind == "chain":
        return {"chains": float(ensemble.sampling.n_groups)}
    if ensemble.kind == "particles":
        return {"ESS": ensemble.ess_fraction, "repeats": float(ensemble.sampling.n_groups)}
    halves = halving_deviation(ensemble.log_weights)
    return {"ESS": ensemble.ess_fraction, "Pareto k": ensemble.pareto_k, "halves differ by (SE)": halves}


def judged(verdict: Verdict, interval: Interval) -> Verdict:
    """The verdict on an estimate, given that on its samples: refused where hardly any sample determines it."""
    if verdict.verdict == "do not use":
        return verdict
    if not math.isfinite(interval.value):
        return Verdict("do not use", "no sample determines it")
    if not interval.is_supported:
        return Verdict("do not use", f"it rests on too few samples, {interval.n_effective:.0f} effective contributions")
    return verdict


def _with_interval(value: float, low: float, high: float, unit: str) -> str:
    digits = _digits(low, high)
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] {unit}".rstrip()


def _digits(low: float, high: float) -> int:
    """Decimals that show two figures of the half-width, two at least."""
    half = 0.5 * (high - low)
    if not (math.isfinite(half) and half > 0):
        return 3
    return min(max(2, 1 - math.floor(math.log10(half))), 9)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
