"""Reference free energies: by parallel tempering for any molecule, and those that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.energy import Potential
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower
from boltzgen.sampling.domain import domain_of
from boltzgen.sampling.parallel_tempering import parallel_tempering
from boltzgen.sampling.run import SamplingRun, in_kelvin

if TYPE_CHECKING:
    from boltzgen.free_energy import BasinFreeEnergy, FreeEnergies

__all__ = ["BUDGETS", "Reference", "ReferenceSummary", "reference", "shipped_reference"]

# Energy evaluations.
BUDGETS = {"quick": 5_000_000, "standard": 50_000_000, "thorough": 500_000_000}


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference run and what it says about the basins.

    Attributes
    ----------
    run : SamplingRun
        Frames inside the domain; `run.outside` is the share that was left out.
    free_energies : FreeEnergies
        Errors from the independent ladders.
    """

    run: SamplingRun
    free_energies: FreeEnergies

    @property
    def outside(self) -> float:
        """Share of the frames outside the domain."""
        return self.run.outside


def reference(
    molecule: Any,
    basins: Mapping[str, str],
    budget: str | int = "standard",
    *,
    potential: Potential | None = None,
    domain: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
    progress: bool | StepsShower = False,
    **options: Any,
) -> Reference:
    """Free energies by parallel tempering, with errors from independent ladders of walkers.

    Needs no knowledge of good variables. Hot replicas may leave the domain of the generator (cis amides); such frames
    are left out and their share is returned.

    Parameters
    ----------
    molecule : Molecule
        The system; its temperature is the target.
    basins : {name: expression}
        As for `Ensemble.free_energy`.
    budget : "quick", "standard", "thorough" or int
        Energy evaluations.
    potential : Potential, optional
        As in `parallel_tempering`.
    domain : callable, optional
        From positions (n, N, 3) in nm to (n,) bool; the domain of the molecule's own structure when absent.
    seed, progress, **options
        As in `parallel_tempering`.

    Raises
    ------
    PotentialError
        Unknown budget, or one too small for a single saved frame.
    """
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise PotentialError(f"budget must be {', '.join(BUDGETS)} or a number of evaluations, not {budget!r}")
        budget = BUDGETS[budget]
    n_replicas, n_walkers = options.pop("n_replicas", 8), options.pop("n_walkers", 64)
    run = parallel_tempering(
        molecule,
        potential,
        n_steps=budget // (n_replicas * n_walkers),
        n_replicas=n_replicas,
        n_walkers=n_walkers,
        seed=seed,
        progress=progress,
        **options,
    )
    inside = (domain or domain_of(molecule))(run.ensemble.positions)
    run = run.restricted(np.asarray(inside, dtype=bool))
    return Reference(run, run.free_energy(basins))


@dataclass(frozen=True)
class ReferenceSummary:
    """A converged reference that ships with the package.

    Attributes
    ----------
    system, method, domain, command : str
        What was sampled, how, in which region, and the command that did it.
    temperature : float
        K.
    free_energies : dict
        By basin name: expression, probability, delta_f_kT with low, high and half width, evaluations, seconds.
    checks : dict
        Runs from different starts and at half the time step, and how far they differ.
    """

    system: str
    temperature: float
    method: str
    domain: str
    command: str
    free_energies: dict[str, dict[str, Any]]
    checks: dict[str, Any]
    raw: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)

    @cached_property
    def ramachandran(self) -> np.ndarray:
        """Probability of each of (n, n) cells of phi (first index) and psi, from -180 degrees."""
        return np.array(self.raw["histogram"]["probability"], dtype=np.float64)

    def basin(self, name: str, kT: float) -> BasinFreeEnergy:
        """A basin of the summary as the type that ensembles return; kT in kJ/mol."""
        from boltzgen.free_energy import BasinFreeEnergy

        entry = self.free_energies[name]
        return BasinFreeEnergy(
            name=name,
            expression=entry["expression"],
            probability=entry["probability"],
            value=entry["delta_f_kT"],
            low=entry["delta_f_kT_low"],
            high=entry["delta_f_kT_high"],
            kT=kT,
            n_samples=entry["frames"],
            n_in_basin=entry["frames_in_basin"],
            method="converged reference",
        )


def shipped_reference(molecule: Any) -> ReferenceSummary | None:
    """The converged reference for exactly this System at this temperature, or None.

    Parameters
    ----------
    molecule : Molecule
        Compared by its terms and parameters in atom order, not by name.
    """
    from boltzgen.energy.fingerprint import fingerprint

    key: str | None = None
    for entry in resources.files("boltzgen").joinpath("data").iterdir():
        if not (entry.name.startswith("reference_") and entry.name.endswith(".json")):
            continue
        raw = json.loads(entry.read_text(encoding="utf-8"))
        if abs(raw["temperature_K"] - in_kelvin(molecule.temperature)) > 1e-6:
            continue
        try:
            key = key or fingerprint(molecule.system)
        except PotentialError:
            return None
        if raw.get("fingerprint") == key:
            names = ("system", "method", "domain", "command", "free_energies", "checks")
            return ReferenceSummary(temperature=raw["temperature_K"], raw=raw, **{name: raw[name] for name in names})
    return None
