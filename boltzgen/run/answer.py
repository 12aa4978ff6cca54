"""The answer of a run: the numbers of ``result.json``, and the same as a short text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from boltzgen.diagnostics import Verdict, verdict
from boltzgen.ensemble import ALL_ATOMS
from boltzgen.free_energy import KJ_PER_KCAL, BasinFreeEnergy, FreeEnergies
from boltzgen.progress import format_duration
from boltzgen.run.comparison import OUTSIDE_LIMIT, Comparison, disagreement

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble
    from boltzgen.placement import PlacementAccuracy

__all__ = ["ONE_BASIN", "Recheck", "final_verdict", "format_answer", "recheck_energies", "result_values"]

N_RECHECK = 1000
RECHECK_LIMIT_KT = 0.02  # single-precision platforms of OpenMM stay below
PLACEMENT_LIMIT_KT = 0.1  # mean energy of placed hydrogens above their minimum; as much may enter a free energy
UNCHECKED = "consistent; missing modes not checked"
ONE_BASIN = (
    "Cartesian coordinates start in one basin and find others in data, of which this training sees none: let "
    "--reference look for what is missing, or pre-train on data in Python (boltzgen.pretrain)"
)


@dataclass(frozen=True)
class Recheck:
    """Energies computed again by OpenMM itself.

    Attributes
    ----------
    n : int
    max_abs_difference_kJ_per_mol : float
        NaN where none of them has a finite energy.
    platform : str
    """

    n: int
    max_abs_difference_kJ_per_mol: float
    platform: str


def recheck_energies(ensemble: Ensemble, n: int = N_RECHECK, seed: int = 0) -> Recheck:
    """Compare energies of the samples with OpenMM's Reference platform.

    The heaviest tenth of the chosen samples is there by weight, the others by chance.

    Parameters
    ----------
    ensemble : Ensemble
        With molecule and energies.
    n : int
        Number of samples, or all if there are fewer.
    """
    from boltzgen.energy import OpenMMPotential

    n = min(n, len(ensemble))
    order = np.argsort(-ensemble.log_weights, kind="stable")
    heaviest, others = order[: max(n // 10, 1)], order[max(n // 10, 1) :]
    chance = np.random.default_rng(seed).choice(others, size=n - len(heaviest), replace=False)
    chosen = np.concatenate([heaviest, chance])
    potential = OpenMMPotential(ensemble.molecule, platform="Reference")
    theirs = potential(torch.as_tensor(ensemble.positions[chosen]).double()).numpy()
    assert ensemble.energies is not None
    ours = ensemble.energies[chosen]
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if (np.isfinite(ours) != np.isfinite(theirs)).any():
        return Recheck(n, math.inf, "Reference")
    return Recheck(n, float(np.abs(ours[finite] - theirs[finite]).max()) if finite.any() else math.nan, "Reference")


def final_verdict(
    ensemble: Ensemble,
    free_energies: FreeEnergies,
    comparison: Comparison | None,
    shipped: Mapping[str, BasinFreeEnergy],
    recheck: Recheck,
    *,
    starts_in_one_basin: bool = False,
    placement: PlacementAccuracy | None = None,
) -> Verdict:
    """Join the weights, the reference samples if there are any, the shipped reference, and OpenMM's energies.

    Parameters
    ----------
    starts_in_one_basin : bool
        Whether the generator knew one basin only when its training began: without reference samples that find no other,
        its samples are not to be used.
    placement : PlacementAccuracy, optional
        Of a network that places hydrogens, on weighted samples.
    """
    found = _verdict(ensemble.unbiased(), free_energies, comparison, shipped, recheck, placement)
    if starts_in_one_basin and comparison is None:
        reason = ONE_BASIN if found.verdict == UNCHECKED else f"{found.reason}. {ONE_BASIN}"
        found = Verdict("do not use", reason)
    if ensemble.target:
        found = Verdict(found.verdict, f"{found.reason}; populations are those of {ensemble.target}")
    return found


def _verdict(
    ensemble: Ensemble,
    free_energies: FreeEnergies,
    comparison: Comparison | None,
    shipped: Mapping[str, BasinFreeEnergy],
    recheck: Recheck,
    placement: PlacementAccuracy | None,
) -> Verdict:
    empty = [name for name, basin in free_energies.items() if not math.isfinite(basin.delta_f_kT)]
    if empty:
        where = "all weight lies" if free_energies[empty[0]].probability > 0.5 else "no sample with weight lies"
        return Verdict("do not use", f"{where} in basin {empty[0]}: its free energy is not determined")
    problem = ""
    if comparison is not None:
        problem = disagreement(free_energies, comparison.free_energies, "the reference")
        if comparison.share_outside > OUTSIDE_LIMIT:
            problem = f"{comparison.share_outside:.2%} of the reference lies outside the domain of the generator"
    if not ensemble.target:  # the shipped one is of all atoms
        problem = problem or disagreement(free_energies, shipped, "the shipped reference")
    if placement is not None and not placement.mean_excess <= PLACEMENT_LIMIT_KT:
        problem = (
            f"the network leaves hydrogens {placement.mean_excess:.2g} kT above their minimum on average, more than "
            f"{PLACEMENT_LIMIT_KT} kT: train it longer (--budget)"
        )
    difference = recheck.max_abs_difference_kJ_per_mol
    if difference > RECHECK_LIMIT_KT * ensemble.kT:
        problem = f"energies differ from OpenMM's by up to {difference:.2g} kJ/mol"
    reliable = comparison is not None and comparison.sampling.verdict != "do not use"
    coverages = comparison.coverages if comparison is not None and reliable else None
    found = verdict(ensemble.log_weights, ensemble.n_defects, coverages, problem)
    if found.verdict == "do not use":
        return found
    if problem:
        return Verdict("do not use", problem)
    if comparison is not None and not reliable:
        return Verdict(UNCHECKED, f"the reference cannot tell: {comparison.sampling.reason}")
    return found


def result_values(
    ensemble: Ensemble,
    free_energies: FreeEnergies,
    judged: Verdict,
    comparison: Comparison | None,
    shipped: Mapping[str, BasinFreeEnergy],
    recheck: Recheck,
) -> dict[str, Any]:
    """What the samples say, under the stable keys of ``result.json`` (evaluations and time are added by the run)."""
    ensemble = ensemble.unbiased()
    log_z = ensemble.log_z
    values: dict[str, Any] = {
        "target": ensemble.target or ALL_ATOMS,
        "n_samples": len(ensemble),
        "kT_kJ_per_mol": ensemble.kT,
        "ess_fraction": ensemble.ess_fraction,
        "pareto_k": ensemble.pareto_k,
        "max_weight": ensemble.max_weight,
        "log_z": log_z.value,
        "log_z_low": log_z.low,
        "log_z_high": log_z.high,
        "log_z_unit": log_z.unit,
        "n_infinite": ensemble.n_infinite,
        "n_lost": ensemble.n_lost,
        "n_defects": ensemble.n_defects,
        "verdict": judged.verdict,
        "verdict_reason": judged.reason,
        "free_energies": {name: basin.to_dict() for name, basin in free_energies.items()},
        "reference": {},
        "openmm_recheck": vars(recheck),
    }
    known = {name: basin.to_dict() | {"source": basin.method} for name, basin in shipped.items()}
    if comparison is None:
        return values | {"reference": known}
    measured = {
        name: basin.to_dict() | {"source": f"{comparison.source}, {basin.method}"}
        for name, basin in comparison.free_energies.items()
    }
    return values | {
        "reference": measured,
        "shipped_reference": known,
        "coverage": {name: value.coverage for name, value in comparison.coverages.items()},
        "population_ratio": {name: value.population_ratio for name, value in comparison.coverages.items()},
        "forward_ess": comparison.forward_ess,
        "log_z_bar": comparison.log_z,
        "reference_n_samples": len(comparison.reference),
        "reference_share_other_isomers": comparison.share_other_isomers,
        "reference_share_outside_domain": comparison.share_outside,
        "reference_round_trips": comparison.round_trips,
        "reference_swap_acceptance": list(comparison.swap_acceptance),
    }


def format_answer(result: Mapping[str, Any]) -> str:
    """The answer as a few aligned lines."""
    rows = [*_free_energy_rows(result), *_target_rows(result), *_quality_rows(result), *_training_rows(result)]
    rows.append(("verdict", f"{result['verdict']}: {result['verdict_reason']}"))
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(f"{label:<{width}}{text}" for label, text in rows)


def _free_energy_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not result["free_energies"]:
        return [("ΔF", "no basin was named: give one with --basin 'NAME: EXPRESSION'")]
    rows, kT = [], result["kT_kJ_per_mol"]
    for name, values in result["free_energies"].items():
        rows.append((f"ΔF({name})", f"{_estimate(values, kT)}  (95 %)"))
        for key, label in (("reference", "  reference"), ("shipped_reference", "  shipped")):
            theirs = result.get(key, {}).get(name)
            if theirs:
                rows.append((label, f"{_estimate(theirs, kT)}  ({theirs['source']})"))
    return rows


def _target_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The target, where it is not the distribution of all atoms, and how well it is met."""
    if result.get("target", ALL_ATOMS) == ALL_ATOMS:
        return []
    rows = [("target", f"{result['target']}; not the Boltzmann distribution of the molecule")]
    placement = result.get("placement")
    if placement:
        excess, distance = _number(placement["mean_excess"]), _number(1000 * placement["rms_nm"])
        rows.append(("hydrogens", f"{excess} kT above their minimum on average, {distance} pm from it (rms)"))
    return rows


def _quality_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    ess, k, recheck = result["ess_fraction"], _number(result["pareto_k"]), result["openmm_recheck"]
    log_z = f"{result['log_z']:.3f} [{result['log_z_low']:.3f}, {result['log_z_high']:.3f}]"
    rows = [
        ("weights", f"ESS {ess:.1%} of {result['n_samples']:,} samples, Pareto k {k}"),
        ("log Z", f"{log_z} ({result['log_z_unit']})" if result["log_z_unit"] else log_z),
    ]
    if "coverage" in result:
        covered = ", ".join(f"{name} {_number(value)}" for name, value in result["coverage"].items())
        rows.append(("coverage", f"{covered}; forward ESS {result['forward_ess']:.1%}"))
    difference = f"{recheck['max_abs_difference_kJ_per_mol']:.1e} kJ/mol on {recheck['n']:,} samples"
    spent = f"{result['energy_evaluations']:,} energy evaluations ({result['force_evaluations']:,} with forces)"
    rows.append(("OpenMM recheck", f"largest difference {difference}"))
    rows.append(("spent", f"{spent}, {format_duration(result['wall_seconds'])}"))
    return rows


def _training_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the user should know of the training."""
    events = result.get("training_events", [])
    return [("training", f"{event['kind']} at step {event['step']:,}: {event['message']}") for event in events]


def _estimate(values: Mapping[str, Any], kT: float) -> str:
    value = values["delta_f_kT"]
    if value is None or not math.isfinite(value):
        return f"not determined (population {values['probability']:.3g})"
    half = 0.5 * (values["delta_f_kT_high"] - values["delta_f_kT_low"])
    if not math.isfinite(half):
        return f"{value:6.2f} kT, without an error bar: too few independent samples"
    units = ((1.0, "kT"), (kT, "kJ/mol"), (kT / KJ_PER_KCAL, "kcal/mol"))
    return "  ".join(f"{value * scale:6.2f} ± {half * scale:.2f} {symbol}" for scale, symbol in units)


def _number(value: float | None) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.2f}"
