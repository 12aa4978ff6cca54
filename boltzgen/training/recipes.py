"""Trainings in one call: data-free annealing, and refinement at the target temperature."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openmm import unit

from boltzgen.training.exploration import Exploration, exploration_of, explore
from boltzgen.training.history import Event, History
from boltzgen.training.loop import Training
from boltzgen.training.stages import BATCH_SIZE, HOT_SHARE, Stage, annealing_stages, refinement_stage

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["anneal", "finetune"]

HOT_RUN = 0.1  # share of the budget
FEWEST_PRETRAINING = 100  # steps; a tenth of those on the energy, as in the paper, where that is more


def anneal(
    generator: BoltzmannGenerator,
    t_start: unit.Quantity | float = 1200 * unit.kelvin,
    budget: int = 2_400_000,
    *,
    start: Any = None,
    replay: float = 0.0,
    ess_bound: float | None = None,
    **options: Any,
) -> History:
    """Training on the energy: reverse KL at ``t_start``, then cooling to the target temperature with L2+.

    Parameters
    ----------
    t_start : Quantity or float
        Temperature at which every basin is in easy reach; a float means kelvin.
    budget : int
        Energy evaluations to spend.
    start : optional
        What to begin with. None: the force field alone, from the generator as it is. ``"hot run"``: a tenth of the
        budget goes to walkers at ``t_start``, see `explore`; their configurations are what the generator is fitted to
        first, and the basins where they end when cooled are followed. Configurations (mdtraj trajectory, Ensemble,
        Exploration, or array (n, N, 3) in nm), which may be biased or in one basin only: the same with these. With
        either the cooling begins at once, with no hot stage of reverse KL.
    replay : float
        Share of each batch of the cooling that is drawn from configurations evaluated before; see `Stage`.
    ess_bound : float, optional
        Let the cooling set its own pace; see `Stage`. What is left of the budget is spent at the target temperature.
    options :
        Passed to `Training`: ``seconds``, ``target_ess``, ``basins`` and others. Progress is shown unless ``on_record``
        is given.

    Returns
    -------
    History
        Its events say which basins were looked for, how, and which of them the generator has. Where Ctrl-C ended the
        fit to the configurations, it is that of the fit, and there was no cooling.

    Raises
    ------
    ValueError
        If ``start`` is no known word, or the generator has no molecule to explore.
    """
    heat, batch_size = _heat(generator, t_start), options.get("batch_size", BATCH_SIZE)
    n_fresh = Stage("cooling", "l2+", 1, replay=replay).n_fresh(batch_size)
    if start is None:
        n_steps = round(budget / (HOT_SHARE * batch_size + (1 - HOT_SHARE) * n_fresh))
        stages = annealing_stages(heat, max(n_steps, 2), replay=replay, ess_bound=ess_bound)
        return _run_shown(Training(generator, stages, **options))
    shown = options.get("on_record") is None
    seen = _seen(generator, start, t_start, budget, shown)
    if seen.evaluations >= budget:
        raise ValueError(
            f"the look before the training took {seen.evaluations:,} evaluations, the budget is {budget:,}"
        )
    options["basins"] = {**seen.basins, **options.get("basins", {})}
    from boltzgen.pretraining import pretrain  # which imports this package

    n_steps = max((budget - seen.evaluations) // n_fresh, 1)
    # A place to start from, whose temperature and target need not be the generator's: the cooling follows the latter.
    first = replace(seen.ensemble, kT=generator.kT, target=generator.other_target)
    before = pretrain(generator, first, n_steps=max(n_steps // 10, FEWEST_PRETRAINING), progress=shown)
    if before.interrupted:
        return before
    cooling = Stage("cooling", "l2+", n_steps, heat, 1.0, replay=replay, ess_bound=ess_bound)
    training = Training(generator, [cooling], **options)
    training.history.events.append(Event(0, "start", str(seen)))
    history = _run_shown(training)
    history.events.append(Event(training.step, "basins", _found(seen, history)))
    return history


def _seen(
    generator: BoltzmannGenerator, start: Any, t_start: unit.Quantity | float, budget: int, shown: bool
) -> Exploration:
    """The configurations and basins to start with."""
    molecule = generator.molecule
    if molecule is None:
        raise ValueError("a start other than the force field alone needs a generator with a molecule")
    if not isinstance(start, str):
        return exploration_of(start, molecule)
    if start != "hot run":
        raise ValueError(f"unknown start={start!r}: choose 'hot run', give configurations, or None")
    share = int(HOT_RUN * budget)
    seed, potential = generator.seed, generator.potential
    return explore(molecule, potential, temperature=t_start, budget=share, seed=seed, progress=shown)


def _found(seen: Exploration, history: History) -> str:
    """Which of the basins that were seen at the start the generator has at the end."""
    if not seen.basins:
        return "no torsion had two states at the start: no basin was looked for"
    last = history.records[-1]
    populations = last["populations"]
    missed = seen.missed(populations)
    rows = [f"  {name}: {populations[name]:.3%}" for name in seen.basins]
    verdict = f"{len(missed)} of {len(seen.basins)} basins were not kept" if missed else "every basin seen was kept"
    note = f"weighted populations of the last batches, at {last['temperature']:.0f} K"
    return "\n".join([f"{verdict} ({note})", *rows])


def finetune(
    generator: BoltzmannGenerator,
    loss: str = "l2+",
    budget: int = 1_600_000,
    *,
    replay: float = 0.0,
    **options: Any,
) -> History:
    """Data-free refinement at the target temperature.

    Parameters
    ----------
    loss : str
        A key of `boltzgen.losses.LOSSES`, other than that on data.
    budget : int
        Energy evaluations to spend.
    replay : float
        Share of each batch that is drawn from configurations evaluated before; see `Stage`.
    options :
        Passed to `Training`; ``observable`` goes with the loss "estimator-variance".

    Raises
    ------
    ValueError
        If the loss is unknown, or needs what is not given here.
    """
    stage = refinement_stage(1, loss, replay=replay)
    n_steps = max(budget // stage.n_fresh(options.get("batch_size", BATCH_SIZE)), 1)
    return _run_shown(Training(generator, [replace(stage, n_steps=n_steps)], **options))


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
