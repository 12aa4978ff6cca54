"""Two-sided free-energy differences by Bennett's acceptance ratio, for weighted samples of either side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit

from boltzgen.diagnostics import Verdict
from boltzgen.energy.orientation import log_rigid_integral
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import EnergyEstimate, LogZ, judged, log_z_unit
from boltzgen.free_energy.perturbation import energies_under
from boltzgen.uncertainty import Deviation, Interval, Sampling, combined, deviation, jackknife

if TYPE_CHECKING:
    from boltzgen.energy import Potential
    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule

__all__ = ["Side", "bar", "bar_log_z", "bennett", "log_z_bar", "weigh_reference"]

LEAST_OVERLAP = 0.03  # the share that pymbar's users are told to have at least between neighbouring states


@dataclass(frozen=True, eq=False)
class Side:
    """Samples of one of two states.

    Attributes
    ----------
    work : (n,) array
        Reduced energy of the second state minus that of the first, at these samples.
    weights : (n,) array
        Statistical weights of the samples, normalised.
    sampling : Sampling
    """

    work: np.ndarray
    weights: np.ndarray
    sampling: Sampling = field(default_factory=Sampling)


def bennett(first: Side, second: Side) -> tuple[Interval, float]:
    """Reduced free energy of the second state minus that of the first, and the overlap of the two.

    Solved for C is ``<1/(1+exp(W-C))>_0 n_0 = <1/(1+exp(C-W))>_1 n_1``, with Kish's effective numbers of samples;
    the difference is ``C - ln(n_1/n_0)``. At the solution it does not change with C to first order, so the error is
    that of the two averages.

    Returns
    -------
    interval, overlap : Interval, float
        The overlap is the sum of the two averages: one for equal states, zero for disjoint ones.

    Raises
    ------
    EstimateError
        If no sample of one side has a finite energy under the other.

    References
    ----------
    Bennett, J. Comput. Phys. 22, 245 (1976); Shirts and Pande, J. Chem. Phys. 122, 144107 (2005), equation 8.
    """
    log_ratio = math.log(_effective(second) / _effective(first))
    finite = np.concatenate([side.work[np.isfinite(side.work) & (side.weights > 0)] for side in (first, second)])
    if not len(finite):
        raise EstimateError("the two states share no configuration: no sample of one has a finite energy in the other")
    constant = _solve(first, second, log_ratio, float(finite.min()) - 50, float(finite.max()) + 50)
    forward, part_first = _log_mean(expit(constant - first.work), first)
    backward, part_second = _log_mean(expit(second.work - constant), second)
    value = constant + backward - forward
    return combined(part_first, part_second).about(value), math.exp(forward) + math.exp(backward)


def bar(
    first: Ensemble,
    second: Ensemble,
    first_energy: Molecule | Potential | None = None,
    second_energy: Molecule | Potential | None = None,
    *,
    progress: bool = False,
) -> EnergyEstimate:
    """Free energy of the second ensemble's energy function minus that of the first, by Bennett's acceptance ratio.

    Either ensemble may come from a generator, a sampler, or annealed importance; weights are taken into account.

    Parameters
    ----------
    first, second : Ensemble
        Of the same atoms at the same temperature.
    first_energy, second_energy : Molecule or Potential, optional
        The energy functions; those of the ensembles' molecules if absent.
    progress : bool
        Show how many of the samples have been evaluated.

    Raises
    ------
    EstimateError
        If the temperatures differ, an energy function is not known, or the two share no configuration.
    """
    if not math.isclose(first.kT, second.kT, rel_tol=1e-9):
        raise EstimateError(f"the ensembles have different temperatures, kT = {first.kT:g} and {second.kT:g} kJ/mol")
    pair = first.unbiased(), second.unbiased()
    sides = []
    for ensemble in pair:
        reduced = [
            own_energies(ensemble, energy, ensemble is owner, progress) / ensemble.kT
            for owner, energy in zip(pair, (first_energy, second_energy), strict=True)
            for energy in [energy if energy is not None else owner.molecule]
        ]
        with np.errstate(invalid="ignore"):
            work = np.where(np.isfinite(reduced[0]) | np.isfinite(reduced[1]), reduced[1] - reduced[0], 0.0)
        sides.append(Side(work, np.where(np.isnan(work), 0.0, ensemble.weights), ensemble.sampling))
    found, overlap = bennett(sides[0], sides[1])
    return EnergyEstimate(
        name="ΔF",
        value=found.value,
        low=found.low,
        high=found.high,
        kT=first.kT,
        method=f"Bennett's acceptance ratio, {found.method}",
        n_samples=len(first) + len(second),
        diagnostics={"overlap": overlap},
        verdict=_two_sided_verdict(first, second, found, overlap),
    )


def own_energies(
    ensemble: Ensemble, energy: Molecule | Potential | None, is_own: bool, progress: bool = False
) -> np.ndarray:
    """Energies (n,) in kJ/mol: those kept with the samples where the energy function is their own."""
    if is_own and ensemble.energies is not None:
        return ensemble.energies
    if energy is None:
        raise EstimateError("an energy function is needed: give a Potential, or ensembles that have a molecule")
    return energies_under(energy, ensemble, progress)


def weigh_reference(generator: BoltzmannGenerator, reference: Ensemble) -> np.ndarray:
    """log p~ - log q (n,) of reference samples, as `Ensemble.unbiased` has it of generated ones.

    It is +inf outside the domain of the generator.

    With an alignment penalty p~ is exp(-U/kT - penalty) / G, whose shapes are those of exp(-U/kT). Samples of the
    latter, which know of shapes only, are turned and moved at random as the penalty has it. Rotations beyond its cap
    are left out (`draw_rigid_motions`), as a generator leaves them out: log Z lacks their share, which is 8 % for a
    chain of four carbons at 1000 nm^-2 and nothing at 1e5 nm^-2.
    """
    energies = reference.energies if reference.energies is not None else generator.energies(reference.positions)
    if generator.alignment is None:
        return generator.log_weights_of(reference.positions, energies)
    positions = generator.oriented(torch.as_tensor(reference.positions, device=generator.device))
    log_rigid = log_rigid_integral(generator.alignment, positions).cpu().numpy()
    return generator.log_weights_of(positions.cpu().numpy(), energies) - log_rigid


def bar_log_z(generator: BoltzmannGenerator, generated: Ensemble, reference: Ensemble) -> LogZ:
    """log Z by Bennett's acceptance ratio between samples of a generator and reference samples of its target.

    Reference samples tell how much of the target the generator misses, which importance sampling cannot see.

    Parameters
    ----------
    generator : BoltzmannGenerator
        That drew ``generated``.
    reference : Ensemble
        From a sampler of the same energy function.
    """
    generated, reference = generated.unbiased(), reference.unbiased()
    found, overlap = bennett(
        Side(-generated.log_weights, np.full(len(generated), 1 / len(generated)), generated.sampling),
        Side(-weigh_reference(generator, reference), reference.weights, reference.sampling),
    )
    return LogZ(
        name="log Z",
        value=-found.value,
        low=-found.high,
        high=-found.low,
        unit=log_z_unit(generated),
        kT=generated.kT,
        method=f"Bennett's acceptance ratio, {found.method}",
        n_samples=len(generated) + len(reference),
        diagnostics={"overlap": overlap},
        verdict=_two_sided_verdict(generated, reference, found, overlap),
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
    """
    n = len(generated_log_weights)
    first = Side(-generated_log_weights, np.full(n, 1 / n))
    second = Side(-reference_log_weights, reference_weights / reference_weights.sum())
    return -bennett(first, second)[0].value


def _effective(side: Side) -> float:
    return float(1 / np.square(side.weights).sum())


def _solve(first: Side, second: Side, log_ratio: float, low: float, high: float) -> float:
    def imbalance(constant: float) -> float:
        forward = first.weights @ expit(constant - first.work)
        backward = second.weights @ expit(second.work - constant)
        return float(np.log(max(forward, 1e-300)) - np.log(max(backward, 1e-300)) - log_ratio)

    if imbalance(low) > 0 or imbalance(high) < 0:
        raise EstimateError("the two states share no configuration: no sample of one has a finite energy in the other")
    return float(brentq(imbalance, low, high, xtol=1e-10))


def _log_mean(values: np.ndarray, side: Side) -> tuple[float, Deviation]:
    """Log of a weighted mean, and its deviation."""
    features = side.weights[:, None] * np.stack([values, np.ones(len(values))], axis=1)
    value, contributions = jackknife(features, lambda sums: np.log(sums[:, 0] / sums[:, 1]), side.sampling)
    return value, deviation(contributions, side.sampling)


def _two_sided_verdict(first: Ensemble, second: Ensemble, found: Interval, overlap: float) -> Verdict:
    """The worse of the two ensembles' verdicts; refused where the two hardly overlap."""
    for ensemble in (first, second):
        own = ensemble.verdict()
        if own.verdict == "do not use":
            return own
    if overlap < LEAST_OVERLAP:
        return Verdict("do not use", f"the two ensembles overlap by only {overlap:.1%}")
    return judged(Verdict(first.verdict().verdict, f"the two ensembles overlap by {overlap:.0%}"), found)
