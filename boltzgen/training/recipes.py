"""Trainings in one call: data-free annealing, and refinement at the target temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openmm import unit

from boltzgen.training.history import History
from boltzgen.training.loop import Training
from boltzgen.training.stages import BATCH_SIZE, annealing_stages, refinement_stage

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["anneal", "finetune"]


def anneal(
    generator: BoltzmannGenerator,
    t_start: unit.Quantity | float = 1200 * unit.kelvin,
    budget: int = 2_400_000,
    **options: Any,
) -> History:
    """Data-free training: reverse KL at ``t_start``, then cooling to the target temperature with L2+.

    Parameters
    ----------
    t_start : Quantity or float
        Temperature at which every basin is in easy reach; a float means kelvin.
    budget : int
        Energy evaluations to spend.
    options :
        Passed to `Training`: ``seconds``, ``target_ess``, ``basins`` and others. Progress is shown unless ``on_record``
        is given.
    """
    heat = _heat(generator, t_start)
    n_steps = max(budget // options.get("batch_size", BATCH_SIZE), 2)
    return _run_shown(Training(generator, annealing_stages(heat, n_steps), **options))


def finetune(generator: BoltzmannGenerator, loss: str = "l2+", budget: int = 1_600_000, **options: Any) -> History:
    """Data-free refinement at the target temperature.

    Parameters
    ----------
    loss : str
        A key of `boltzgen.losses.LOSSES`, other than that on data.
    budget : int
        Energy evaluations to spend.
    options :
        Passed to `Training`; ``observable`` goes with the loss "estimator-variance".

    Raises
    ------
    ValueError
        If the loss is unknown, or needs what is not given here.
    """
    n_steps = max(budget // options.get("batch_size", BATCH_SIZE), 1)
    return _run_shown(Training(generator, [refinement_stage(n_steps, loss)], **options))


def _run_shown(training: Training) -> History:
    """Run with a progress display; Ctrl-C ends the training early and leaves a usable generator."""
    from boltzgen.interrupts import Interrupts
    from boltzgen.progress import Progress

    with Progress() as progress, Interrupts() as interrupts:
        training.on_record = training.on_record or progress
        return training.run(stop=interrupts.requested)


def _heat(generator: BoltzmannGenerator, temperature: unit.Quantity | float) -> float:
    if generator.molecule is None:
        return float(temperature)
    kelvin = temperature.value_in_unit(unit.kelvin) if isinstance(temperature, unit.Quantity) else float(temperature)
    return float(kelvin / generator.molecule.temperature.value_in_unit(unit.kelvin))
