"""``boltzgen sample``: more samples from a trained generator."""

from __future__ import annotations

import argparse

from boltzgen.commands.stored import add_json, print_json, read_generator, seed_number

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "draw weighted samples from a trained generator"
EPILOG = """\
examples:
  boltzgen sample RUN -n 1000000 --out more
  boltzgen sample RUN --seed 7 --format nc --json

The output folder gets topology.pdb, samples.FORMAT and weights.npz; boltzgen.Ensemble.load reads them. Together with
model.safetensors, which is copied there, the other commands take the folder as a RUN. Ctrl-C ends the drawing early,
and what there is by then is written.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="output folder of boltzgen run, or a model file")
    add = parser.add_argument
    add("-n", type=_positive, default=100_000, metavar="N", help="number of samples (default: 100000)")
    add("--seed", type=seed_number, default=1, metavar="N", help="of the random numbers (default: 1)")
    add("--format", choices=("dcd", "nc", "xtc", "pdb", "npz"), default="dcd", help="of the positions (default: dcd)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--out", default="samples", metavar="DIR", help="folder, new or empty (default: samples)")
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Draw, save and say what the samples are worth."""
    from boltzgen.interrupts import Interrupts
    from boltzgen.output_files import OutputFolder
    from boltzgen.run.files import drawn
    from boltzgen.run.options import choose_device

    folder = OutputFolder(options.out)
    generator = read_generator(options.run, options.seed, choose_device(options.device))
    options.started = True
    with Interrupts() as interrupts:
        ensemble = drawn(generator, options.n, interrupts.requested)
    ended_early = len(ensemble) < options.n - ensemble.n_lost - ensemble.n_defects
    folder.claim()
    ensemble.save(folder.path, options.format)
    generator.save(folder / "model.safetensors")
    if options.json:
        judged = ensemble.verdict()
        print_json(
            {
                "n_samples": len(ensemble),
                "ended_early": ended_early,
                "ess_fraction": ensemble.ess_fraction,
                "pareto_k": ensemble.pareto_k,
                "max_weight": ensemble.max_weight,
                "log_z": ensemble.log_z.value,
                "log_z_low": ensemble.log_z.low,
                "log_z_high": ensemble.log_z.high,
                "energy_evaluations": len(ensemble),
                "verdict": judged.verdict,
                "verdict_reason": judged.reason,
                "folder": str(folder.path),
            }
        )
    else:
        early = f"\n{'ended early':<13}after {len(ensemble):,} of {options.n:,} samples" if ended_early else ""
        print(f"{ensemble}{early}\n{'folder':<13}{folder.path}")


def _positive(text: str) -> int:
    try:
        value = int(float(text))  # 1e6 is one
    except (ValueError, OverflowError):
        value = 0
    if value < 1 or value != float(text):
        raise argparse.ArgumentTypeError(f"{text} is no positive whole number")
    return value
