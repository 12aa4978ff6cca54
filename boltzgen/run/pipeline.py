"""The whole way from a PDB file to a free energy, as a function: what ``boltzgen run`` does."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from openmm import unit

from boltzgen.diagnostics import Verdict
from boltzgen.energy import CompiledPotential
from boltzgen.energy import potential as choose_potential
from boltzgen.energy.base import Potential
from boltzgen.generator import BoltzmannGenerator
from boltzgen.generator_description import rebuild
from boltzgen.interrupts import Interrupts, RunInterrupted
from boltzgen.molecule import Molecule
from boltzgen.output_files import OutputFolder, write_json
from boltzgen.placement_training import PlacementTraining
from boltzgen.progress import Progress
from boltzgen.report import write_report
from boltzgen.run import manifest, placements, references
from boltzgen.run.answer import ONE_BASIN, final_verdict, recheck_energies, result_values
from boltzgen.run.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from boltzgen.run.comparison import compare
from boltzgen.run.files import drawn, write_history
from boltzgen.run.options import RunOptions, check_kinds_of_run, choose_basins, choose_device
from boltzgen.run.results import RunResult, TrainResult
from boltzgen.run.schedules import Schedule, make_schedule, parse_budget
from boltzgen.sampling import SamplingRun
from boltzgen.sampling.rounds import NoFrameError
from boltzgen.training import Training
from boltzgen.training.processes import Processes, start_processes

__all__ = ["CHECKPOINT", "PreparedRun", "RunOptions", "RunResult", "TrainResult", "execute", "prepare", "run", "train"]

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
REFERENCE_STATE = "reference.pt"  # while the reference is sampled
# torch.compile takes 10-40 s; below this many evaluations it does not pay on a CPU. It is decided once, not during the
# training, so that a resumed training computes the very same numbers.
COMPILE_FROM = 10_000_000

Say = Callable[[str], None]
Result = TypeVar("Result")


@dataclass
class PreparedRun:
    """A run that has passed every check of its input and can start."""

    options: RunOptions
    folder: OutputFolder
    molecule: Molecule
    basins: dict[str, str]
    schedule: Schedule
    generator: BoltzmannGenerator
    training: Training
    identity: dict[str, Any]
    started: float
    placement: PlacementTraining | None = None
    seconds_before: float = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


def run(options: RunOptions, say: Say | None = None) -> RunResult | None:
    """Set up a molecule, train a generator on its energy, sample, and write the answer with all files.

    Processes that ``torchrun`` started train together; the first samples and writes, the others get None.

    Parameters
    ----------
    options : RunOptions
    say : callable, optional
        Gets messages for the user; they are logged if absent.

    Raises
    ------
    BoltzgenError
        If the input cannot be used, or the run fails.
    RunInterrupted
        After Ctrl-C during the training; the checkpoint is written.
    """
    return execute(prepare(options, say), say)


def prepare(options: RunOptions, say: Say | None = None) -> PreparedRun:
    """Check the input and build everything up to the first training step; see `run`."""
    started = time.monotonic()
    check_kinds_of_run(options)
    budget, device = parse_budget(options.budget), choose_device(options.device)
    processes = start_processes(device)
    say = _from_first(processes, say)
    folder = OutputFolder(options.folder, options.resume)
    checkpoint = load_checkpoint(folder / CHECKPOINT) if options.resume else None
    molecule = read_molecule(options)
    say(molecule.report())
    basins = choose_basins(options, molecule)
    for name, expression in basins.items():
        say(f"{'basin':<18}{name}: {expression}")
    if not basins:
        say("no basin is named and the molecule has no single phi: there will be no free-energy difference")
    kelvin = molecule.temperature.value_in_unit(unit.kelvin)
    schedule = make_schedule(budget, kelvin, options.omega, options.hydrogens)
    identity = _identity(options, molecule, schedule, basins)
    if checkpoint is not None:
        checkpoint.check(identity)
    potential = choose_potential(molecule)
    _decide_compilation(potential, schedule, device)
    generator = _generator(options, molecule, potential, schedule, device, checkpoint)
    for note in _notes(generator):
        say(note)
    if processes.is_first:
        folder.claim()
    placement = placements.training_of(generator, schedule, options.seed)
    training = _training(generator, schedule, basins, folder / CHECKPOINT, identity, placement)
    if checkpoint is not None:
        checkpoint.restore(training)
        if placement is not None and checkpoint.placement is not None:
            placement.load_state_dict(checkpoint.placement)
        say(f"going on from step {training.step:,} of {training.n_steps:,}")
    return PreparedRun(
        *(options, folder, molecule, basins, schedule, generator, training, identity, started, placement),
        seconds_before=training.seconds,
    )


def execute(prepared: PreparedRun, say: Say | None = None) -> RunResult | None:
    """Train, sample, compare and write; see `run`."""
    return _of_first(prepared, say, _answer)


def train(prepared: PreparedRun, say: Say | None = None) -> TrainResult | None:
    """Train and write the model; `run` with ``resume`` goes on from there to the answer."""
    return _of_first(prepared, say, _trained)


def _of_first(prepared: PreparedRun, say: Say | None, finish: Callable[[PreparedRun, Say], Result]) -> Result | None:
    processes = prepared.training.processes
    say = _from_first(processes, say)
    try:
        _train_placement(prepared, say)
        _train(prepared, say)
        return finish(prepared, say) if processes.is_first else None
    finally:
        prepared.folder.release()


def _from_first(processes: Processes, say: Say | None) -> Say:
    """What tells the user something, from one process only."""
    return (say or log.info) if processes.is_first else log.debug


def read_molecule(options: RunOptions) -> Molecule:
    """The molecule that the options name."""
    return Molecule.from_pdb(
        options.pdb,
        options.forcefield,
        None if options.solvent == "none" else options.solvent,
        options.temperature,
        ph=options.ph,
        variants=dict(options.variants) or None,
    )


def _identity(options: RunOptions, molecule: Molecule, schedule: Schedule, basins: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint must share with a run that goes on from it, the readable differences first."""
    return {
        "force field": molecule.provenance.force_field,
        "solvent": molecule.provenance.solvent,
        "temperature": f"{molecule.temperature.value_in_unit(unit.kelvin):g} K",
        "number of atoms": molecule.n_atoms,
        "budget": schedule.budget,
        "seed": options.seed,
        "omega": options.omega,
        "coordinates": options.coordinates,
        "hydrogens": options.hydrogens,
        "basins": "; ".join(f"{name}: {expression}" for name, expression in basins.items()),
        "networks": str(schedule.config),
        "System": molecule.system_hash,
    }


def _decide_compilation(potential: Potential, schedule: Schedule, device: torch.device) -> None:
    if isinstance(potential, CompiledPotential):
        potential.compile = schedule.evaluations >= COMPILE_FROM or device.type == "cuda"


def _generator(
    options: RunOptions,
    molecule: Molecule,
    potential: Potential,
    schedule: Schedule,
    device: torch.device,
    checkpoint: Checkpoint | None,
) -> BoltzmannGenerator:
    if checkpoint is not None:
        return rebuild(checkpoint.description, checkpoint.arrays, device, molecule, potential)
    return BoltzmannGenerator.for_molecule(
        molecule,
        potential,
        coordinates=options.coordinates,
        hydrogens=options.hydrogens,
        config=schedule.config,
        device=device,
        seed=options.seed,
    )


def _training(
    generator: BoltzmannGenerator,
    schedule: Schedule,
    basins: dict[str, str],
    path: Path,
    identity: dict[str, Any],
    placement: PlacementTraining | None,
) -> Training:
    return Training(
        generator,
        list(schedule.stages),
        batch_size=schedule.batch_size,
        basins=basins,
        on_checkpoint=lambda training: save_checkpoint(path, training, identity, placement),
    )


def _notes(generator: BoltzmannGenerator) -> list[str]:
    """What must be known of the kind of generator before a long run."""
    notes = []
    if generator.other_target:
        notes.append(f"{'target':<18}{generator.other_target}; not the Boltzmann distribution of the molecule")
    if generator.kinds["coordinates"] == "cartesian":
        notes.append(f"{'coordinates':<18}{ONE_BASIN}")
    return notes


def _train_placement(prepared: PreparedRun, say: Say) -> None:
    """Teach a network where hydrogens go, before the first step of the heavy atoms: it is part of their target."""
    placement, training = prepared.placement, prepared.training
    if placement is None or placement.is_done or training.step:
        return
    left = (placement.n_steps - placement.step) * placement.batch_size
    say(f"training the placement of hydrogens: {left:,} energy evaluations")
    agree = training.processes.agree
    save = lambda: save_checkpoint(prepared.checkpoint, training, prepared.identity, placement)
    with Interrupts() as interrupts:
        stop = lambda: agree(interrupts.requested())
        placement.run(lambda steps: placements.kept(steps, stop, save, training.checkpoint_seconds, agree))
    if not placement.is_done:
        save()
        raise RunInterrupted(interrupts.received or signal.SIGINT, prepared.checkpoint)
    say(str(placement.accuracy()))
    prepared.training = _training(
        *(prepared.generator, prepared.schedule, prepared.basins, prepared.checkpoint, prepared.identity, placement)
    )


def _train(prepared: PreparedRun, say: Say) -> None:
    training = prepared.training
    if training.step < training.n_steps:
        left = (training.n_steps - training.step) * training.batch_size
        say(f"training on {prepared.generator.device}: {left:,} energy evaluations, files in {prepared.folder.path}")
    with Progress() as progress, Interrupts() as interrupts:
        training.on_record = progress
        training.run(stop=interrupts.requested)
    if training.history.interrupted:  # by the first process's signal, where there are several
        raise RunInterrupted(interrupts.received or signal.SIGINT, prepared.checkpoint)


def _answer(prepared: PreparedRun, say: Say) -> RunResult:
    generator, folder, options = prepared.generator, prepared.folder, prepared.options
    generator.save(folder / "model.safetensors")
    write_history(folder / "history.csv", prepared.training.history)
    say(f"drawing {options.n_samples:,} samples (Ctrl-C ends it early, with those that there are)")
    training_defects = generator.potential.counts.defect
    with Interrupts() as interrupts:
        ensemble = drawn(generator, options.n_samples, interrupts.requested)
    n_drawn = len(ensemble) + ensemble.n_lost + ensemble.n_defects
    if n_drawn < options.n_samples:
        say(f"the drawing was ended early, after {n_drawn:,} of {options.n_samples:,} samples")
    ensemble.save(folder.path)
    recheck = recheck_energies(ensemble, seed=options.seed)
    placement = placements.accuracy_of(generator, ensemble, options.seed)
    counts = generator.potential.counts.__getstate__()
    free_energies = ensemble.free_energy(prepared.basins)
    shipped = references.shipped(generator, prepared.basins, options.omega)
    sampled = _reference(prepared, say) if options.reference else None
    comparison = None if sampled is None else compare(generator, ensemble, sampled, prepared.basins)
    judged = final_verdict(
        *(ensemble, free_energies, comparison, shipped.free_energies, recheck),
        starts_in_one_basin=generator.kinds["coordinates"] == "cartesian",
        placement=placement,
    )
    if training_defects:
        judged = Verdict("do not use", f"{training_defects} energies were undefined (NaN) during the training")
    values = result_values(ensemble, free_energies, judged, comparison, shipped.free_energies, recheck) | {
        **generator.kinds,
        "placement": None if placement is None else vars(placement),
        "energy_evaluations": counts["energy"],
        "force_evaluations": counts["force"],
        "recheck_evaluations": recheck.n,
        "reference_evaluations": 0 if sampled is None else sampled.evaluations,
        "samples_ended_early": n_drawn < options.n_samples,
        "reference_ended_early": sampled is not None and sampled.ended_early,
        "training_defects": training_defects,
        "training_skipped_steps": prepared.training.skipped,
        "training_events": prepared.training.history.events_state(),
        "wall_seconds": _wall_seconds(prepared),
    }
    reference = comparison.reference if comparison is not None else shipped.ramachandran
    result = RunResult(folder.path, values, generator, ensemble, prepared.training.history, reference)
    _write(prepared, result)
    return result


def _reference(prepared: PreparedRun, say: Say) -> SamplingRun:
    say("running the reference: parallel tempering on the same energy (Ctrl-C ends it early, with what it has)")
    schedule, seed, state = prepared.schedule, prepared.options.seed, prepared.folder / REFERENCE_STATE
    with Interrupts() as interrupts:
        try:
            sampled = references.parallel_tempering(prepared.generator, schedule, seed, interrupts.requested, state)
        except NoFrameError:
            if interrupts.received is None:
                raise
            raise RunInterrupted(interrupts.received, prepared.checkpoint) from None  # before the first frame
    state.unlink(missing_ok=True)
    say(sampled.report())
    return sampled


def _trained(prepared: PreparedRun, say: Say) -> TrainResult:
    """Write what there is of a run without its answer."""
    folder, training = prepared.folder, prepared.training
    prepared.generator.save(folder / "model.safetensors")
    write_history(folder / "history.csv", training.history)
    values = {
        **prepared.generator.kinds,
        "energy_evaluations": prepared.generator.potential.counts.energy,
        "force_evaluations": prepared.generator.potential.counts.force,
        "training_ess_fraction": training.history.records[-1]["ess_fraction"],
        "training_skipped_steps": training.skipped,
        "training_events": training.history.events_state(),
        "wall_seconds": _wall_seconds(prepared),
    }
    record = {**_made_with(prepared), **values}
    write_json(folder / "manifest.json", record)
    return TrainResult(folder.path, values)


def _wall_seconds(prepared: PreparedRun) -> float:
    """Seconds of this session, and those that the training had used in earlier ones."""
    return time.monotonic() - prepared.started + prepared.seconds_before


def _write(prepared: PreparedRun, result: RunResult) -> None:
    """The manifest, the report, and last the result: where there is a result.json, the run is whole."""
    folder = prepared.folder
    record = _manifest(prepared, result)
    write_json(folder / "manifest.json", record)
    write_report(
        folder / "report.html",
        molecule=prepared.molecule,
        ensemble=result.ensemble,
        history=result.history,
        result=result.values,
        manifest=record,
        reference=result.reference,
    )
    write_json(folder / "result.json", result.values)


def _manifest(prepared: PreparedRun, result: RunResult) -> dict[str, Any]:
    keys = ("energy_evaluations", "force_evaluations", "recheck_evaluations", "reference_evaluations", "wall_seconds")
    return {
        **_made_with(prepared),
        "recheck_platform": result.values["openmm_recheck"]["platform"],
        **{key: result.values[key] for key in keys},
    }


def _made_with(prepared: PreparedRun) -> dict[str, Any]:
    return {
        "command": list(prepared.options.command),
        "written": manifest.now(),
        "versions": manifest.versions(),
        "molecule": manifest.describe_molecule(prepared.molecule, Path(prepared.options.pdb)),
        "basins": prepared.basins,
        "generator": manifest.describe_training(prepared.generator, prepared.schedule),
        "files": {
            path.name: manifest.file_hash(path)
            for path in sorted(prepared.folder.path.iterdir())
            if path.suffix in (".safetensors", ".dcd", ".npz", ".pdb")
        },
    }
