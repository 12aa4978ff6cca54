"""References for a run: parallel tempering on the spot, and converged results that are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from boltzgen.free_energy import BasinFreeEnergy
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule
from boltzgen.schedules import Schedule

if TYPE_CHECKING:
    from boltzgen.sampling import SamplingRun

__all__ = ["parallel_tempering", "shipped"]


def parallel_tempering(
    generator: BoltzmannGenerator, schedule: Schedule, seed: int, progress: bool = False
) -> SamplingRun:
    """Reference samples of the generator's molecule and potential.

    Other isomers (cis amides, for one), which hot replicas reach and the generator by design does not, are left out.

    Parameters
    ----------
    schedule : Schedule
        Says how many steps the budget affords.
    progress : bool
        Whether to show a bar.
    """
    from boltzgen.sampling import parallel_tempering as sample
    from boltzgen.sampling.domain import domain_of

    molecule = generator.molecule
    run = sample(
        molecule,
        generator.potential,
        n_steps=schedule.reference_steps,
        seed=seed,
        device=generator.device,
        progress=progress,
    )
    if schedule.config.omega == "trans":
        run = run.restricted(domain_of(molecule)(run.ensemble.positions))
    return run


def shipped(molecule: Molecule, basins: Mapping[str, str]) -> dict[str, BasinFreeEnergy]:
    """The converged reference for these basins of this very System, where the package has one."""
    return {}
