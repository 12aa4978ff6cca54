"""A generated ensemble held against an independent reference: ΔF side by side, coverage, forward ESS, log Z by BAR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boltzgen.collective_variables import parse_basin
from boltzgen.diagnostics import Coverage, Verdict, coverage, forward_ess_fraction
from boltzgen.ensemble import Ensemble
from boltzgen.errors import BoltzgenError
from boltzgen.free_energy import BasinFreeEnergy, FreeEnergies
from boltzgen.free_energy.acceptance_ratio import log_z_bar, weigh_reference
from boltzgen.generator import BoltzmannGenerator

if TYPE_CHECKING:
    from boltzgen.sampling import SamplingRun

__all__ = ["Comparison", "compare", "disagreement"]

VETO = 3.29 / 1.96  # of 95 % half-widths: one good result in a thousand is refused, not one in twenty
OUTSIDE_LIMIT = 1e-4  # share of the reference that may lie beyond the generator's bounds


@dataclass(frozen=True)
class Comparison:
    """What reference samples say about a generated ensemble.

    Attributes
    ----------
    reference : Ensemble
        The reference samples inside the generator's domain.
    source : str
        The method, in words.
    share_other_isomers, share_outside : float
        Weight that the sampler left out as other isomers, and weight beyond the bounds of the generator.
    free_energies : FreeEnergies
        Of the reference.
    coverages : {basin: Coverage}
        Each basin and its complement, named ``not <basin>``.
    forward_ess : float
        1 / E_p[p/q].
    log_z : float
        By Bennett's acceptance ratio between both ensembles; modulo rigid motion, as that of internal coordinates.
    sampling : Verdict
        Of the sampler on itself.
    round_trips, swap_acceptance :
        Of its replicas, where it has any.
    """

    reference: Ensemble
    source: str
    share_other_isomers: float
    share_outside: float
    free_energies: FreeEnergies
    coverages: dict[str, Coverage]
    forward_ess: float
    log_z: float
    sampling: Verdict
    round_trips: int | None = None
    swap_acceptance: tuple[float, ...] = ()


def compare(
    generator: BoltzmannGenerator, generated: Ensemble, sampled: SamplingRun, basins: Mapping[str, str]
) -> Comparison:
    """Compare a generated ensemble with that of a sampler.

    Either side is weighted for exp(-U/kT): generated samples by `Ensemble.unbiased`, reference samples by
    `weigh_reference`, which turns them at random where the generator has an alignment penalty.

    Parameters
    ----------
    generator : BoltzmannGenerator
        That drew ``generated``.
    sampled : SamplingRun
        Of the same energy function.
    basins : {name: expression}

    Raises
    ------
    BoltzgenError
        If no reference sample lies in the generator's domain.
    """
    reference, molecule = sampled.ensemble, generated.molecule
    if molecule is None:
        raise BoltzgenError("only ensembles of molecules can be compared")
    # Samples outside the domain count in full: log weight +inf, so coverage and forward ESS are zero there.
    log_weights, weights = weigh_reference(generator, reference), reference.weights
    inside = log_weights < np.inf
    share_outside = float(weights[~inside].sum())
    if not inside.any():
        raise BoltzgenError("no reference sample lies in the domain of the generator: they are of different states")
    kept = reference[inside]
    log_z = log_z_bar(generated.unbiased().log_weights, log_weights[inside], weights[inside])
    coverages = {}
    for name, expression in basins.items():
        within = np.asarray(parse_basin(expression, molecule).contains(reference.positions))
        for label, chosen in ((name, within), (f"not {name}", ~within)):
            coverages[label] = coverage(log_z - log_weights, chosen, weights)
    forward = forward_ess_fraction(log_weights, weights, log_z)
    source = f"{sampled.method}, {sampled.evaluations:.2g} force evaluations"
    return Comparison(
        reference=kept,
        source=source,
        share_other_isomers=sampled.outside,
        share_outside=share_outside,
        free_energies=kept.free_energy(basins),
        coverages=coverages,
        forward_ess=forward,
        log_z=log_z,
        sampling=sampled.verdict(),
        round_trips=sampled.round_trips,
        swap_acceptance=tuple(float(share) for share in sampled.swap_acceptance),
    )


def disagreement(generated: FreeEnergies, reference: Mapping[str, BasinFreeEnergy], source: str) -> str:
    """The first basin whose ΔF differs from the reference beyond the joint 99.9 % interval; empty if none does."""
    for name, theirs in reference.items():
        ours = generated.get(name)
        if ours is None:
            continue
        difference = ours.delta_f_kT - theirs.delta_f_kT
        allowed = math.hypot(ours.half_width_kT, theirs.half_width_kT)
        if math.isfinite(theirs.delta_f_kT) and not abs(difference) <= VETO * allowed:
            return (
                f"ΔF({name}) differs from {source} by {difference:+.2f} kT, more than the joint 99.9 % interval "
                f"of {VETO * allowed:.2f} kT"
            )
    return ""
