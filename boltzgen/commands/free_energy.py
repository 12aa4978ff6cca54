"""``boltzgen free-energy``: free energies of basins from the samples of a run."""

from __future__ import annotations

import argparse

from boltzgen.commands.stored import add_json, add_run, finite_number, print_json, read_ensemble

__all__ = ["EPILOG", "HELP", "add_options", "run_command"]

HELP = "compute free energies of basins from the samples of a run"
EPILOG = """\
examples:
  boltzgen free-energy RUN --basin 'C7ax: 0 < phi < 150' --basin 'C5: 90 < psi < 210 and phi < -120'
  boltzgen free-energy RUN --basin 'C7ax: 0 < phi < 150' --temperature 320 --json

No energy is evaluated: the samples are weighted anew. Another temperature costs effective samples, which is shown.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run(parser)
    add = parser.add_argument
    add("--basin", action="append", required=True, metavar="'NAME: EXPR'", help="may be repeated")
    add(
        "--temperature",
        type=finite_number,
        metavar="K",
        help="weight the samples at this temperature (default: the run's)",
    )
    add_json(parser)


def run_command(options: argparse.Namespace) -> None:
    """Estimate and print."""
    from boltzgen.collective_variables import parse_named_basins

    basins = parse_named_basins(options.basin)
    ensemble = read_ensemble(options.run)
    if options.temperature is not None:
        ensemble = ensemble.at_temperature(options.temperature)
    found = ensemble.free_energy(basins)
    if options.json:
        values = {name: basin.to_dict() for name, basin in found.items()}
        quality = {"ess_fraction": ensemble.ess_fraction, "n_samples": len(ensemble)}
        judged = {"verdict": found.verdict.verdict, "verdict_reason": found.verdict.reason}
        print_json({"free_energies": values, "kT_kJ_per_mol": ensemble.kT, **quality, **judged})
    else:
        print(f"{found}\nESS {ensemble.ess_fraction:.1%} of {len(ensemble):,} samples")
