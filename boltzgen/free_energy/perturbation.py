"""One-sided free-energy differences: from the energy function of an ensemble to another one on the same atoms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from boltzgen.diagnostics import effective_sample_fraction
from boltzgen.errors import EstimateError
from boltzgen.free_energy.estimate import EnergyEstimate, judged
from boltzgen.progress import shown_steps
from boltzgen.uncertainty import smooth_interval

if TYPE_CHECKING:
    from boltzgen.energy import Potential
    from boltzgen.ensemble import Ensemble
    from boltzgen.molecule import Molecule

__all__ = ["Perturbation", "energies_under", "perturb"]

BATCH = 65_536


@dataclass(frozen=True, kw_only=True, repr=False)
class Perturbation(EnergyEstimate):
    """Free-energy difference from one energy function to another on the same atoms.

    Attributes
    ----------
    ensemble : Ensemble
        The samples with their weights under the other energy: for its basins, profiles and observables.
    """

    ensemble: Ensemble

    @property
    def ess_fraction(self) -> float:
        """Effective sample size under the other energy, over n: small where the two hardly overlap."""
        return self.ensemble.ess_fraction


def perturb(
    ensemble: Ensemble,
    other: Molecule | Potential,
    *,
    interval: str = "delta",
    replicates: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Perturbation:
    """Free energy of another energy function minus that of the ensemble's own, at the same temperature and domain.

    One-sided: ``-kT ln <exp(-(U_other - U) / kT)>`` over the weighted ensemble.

    Parameters
    ----------
    ensemble : Ensemble
        With energies.
    other : Molecule or Potential
        On the same atoms in the same order.
    interval, replicates, seed
        As in `basin_free_energies`.
    progress : bool
        Show how many of the samples have been evaluated.

    Raises
    ------
    EstimateError
        If the ensemble has no energies.
    PotentialError
        If the number of atoms differs.

    References
    ----------
    Zwanzig, J. Chem. Phys. 22, 1420 (1954); Felardos, Hénin, Charpiat (2022), equation 8.
    """
    if ensemble.energies is None:
        raise EstimateError("a perturbation needs the energies of the samples, as a generator or a sampler keeps them")
    ensemble = ensemble.unbiased()
    energies = energies_under(other, ensemble, progress)
    undefined = np.isnan(energies)
    here = ensemble.log_weights
    with np.errstate(invalid="ignore"):
        there = here - (energies - ensemble.energies) / ensemble.kT
    there = np.where(np.isfinite(here) & ~undefined, there, -np.inf)
    perturbed = replace(
        ensemble,
        log_weights=there,
        energies=energies,
        molecule=cast("Molecule", other) if hasattr(other, "topology") else ensemble.molecule,
        n_infinite=int(np.isneginf(there).sum()),
        n_defects=ensemble.n_defects + int(undefined.sum()),
    )
    offsets = here.max(), there.max()
    features = np.stack([np.exp(w - offset) for w, offset in zip((here, there), offsets, strict=True)], axis=1)
    found = smooth_interval(
        features,
        lambda sums: np.log(sums[:, 0] / sums[:, 1]) + offsets[0] - offsets[1],
        ensemble.sampling,
        interval=interval,
        replicates=replicates,
        seed=seed,
    )
    return Perturbation(
        name="ΔF",
        value=found.value,
        low=found.low,
        high=found.high,
        kT=ensemble.kT,
        method=f"one-sided perturbation, {found.method}",
        n_samples=len(ensemble),
        diagnostics={
            "ESS": effective_sample_fraction(here),
            "ESS under the other energy": effective_sample_fraction(there),
        },
        verdict=judged(perturbed.verdict(), found),
        ensemble=perturbed,
    )


def energies_under(other: Molecule | Potential, ensemble: Ensemble, progress: bool = False) -> np.ndarray:
    """Energies (n,) in kJ/mol of the samples under any energy function, in float64; see `Potential`."""
    from boltzgen.energy import potential as choose_potential

    _check_constraints(other, ensemble)
    target = choose_potential(other) if hasattr(other, "topology") else other
    with torch.no_grad():
        parts = torch.as_tensor(ensemble.positions).split(BATCH)
        steps = range(len(parts))
        shown = shown_steps(steps, "energies of the samples") if progress else steps
        return np.concatenate([target(parts[k].double()).cpu().numpy() for k in shown])


def _check_constraints(other: Molecule | Potential, ensemble: Ensemble) -> None:
    """Samples of a molecule with constraints say nothing of one without: all have the same bond lengths."""
    theirs = getattr(other, "constraints", None)
    if theirs is not None and ensemble.molecule is not None and theirs != ensemble.molecule.constraints:
        raise EstimateError(
            f"the samples keep {len(ensemble.molecule.constraints)} constraints, the other molecule {len(theirs)} or "
            "others: build both Systems with the same"
        )
