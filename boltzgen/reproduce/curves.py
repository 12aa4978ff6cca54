"""A refinement as a curve: measured now and then, interrupted at any step, and gone on with from its checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boltzgen.checkpoint_file import CHECKPOINT_SECONDS, Checkpointed
from boltzgen.generator import BoltzmannGenerator
from boltzgen.interrupts import Interrupts, RunInterrupted
from boltzgen.placement_training import PlacementAccuracy, PlacementTraining
from boltzgen.pretraining import Pretraining
from boltzgen.progress import Progress, shown_steps
from boltzgen.sampling.rounds import NoFrameError
from boltzgen.training import Stage, Training, TrainingDivergedError

__all__ = ["Curve", "Refinement", "kept_arrays", "kept_placement", "kept_pretraining", "refine", "stoppable"]

MEASURED = "measured"  # key of the records


@dataclass(frozen=True)
class Refinement:
    """How a pre-trained flow is refined.

    Attributes
    ----------
    loss : str
        A key of `boltzgen.losses.LOSSES`.
    n_steps, batch_size : int
    learning_rate : float
        Of Adam, at the first step.
    measure_every : int
        Steps.
    learning_rate_end : float, optional
        At the last step, by a cosine; constant if absent.
    """

    loss: str
    n_steps: int
    batch_size: int
    learning_rate: float
    measure_every: int
    learning_rate_end: float | None = None


@dataclass(frozen=True)
class Curve:
    """What was measured during a refinement.

    Attributes
    ----------
    steps : list of int
        From zero, before the first step.
    values : {name: list of float}
        As long as `steps`.
    seconds : float
        Of the refinement, with its measurements.
    skipped : int
        Steps that were left out or taken back because a gradient was not finite or far beyond the usual.
    failed : str, optional
        Why it ended early.
    """

    steps: list[int]
    values: dict[str, list[float]]
    seconds: float
    skipped: int = 0
    failed: str | None = None

    def late(self, name: str, share: float = 0.25) -> float:
        """Mean over the last part of the curve; NaN if the refinement failed."""
        if self.failed is not None:
            return math.nan
        first = (1 - share) * self.steps[-1]
        last = [value for step, value in zip(self.steps, self.values[name], strict=True) if step >= first]
        return sum(last) / len(last)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def refine(
    start: BoltzmannGenerator,
    refinement: Refinement,
    measure: Callable[[BoltzmannGenerator], Mapping[str, float]],
    *,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    observable: Callable[[torch.Tensor], torch.Tensor] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> tuple[Curve, BoltzmannGenerator]:
    """Refine a copy of a generator, or go on with that from a checkpoint.

    Measured are the weights as they are at a step, as in the paper, not their running average; the generator that is
    returned has those of the last step.

    Parameters
    ----------
    start : BoltzmannGenerator
        Stays as it is.
    refinement : Refinement
    measure : callable
        Figures by name. It must leave the random numbers of the generator alone, or curves would depend on how often
        they are measured.
    checkpoint : Path, optional
        Read if it exists, written every minute, when interrupted and in the end.
    identity : {name: number or string}
        What a checkpoint must share, beside the refinement and the version.
    observable : callable, optional
        The function f of the loss "estimator-variance".

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another identity.
    RunInterrupted
        After Ctrl-C or SIGTERM, with the state in the checkpoint, if there is one to write.
    """
    generator = BoltzmannGenerator(
        copy.deepcopy(start.flow),
        start.potential,
        molecule=start.molecule,
        kT=start.kT,
        seed=start.seed,
        alignment=start.alignment,
    )
    known = {**asdict(refinement), **(identity or {})}
    last: dict[str, Any] = {}
    progress = Progress(every=60.0)

    def record(values: dict[str, Any], training: Training) -> None:
        values[MEASURED] = dict(measure(generator))
        if training.step == training.n_steps:
            last.update(copy.deepcopy(generator.flow.state_dict()))
        progress(values, training)

    first, last_rate = refinement.learning_rate, refinement.learning_rate_end
    rates = {"learning_rate_start": first, "learning_rate_end": first if last_rate is None else last_rate}
    stage = Stage("refinement", refinement.loss, refinement.n_steps, **rates)
    training = Training(
        generator,
        [stage],
        batch_size=refinement.batch_size,
        observable=observable,
        compile=False,  # a resumed run is to give the same numbers as an unbroken one, to the last bit
        record_every=refinement.measure_every,
        on_record=record,
        on_checkpoint=None if checkpoint is None else lambda state: kept.write(),
        checkpoint_seconds=checkpoint_seconds,
    )
    kept = Checkpointed(checkpoint, known, training.state_dict)
    kept.restore(training.load_state_dict)
    failed = None
    if training.step < training.n_steps:
        failed = _run(training, checkpoint)
        if failed is None:
            generator.flow.load_state_dict(last)
    return _curve(training, dict(measure(start)), failed), generator


def kept_placement(
    path: Path | None, generator: BoltzmannGenerator, data: Any, identity: Mapping[str, Any], **options: Any
) -> PlacementAccuracy | None:
    """Train the network that places hydrogens, or go on with that from a checkpoint; None if nothing was left to do.

    Parameters
    ----------
    path, generator, identity
        As of `kept_pretraining`, for errors too.
    data
        As `boltzgen.placement.train_placement` takes it.
    options
        Of `boltzgen.placement.train_placement`.
    """
    training, flow = PlacementTraining(generator, data, **options), generator.flow

    def restore(state: Mapping[str, Any]) -> None:
        flow.load_state_dict(state["flow"])
        training.load_state_dict(state["placement"])

    kept = Checkpointed(path, identity, lambda: {"flow": flow.state_dict(), "placement": training.state_dict()})
    kept.restore(restore)
    if training.is_done:
        return None
    with stoppable(path) as interrupts:
        label = "placement of hydrogens"
        training.run(lambda steps: kept.written(shown_steps(steps, label, interrupts.requested)))
        kept.write()
    return training.accuracy()


def kept_pretraining(
    path: Path | None, generator: BoltzmannGenerator, data: Any, identity: Mapping[str, Any], **options: Any
) -> None:
    """Pre-train a generator on data, or go on with that from a checkpoint.

    Parameters
    ----------
    path : Path, optional
        Read if it exists, written every minute, when interrupted and in the end.
    generator : BoltzmannGenerator
    data
        As `boltzgen.pretrain` takes it.
    identity : {name: number or string}
    options
        Of `boltzgen.pretrain`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of another identity.
    RunInterrupted
        After Ctrl-C or SIGTERM, with the state in the checkpoint, if there is one to write.
    """
    training = Pretraining(generator, data, **options)
    kept = Checkpointed(path, identity, training.state_dict)
    kept.restore(training.load_state_dict)
    if not training.is_complete:
        with stoppable(path) as interrupts:
            training.run(lambda steps: kept.written(shown_steps(steps, "pre-training", interrupts.requested)))
            kept.write()
    training.finish()


@contextmanager
def stoppable(path: Path | None) -> Iterator[Interrupts]:
    """Signals that work looks for between its steps, and that end all of it afterwards.

    Parameters
    ----------
    path : Path, optional
        What the work goes on from.

    Raises
    ------
    RunInterrupted
        If there was a signal; plain ``KeyboardInterrupt`` where nothing was written.
    """
    with Interrupts() as interrupts:
        try:
            yield interrupts
        except NoFrameError:
            if not interrupts.requested():
                raise
    if interrupts.received is not None:
        raise KeyboardInterrupt if path is None else RunInterrupted(interrupts.received, path)


def kept_arrays(
    path: Path | None, identity: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Make arrays that take long, or read those that were written when they were made before.

    Parameters
    ----------
    path : Path, optional
        Without it, nothing is written.
    identity : {name: number or string}
    make : callable
        Gives arrays by name.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of another identity.
    """
    made: dict[str, np.ndarray] = {}

    def restore(state: Mapping[str, Any]) -> None:
        made.update({name: value.numpy() for name, value in state["made"].items()})

    kept = Checkpointed(path, identity, lambda: {"made": {name: torch.as_tensor(x) for name, x in made.items()}})
    kept.restore(restore)
    if not made:
        made.update({name: np.asarray(value) for name, value in make().items()})
        kept.write()
    return made


def _run(training: Training, checkpoint: Path | None) -> str | None:
    """Run to the end; the reason if it failed."""
    try:
        with stoppable(checkpoint) as interrupts:
            training.run(stop=interrupts.requested)
    except TrainingDivergedError as error:
        return str(error)
    return None


def _curve(training: Training, at_start: Mapping[str, float], failed: str | None) -> Curve:
    records = [record for record in training.history.records if MEASURED in record]
    values = {name: [value, *(record[MEASURED][name] for record in records)] for name, value in at_start.items()}
    steps = [0, *(int(record["step"]) for record in records)]
    return Curve(steps, values, training.seconds, training.skipped, failed)
