"""The network that places hydrogens, in a run: its training, which may be interrupted, and how good it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from boltzgen.placement_training import PlacementAccuracy, PlacementTraining, placement_accuracy
from boltzgen.progress import shown_steps
from boltzgen.run.schedules import PLACEMENT_BATCH

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.run.schedules import Schedule

__all__ = ["accuracy_of", "kept", "training_of"]

N_COMPARED = 1000  # samples whose hydrogens are compared with their minimum


def training_of(generator: BoltzmannGenerator, schedule: Schedule, seed: int) -> PlacementTraining | None:
    """What teaches a network where hydrogens go; None for other kinds."""
    if not schedule.placement_steps:
        return None
    return PlacementTraining(generator, n_steps=schedule.placement_steps, batch_size=PLACEMENT_BATCH, seed=seed)


def kept(
    steps: Iterable[int],
    stop: Callable[[], bool],
    save: Callable[[], object],
    seconds: float,
    agree: Callable[[bool], bool],
) -> Iterator[int]:
    """The steps with a bar or lines of progress, and a checkpoint every so many seconds.

    Parameters
    ----------
    stop : callable
        Asked before each step; a true answer ends them.
    save : callable
        Writes the checkpoint.
    agree : callable
        The first process's decision, for all of them.
    """
    saved = time.monotonic()
    for step in shown_steps(steps, "placement of hydrogens", stop):
        yield step
        if agree(time.monotonic() - saved > seconds):
            save()
            saved = time.monotonic()


def accuracy_of(generator: BoltzmannGenerator, ensemble: Ensemble, seed: int) -> PlacementAccuracy | None:
    """How far a network places the hydrogens of weighted samples from their minimum; None for other kinds."""
    if generator.kinds["hydrogens"] != "network":
        return None
    heavy = ensemble.resample(N_COMPARED, seed).positions[:, ensemble.require_molecule().heavy_atoms]
    return placement_accuracy(generator, torch.as_tensor(heavy, device=generator.device))
