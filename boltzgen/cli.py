"""The command ``boltzgen``."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from boltzgen import __version__
from boltzgen.commands import COMMANDS, add_commands
from boltzgen.commands.stored import finite_number, seed_number
from boltzgen.errors import BoltzgenError, CheckpointError, OutputError
from boltzgen.reproduce.command import add_options, run_command

__all__ = ["main"]

OK, FAILED, WRONG_INPUT = 0, 1, 2

EXIT_CODES = """\
exit codes:
  0    the result is written, whatever its verdict
  1    the run failed after it had started (a full disk, a training that collapsed); the message says what is left
  2    the input or an option cannot be used; nothing was written
  130  interrupted by Ctrl-C (143 by SIGTERM); the message says how to go on
"""

EPILOG = """\
examples:
  boltzgen run systems/alanine_dipeptide.pdb
  boltzgen run molecule.pdb --budget quick --basin 'C7ax: 0 < phi < 150' --basin 'C5: 90 < psi < 210 and phi < -120'
  boltzgen run molecule.pdb --solvent obc2 --temperature 310 --reference --out results
  boltzgen run molecule.pdb --out results --resume
  boltzgen run systems/ace_ala3_nme.toml --seed 1      (a recipe: the same options in a file, see systems/)
  boltzgen run molecule.pdb --hydrogens network        (as in the paper, whose hydrogens sit at their minimum)

basin expressions:
  comparisons such as 0 < phi < 150, joined by and, or, not. Torsions (phi, psi, omega, chi1, ...; phi[2] where
  there are several) are in degrees, and 150 < phi < 210 is an arc across 180; distance(ALA2:N, ALA2:O) is in nm.

files in the output folder:
  result.json, report.html, samples.dcd (with topology.pdb and weights.npz), model.safetensors, checkpoint.pt,
  history.csv, manifest.json
"""


class _Parser(argparse.ArgumentParser):
    """Errors on one line."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(WRONG_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    if options.command is None:
        parser.print_help()
        return WRONG_INPUT
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is no reason to lose a result
    logging.basicConfig(format="boltzgen: %(message)s", level=logging.WARNING)
    if options.command in COMMANDS:
        return _short(options)
    return _reproduce(options, words) if options.command == "reproduce" else _run(options, words)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="boltzgen",
        description="Boltzmann generators for molecules: from a PDB file to a free energy with an error bar.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"boltzgen {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="train a generator for a molecule and compute free energies",
        description="Train a generator on the energy of a molecule alone, and compute free energies with it.",
        epilog=f"{EPILOG}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # defaults are those of RunOptions, under a recipe where there is one
    )
    add = run.add_argument
    add("pdb", metavar="PDB", help="structure of one molecule without solvent, PDB or mmCIF; or a recipe, TOML")
    add(
        "--forcefield",
        metavar="NAME",
        help="force field, or an OpenMM XML file (default: charmm36m)",
    )
    add("--solvent", metavar="NAME", help="none, hct, obc1, obc2, gbn or gbn2 (default: none)")
    add("--temperature", type=finite_number, metavar="K", help="in kelvin (default: 300)")
    add("--budget", metavar="B", help="quick, standard, thorough, or a number of energy evaluations")
    add("--basin", action="append", metavar="'NAME: EXPR'", help="basin for a free energy; may be repeated")
    add(
        "--ph",
        type=finite_number,
        metavar="PH",
        help="for protonation states that the file leaves open (default: 7)",
    )
    add(
        "--variant",
        action="append",
        metavar="RES=STATE",
        help="protonation state, e.g. HIS5=HIE; may be repeated",
    )
    add("--reference", action="store_true", help="run parallel tempering too, and compare")
    add("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--seed", type=seed_number, metavar="N", help="of every random number (default: 0)")
    add("--out", metavar="DIR", help="folder for the files, new or empty (default: PDB-FORCEFIELD-seedN)")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--omega", choices=("trans", "free"), help="amide torsions stay as in the file, or turn freely")
    add(
        "--coordinates",
        choices=("internal", "cartesian"),
        help="of the heavy atoms; cartesian starts in one basin and is not to be used without --reference",
    )
    add(
        "--hydrogens",
        choices=("flow", "network", "minimized"),
        help="drawn with exact density, or placed at their energy minimum h(x_C): the target is then "
        "exp(-U(h(x_C))/kT) on the heavy atoms x_C alone, not the Boltzmann distribution of the molecule",
    )
    again = commands.add_parser(
        "reproduce",
        help="run the experiments of the paper again, and say which of its claims hold",
        description="Run an experiment of Felardos, Hénin, Charpiat (2022) again: a table of what the paper says "
        "beside what is found here, with its figure.",
    )
    add_options(again, seed_number)
    add_commands(commands)
    return parser


def _short(options: argparse.Namespace) -> int:
    """A command on a finished run."""
    return _guarded(
        lambda: COMMANDS[options.command].run_command(options), lambda error: (_one_line(error), WRONG_INPUT)
    )


def _reproduce(options: argparse.Namespace, words: list[str]) -> int:
    def refuse(error: BoltzgenError) -> tuple[str, int]:
        if isinstance(error, CheckpointError | OutputError):
            return f"{_one_line(error)} (choose another folder with --out)", WRONG_INPUT
        return _one_line(error), FAILED

    return _guarded(
        lambda: run_command(options, words, _say, lambda line: print(line, file=sys.stderr, flush=True)),
        refuse,
        lambda: _complain("what is finished is kept. Go on with the same command", kind=""),
    )


def _run(arguments: argparse.Namespace, words: list[str]) -> int:
    folder: Path | None = None  # that of the run, once it has started

    def work() -> None:
        nonlocal folder
        from boltzgen.run import RunOptions, execute, prepare  # takes seconds: after --help and typing errors

        options = RunOptions(**_run_values(arguments), command=("boltzgen", *words))
        prepared = prepare(options, _say)
        folder = prepared.folder.path
        result = execute(prepared, _say)
        if result is not None:  # the first process has it, where several train together
            _say(f"\n{result}\n{'report':<16}{result.folder / 'report.html'}")

    return _guarded(
        work,
        lambda error: (_one_line(error), WRONG_INPUT if folder is None else FAILED),
        lambda: _hint(words, folder),
    )


def _guarded(
    work: Callable[[], None],
    refuse: Callable[[BoltzgenError], tuple[str, int]],
    go_on: Callable[[], None] = lambda: None,
) -> int:
    """Do the work of a command; whatever ends it becomes a message and an exit code.

    Parameters
    ----------
    refuse : callable
        Message and exit code of an error that was raised on purpose.
    go_on : callable
        Says how to go on after work that had begun.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    from boltzgen.interrupts import RunInterrupted

    try:
        work()
        return OK
    except BoltzgenError as error:
        message, code = refuse(error)
        _complain(message)
        if code == FAILED:
            go_on()
        return code
    except RunInterrupted as stop:
        _complain("interrupted; the checkpoint is written", kind="")
        go_on()
        return 128 + stop.signal_number
    except KeyboardInterrupt as stop:
        _complain("stopped", kind="")
        go_on()
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except Exception:
        traceback.print_exc()
        _complain("this is a defect of boltzgen: please report it with the lines above")
        go_on()
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside the training."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str, kind: str = "error: ") -> None:
    print(f"boltzgen: {kind}{text}", file=sys.stderr, flush=True)


def _hint(words: list[str], folder: Path | None) -> None:
    """Say how to go on, where there is something to go on from."""
    if folder is None:
        return
    from boltzgen.run import CHECKPOINT

    if not (folder / CHECKPOINT).exists():
        return
    kept = [word for word in words if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in kept):
        kept += ["--out", str(folder)]
    _complain(f"go on with: {shlex.join(['boltzgen', *kept, '--resume'])}", kind="")


def _one_line(error: BoltzgenError) -> str:
    """The message of an error; an expression with a caret under it becomes a column."""
    lines = str(error).splitlines()
    if len(lines) == 3 and lines[2].strip() == "^":
        return f"{lines[0]} (at column {lines[2].index('^') - 1} of {lines[1].strip()!r})"
    return " ".join(line.strip() for line in lines)


def _run_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `RunOptions`: those of a recipe, where one is given, under those of the command line."""
    from boltzgen.collective_variables import parse_named_basins
    from boltzgen.run.recipes import read_recipe

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "basin", "variant")}
    if str(arguments.pdb).lower().endswith(".toml"):
        given = read_recipe(arguments.pdb) | {name: value for name, value in given.items() if name != "pdb"}
    if "basin" in arguments:
        given["basins"] = parse_named_basins(arguments.basin)
    if "variant" in arguments:
        given["variants"] = _variants(arguments.variant)
    if "solvent" in given:
        given["solvent"] = given["solvent"].lower()
    return given


def _variants(texts: list[str]) -> dict[str, str]:
    from boltzgen.errors import StructureError

    found = {}
    for text in texts:
        residue, equals, state = (part.strip() for part in text.partition("="))
        if not (residue and equals and state):
            raise StructureError(f"cannot read --variant {text!r}: write RES=STATE, e.g. HIS5=HIE")
        found[residue] = state
    return found
