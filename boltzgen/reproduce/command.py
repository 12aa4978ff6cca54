"""The command ``boltzgen reproduce``: its options, and what it prints. Imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence

from boltzgen.reproduce.experiments import EXPERIMENTS, SCALES, find_experiment, reproduce

__all__ = ["add_options", "run_command"]

EPILOG = """\
examples:
  boltzgen reproduce double-well
  boltzgen reproduce double-well --scale paper --out paper      (hours; Ctrl-C, then the same command goes on)
  boltzgen reproduce propositions --seeds 0 1 2 --json

experiments:
{experiments}

files in the output folder:
  NAME.json (settings, findings, curves), NAME.md (the table "paper / here"), NAME.png, checkpoints/

A claim is "reproduced" if its stated rule holds in every seed. A claim that is not reproduced is a result: the exit
code is 0 either way.
"""


def add_options(parser: argparse.ArgumentParser, seed: Callable[[str], int]) -> None:
    """Declare the options of the command.

    Parameters
    ----------
    parser : ArgumentParser
    seed : callable
        Reads a seed.
    """
    listed = "\n".join(f"  {experiment.name:<14}{experiment.summary}" for experiment in EXPERIMENTS.values())
    parser.epilog = EPILOG.format(experiments=listed)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("experiment", metavar="NAME", type=_experiment, help=f"one of {', '.join(EXPERIMENTS)}")
    add(
        "--scale",
        choices=SCALES,
        default="quick",
        help="minutes on one core, or the paper's iterations (default: quick)",
    )
    add("--out", default="reproduced", metavar="DIR", help="folder for the files (default: reproduced)")
    add("--seeds", nargs="+", type=seed, default=[0, 1, 2], metavar="N", help="one curve each (default: 0 1 2)")
    add("--json", action="store_true", help="print the JSON; progress goes to standard error")


def run_command(
    options: argparse.Namespace, words: Sequence[str], say: Callable[[str], None], progress: Callable[[str], None]
) -> None:
    """Run what the options ask for, and say what was found.

    Parameters
    ----------
    options : Namespace
    words : sequence of str
        Of the command line, for the record.
    say, progress : callable
        Take lines of the result, and of progress.

    Raises
    ------
    BoltzgenError, RunInterrupted
        See `boltzgen.reproduce.reproduce`.
    """
    from boltzgen.output_files import finite_or_null

    command = shlex.join(["boltzgen", *words])
    report = reproduce(
        options.experiment,
        scale=options.scale,
        seeds=list(dict.fromkeys(options.seeds)),
        out=options.out,
        command=command,
        say=progress if options.json else say,
    )
    if options.json:
        say(json.dumps(finite_or_null(report.as_dict()), indent=2, ensure_ascii=False, allow_nan=False))
        return
    say(
        f"\n{report}\n\nwritten: "
        + ", ".join(f"{options.out}/{report.name}.{ending}" for ending in ("json", "md", "png"))
    )


def _experiment(name: str) -> str:
    try:
        return find_experiment(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
