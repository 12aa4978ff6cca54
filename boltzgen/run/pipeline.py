"""The whole way from a PDB file to a free energy, as a function: what ``boltzgen run`` does."""

from __future__ import annotations

import csv
import io
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openmm import unit

from boltzgen.diagnostics import Verdict
from boltzgen.energy import CompiledPotential
from boltzgen.energy import potential as choose_potential
from boltzgen.energy.base import Potential
from boltzgen.ensemble import Ensemble
from boltzgen.generator import BoltzmannGenerator
from boltzgen.generator_description import rebuild
from boltzgen.interrupts import Interrupts, RunInterrupted
from boltzgen.molecule import Molecule
from boltzgen.output_files import OutputFolder, write_bytes, write_json
from boltzgen.placement import PlacementAccuracy, placement_accuracy, train_placement
from boltzgen.progress import Progress
from boltzgen.report import write_report
from boltzgen.run import manifest, references
from boltzgen.run.answer import ONE_BASIN, final_verdict, format_answer, recheck_energies, result_values
from boltzgen.run.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from boltzgen.run.comparison import compare
from boltzgen.run.options import RunOptions, check_kinds_of_run, choose_basins, choose_device
from boltzgen.run.schedules import PLACEMENT_BATCH, Schedule, make_schedule, parse_budget
from boltzgen.sampling import SamplingRun
from boltzgen.training import History, Training
from boltzgen.training.processes import Processes, start_processes

__all__ = ["CHECKPOINT", "PreparedRun", "RunOptions", "RunResult", "execute", "prepare", "run"]

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
N_PLACEMENT = 1000  # samples whose hydrogens are compared with their minimum
# torch.compile takes 10-40 s; below this many evaluations it does not pay on a CPU. It is decided once, not during the
# training, so that a resumed training computes the very same numbers.
COMPILE_FROM = 10_000_000

Say = Callable[[str], None]


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
    seconds_before: float = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes
    ----------
    folder : Path
        Where its files are.
    values : dict
        As in ``result.json``.
    generator, ensemble, history :
        The trained generator, its samples, and the training.
    reference : Ensemble or (n, n) array or None
        Samples of the reference, or only its histogram over phi and psi.
    """

    folder: Path
    values: dict[str, Any]
    generator: BoltzmannGenerator
    ensemble: Ensemble
    history: History
    reference: Ensemble | np.ndarray | None

    def __str__(self) -> str:
        return format_answer(self.values)


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
    molecule = _read_molecule(options)
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
    training = _training(generator, schedule, basins, folder / CHECKPOINT, identity)
    if checkpoint is not None:
        checkpoint.restore(training)
        say(f"going on from step {training.step:,} of {training.n_steps:,}")
    return PreparedRun(
        options, folder, molecule, basins, schedule, generator, training, identity, started, training.seconds
    )


def execute(prepared: PreparedRun, say: Say | None = None) -> RunResult | None:
    """Train, sample, compare and write; see `run`."""
    processes = prepared.training.processes
    say = _from_first(processes, say)
    try:
        _train_placement(prepared, say)
        _train(prepared, say)
        return _answer(prepared, say) if processes.is_first else None
    finally:
        prepared.folder.release()


def _from_first(processes: Processes, say: Say | None) -> Say:
    """What tells the user something, from one process only."""
    return (say or log.info) if processes.is_first else log.debug


def _read_molecule(options: RunOptions) -> Molecule:
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
    generator: BoltzmannGenerator, schedule: Schedule, basins: dict[str, str], path: Path, identity: dict[str, Any]
) -> Training:
    return Training(
        generator,
        list(schedule.stages),
        batch_size=schedule.batch_size,
        basins=basins,
        on_checkpoint=lambda training: _checkpoint(path, training, identity),
    )


def _checkpoint(path: Path, training: Training, identity: dict[str, Any]) -> None:
    save_checkpoint(path, training, identity)


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
    schedule = prepared.schedule
    if not schedule.placement_steps or prepared.training.step:
        return
    say(f"training the placement of hydrogens: {schedule.placement_steps * PLACEMENT_BATCH:,} energy evaluations")
    found = train_placement(
        prepared.generator, n_steps=schedule.placement_steps, batch_size=PLACEMENT_BATCH, seed=prepared.options.seed
    )
    say(str(found))
    prepared.training = _training(prepared.generator, schedule, prepared.basins, prepared.checkpoint, prepared.identity)


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
    _write_history(folder / "history.csv", prepared.training.history)
    say(f"drawing {options.n_samples:,} samples")
    training_defects = generator.potential.counts.defect
    ensemble = generator.sample(options.n_samples)
    ensemble.save(folder.path)
    recheck = recheck_energies(ensemble, seed=options.seed)
    placement = _placement_of(generator, ensemble, options.seed)
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
        "training_defects": training_defects,
        "training_skipped_steps": prepared.training.skipped,
        "training_events": prepared.training.history.events_state(),
        "wall_seconds": _wall_seconds(prepared),
    }
    reference = comparison.reference if comparison is not None else shipped.ramachandran
    result = RunResult(folder.path, values, generator, ensemble, prepared.training.history, reference)
    _write(prepared, result)
    return result


def _placement_of(generator: BoltzmannGenerator, ensemble: Ensemble, seed: int) -> PlacementAccuracy | None:
    """How far a network places the hydrogens of weighted samples from their minimum; None for other kinds."""
    if generator.kinds["hydrogens"] != "network":
        return None
    heavy = ensemble.resample(N_PLACEMENT, seed).positions[:, ensemble.require_molecule().heavy_atoms]
    return placement_accuracy(generator, torch.as_tensor(heavy, device=generator.device))


def _reference(prepared: PreparedRun, say: Say) -> SamplingRun:
    say("running the reference: parallel tempering on the same energy")
    sampled = references.parallel_tempering(prepared.generator, prepared.schedule, prepared.options.seed)
    say(sampled.report())
    return sampled


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
        "command": list(prepared.options.command),
        "written": manifest.now(),
        "versions": manifest.versions(),
        "molecule": manifest.describe_molecule(prepared.molecule, Path(prepared.options.pdb)),
        "basins": prepared.basins,
        "generator": manifest.describe_training(prepared.generator, prepared.schedule),
        "recheck_platform": result.values["openmm_recheck"]["platform"],
        **{key: result.values[key] for key in keys},
        "files": {
            path.name: manifest.file_hash(path)
            for path in sorted(prepared.folder.path.iterdir())
            if path.suffix in (".safetensors", ".dcd", ".npz", ".pdb")
        },
    }


def _write_history(path: Path, history: History) -> None:
    table = history.table()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    write_bytes(path, text.getvalue().encode())
