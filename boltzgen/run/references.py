"""References for a run: parallel tempering on the spot, and converged results that ship with the package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzgen.errors import CheckpointError
from boltzgen.free_energy import BasinFreeEnergy
from boltzgen.generator import BoltzmannGenerator
from boltzgen.progress import shown_steps
from boltzgen.sampling import reference, shipped_reference

if TYPE_CHECKING:
    from boltzgen.run.schedules import Schedule
    from boltzgen.sampling import SamplingRun

__all__ = ["Shipped", "parallel_tempering", "shipped"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shipped:
    """What the package knows of this very System.

    Attributes
    ----------
    free_energies : {name: BasinFreeEnergy}
        Of the basins asked for; empty where nothing is known.
    ramachandran : (n, n) array or None
        Probability over phi and psi.
    """

    free_energies: dict[str, BasinFreeEnergy]
    ramachandran: np.ndarray | None = None


def parallel_tempering(
    generator: BoltzmannGenerator,
    schedule: Schedule,
    seed: int,
    stop: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
) -> SamplingRun:
    """Reference samples of the generator's molecule on the same energy.

    Other isomers (cis amides, for one), which hot replicas reach and the generator by design does not, are left out.

    Parameters
    ----------
    generator : BoltzmannGenerator
    schedule : Schedule
        Says how many evaluations the budget affords.
    seed : int
    stop : callable, optional
        Asked before each round; a true answer ends the sampling with the frames that there are.
    checkpoint : Path, optional
        See `boltzgen.sampling.parallel_tempering`; one that does not fit is thrown away.
    """
    everywhere = (lambda positions: np.ones(len(positions), bool)) if schedule.config.omega == "free" else None
    # A potential of its own: it is counted apart from the generator's, and compiled when that pays.
    sample = partial(
        reference,
        generator.molecule,
        {},
        schedule.reference_evaluations,
        domain=everywhere,
        seed=seed,
        device=generator.device,
        progress=lambda steps: shown_steps(steps, "parallel tempering", stop),
        checkpoint=checkpoint,
    )
    try:
        return sample().run
    except CheckpointError as error:
        assert checkpoint is not None
        log.warning("the reference begins anew: %s", error)
        checkpoint.unlink()
        return sample().run


def shipped(generator: BoltzmannGenerator, basins: Mapping[str, str], omega: str) -> Shipped:
    """The converged reference for these basins, known by their expressions, in the generator's domain."""
    summary = shipped_reference(generator.molecule) if omega == "trans" else None
    if summary is None:
        return Shipped({})
    known = {_plain(entry["expression"]): name for name, entry in summary.free_energies.items()}
    of_all_atoms = ", of all atoms: another target" if generator.other_target else ""
    source = f"converged reference{of_all_atoms}; {summary.command.strip()}"
    return Shipped(
        {
            name: replace(summary.basin(known[_plain(expression)], generator.kT), method=source)
            for name, expression in basins.items()
            if _plain(expression) in known
        },
        summary.ramachandran,
    )


def _plain(expression: str) -> str:
    return "".join(expression.split())
