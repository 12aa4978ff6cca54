"""``boltzgen reference``: parallel tempering, for its own sake or to look for what a generator misses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzgen.commands.inputs import add_molecule, read_molecule
from boltzgen.commands.stored import add_json, print_json, read_ensemble, read_generator, seed_number

if TYPE_CHECKING:
    from boltzgen.run.comparison import Comparison
    from boltzgen.sampling import Reference

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

FEWEST = 500_000  # evaluations; with fewer no frame would be saved
HELP = "sample by parallel tempering, and compare a finished run with it"
EPILOG = """\
examples:
  boltzgen reference molecule.pdb --basin 'C7ax: 0 < phi < 150' --out reference
  boltzgen reference RUN --budget 5e7 --out reference       (the molecule and the basins of a run; then a comparison)
  boltzgen reference molecule.pdb --solvent obc2 --budget quick --json
  boltzgen reference molecule.pdb --budget thorough --checkpoint reference.pt   (Ctrl-C, then the same command goes on)

Every evaluation is one with forces. Errors come from independent ladders of walkers; frames outside the domain of the
structure (cis amides, mostly) are left out and their share is shown. Ctrl-C ends the sampling early, and what there is
by then is used and written; with --checkpoint nothing is written but the state, from which the same command goes on.
The output folder gets topology.pdb, samples.dcd, weights.npz and reference.json.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_molecule(parser, "structure of one molecule, PDB or mmCIF; a recipe, TOML; or the output folder of a run")
    add = parser.add_argument
    add("--budget", default="quick", metavar="B", help="quick, standard, thorough, or evaluations (default: quick)")
    add("--basin", action="append", metavar="'NAME: EXPR'", help="basin for a free energy; may be repeated")
    add("--seed", type=seed_number, default=0, metavar="N", help="of the random numbers (default: 0)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--checkpoint", metavar="FILE", help="the state, written every minute and gone on from if it exists")
    add("--out", default="reference", metavar="DIR", help="folder, new or empty (default: reference)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Sample, compare where there is something to compare with, write and print."""
    import json

    from boltzgen.errors import OutputError
    from boltzgen.output_files import OutputFolder, check_writable, write_json
    from boltzgen.run.options import choose_device

    if options.checkpoint is not None:
        check_writable(Path(options.checkpoint))
    device, budget = choose_device(options.device), _budget(options.budget)
    folder, of_run = OutputFolder(options.out), Path(options.pdb).is_dir()
    generated = read_ensemble(options.pdb) if of_run else None
    generator = read_generator(options.pdb) if of_run else None
    molecule = read_molecule(options) if generator is None else generator.molecule
    basins = _basins(options, molecule)
    if of_run and not basins:
        try:
            basins = json.loads((Path(options.pdb) / "manifest.json").read_text(encoding="utf-8"))["basins"]
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{options.pdb}/manifest.json names no basins: give them with --basin") from error
    options.started = True
    found = _sample(molecule, basins, budget, options.seed, device, options.checkpoint)
    comparison = None
    if generator is not None and generated is not None:
        from boltzgen.run.comparison import compare

        comparison = compare(generator, generated, found.run, basins)
    folder.claim()
    found.run.ensemble.save(folder.path)
    values = _values(found, comparison) | {"folder": str(folder.path)}
    write_json(folder / "reference.json", values)
    if options.json:
        print_json(values)
        return
    print(found.run.report())
    print(found.free_energies if basins else "no basin is named: there is no free-energy difference")
    if comparison is not None:
        covered = ", ".join(f"{name} {value.coverage:.2f}" for name, value in comparison.coverages.items())
        print(f"{'coverage':<10}{covered}; forward ESS {comparison.forward_ess:.1%}")
        print(f"{'outside':<10}{comparison.share_outside:.2e} of the weight lies outside the generator's domain")
    print(f"{'folder':<10}{folder.path}")


def _budget(text: str) -> str | int:
    from boltzgen.errors import SelectionError
    from boltzgen.sampling.reference import BUDGETS

    if text in BUDGETS:
        return text
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not FEWEST <= number <= 1e13:
        raise SelectionError(
            f"--budget {text}: give {', '.join(BUDGETS)}, or a number of evaluations of at least {FEWEST:,}"
        )
    return int(number)


def _basins(options: argparse.Namespace, molecule: Any) -> dict[str, str]:
    from boltzgen.collective_variables import parse_basin, parse_named_basins

    basins = parse_named_basins(options.basin or [])
    for expression in basins.values():
        parse_basin(expression, molecule)
    return basins


def _sample(
    molecule: Any, basins: dict[str, str], budget: str | int, seed: int, device: Any, checkpoint: str | None
) -> Reference:
    from boltzgen.interrupts import Interrupts, RunInterrupted
    from boltzgen.progress import shown_steps
    from boltzgen.sampling import reference
    from boltzgen.sampling.rounds import NoFrameError

    with Interrupts() as interrupts:
        show = lambda steps: shown_steps(steps, "parallel tempering", interrupts.requested)
        try:
            found = reference(molecule, basins, budget, seed=seed, device=device, progress=show, checkpoint=checkpoint)
        except NoFrameError:
            if interrupts.received is None:
                raise
            if checkpoint is None:
                raise KeyboardInterrupt from None  # before the first frame
    if checkpoint is not None and interrupts.received is not None:
        raise RunInterrupted(interrupts.received, Path(checkpoint))
    return found


def _values(found: Reference, comparison: Comparison | None) -> dict[str, Any]:
    run, verdict = found.run, found.run.verdict()
    values: dict[str, Any] = {
        "method": run.method,
        "n_samples": len(run.ensemble),
        "energy_evaluations": run.evaluations,
        "wall_seconds": run.seconds,
        "ended_early": run.ended_early,
        "kT_kJ_per_mol": run.ensemble.kT,
        "temperatures_K": run.temperatures.tolist(),
        "swap_acceptance": run.swap_acceptance.tolist(),
        "round_trips": run.round_trips,
        "share_outside_domain": found.outside,
        "free_energies": {name: basin.to_dict() for name, basin in found.free_energies.items()},
        "verdict": verdict.verdict,
        "verdict_reason": verdict.reason,
    }
    if comparison is None:
        return values
    return values | {
        "coverage": {name: value.coverage for name, value in comparison.coverages.items()},
        "population_ratio": {name: value.population_ratio for name, value in comparison.coverages.items()},
        "forward_ess": comparison.forward_ess,
        "log_z_bar": comparison.log_z,
        "share_outside_generator": comparison.share_outside,
    }
