"""``boltzgen bench``: how fast energies, samples and training steps are on this machine, for this molecule."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from boltzgen.commands.inputs import add_molecule, read_molecule
from boltzgen.commands.stored import add_json, finite_number, print_json

if TYPE_CHECKING:
    import torch

    from boltzgen.generator import BoltzmannGenerator

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "time energies, samples and training steps of a molecule on this machine"
EPILOG = """\
examples:
  boltzgen bench molecule.pdb
  boltzgen bench molecule.pdb --solvent obc2 --seconds 5 --json

Times are the best of several rounds, per configuration, in one process; what other programs take is not left out. The
hours that each budget would take follow from the training steps, without compilation.
"""

BATCH, STEPS = 512, 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_molecule(parser, "structure of one molecule without solvent, PDB or mmCIF; or a recipe, TOML")
    add = parser.add_argument
    add("--seconds", type=finite_number, default=2.0, metavar="S", help="for each of the figures (default: 2)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from boltzgen.errors import SelectionError
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.progress import shown_steps
    from boltzgen.run.options import choose_device
    from boltzgen.run.schedules import PRESETS

    if not 0 < options.seconds <= 3600:
        raise SelectionError(f"--seconds {options.seconds:g}: give a number above 0 and up to 3600")
    device = choose_device(options.device)
    molecule = read_molecule(options)
    generator = BoltzmannGenerator.for_molecule(molecule, device=device)
    options.started = True
    calls = list(_calls(generator).items())
    found = {
        calls[k][0]: microseconds(*calls[k][1], options.seconds, device)
        for k in shown_steps(range(len(calls)), "measuring")
    }
    step = found["training step"]
    hours = {name: preset.evaluations * step / 3.6e9 for name, preset in PRESETS.items()}
    values = {
        "microseconds": found,
        "n_atoms": molecule.n_atoms,
        "engine": generator.potential.name,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "training_hours": hours,
    }
    if options.json:
        print_json(values)
        return
    print(f"{molecule!r}\n{generator.potential.name} energy on {device}, {torch.get_num_threads()} threads")
    for name, value in found.items():
        print(f"{name:<28}{value:>10.2f} us per configuration")
    for name, preset in PRESETS.items():
        print(f"{'budget ' + name:<28}{hours[name] * 60:>10.1f} min for {preset.evaluations:,} evaluations")


def _calls(generator: BoltzmannGenerator) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, and how many configurations one call is for."""
    import torch

    from boltzgen.energy import OpenMMPotential
    from boltzgen.training import Training, refinement_stage

    assert generator.molecule is not None
    positions = generator.sample_and_log_prob(BATCH)[0]
    moving = positions.clone().requires_grad_(True)
    few = positions[:8].double().cpu()
    openmm = OpenMMPotential(generator.molecule)
    training = Training(generator, [refinement_stage(10**6)], batch_size=BATCH, compile=False)

    def forces() -> object:
        return torch.autograd.grad(generator.potential(moving).sum(), moving)

    def steps() -> object:
        last = training.step + STEPS
        return training.run(stop=lambda: training.step >= last)

    return {
        "energy": (lambda: generator.potential(positions), BATCH),
        "energy and forces": (forces, BATCH),
        "energy by OpenMM": (lambda: openmm(few), len(few)),
        "sample with density": (lambda: generator.sample_and_log_prob(BATCH), BATCH),
        "training step": (steps, STEPS * BATCH),
    }


def microseconds(call: Callable[[], object], n: int, seconds: float, device: torch.device) -> float:
    """Shortest time per configuration over as many calls as fit, three at the least and the first not counted."""
    import torch

    best, end, done = float("inf"), time.perf_counter() + seconds, 0
    call()
    while done < 3 or time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, done = min(best, time.perf_counter() - begin), done + 1
    return 1e6 * best / n
