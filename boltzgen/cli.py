"""The command ``boltzgen``."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from boltzgen import __version__
from boltzgen.commands import COMMANDS, add_commands
from boltzgen.commands.inputs import add_molecule, add_training, run_values
from boltzgen.commands.stored import EXIT_CODES, add_json, print_json, seed_number
from boltzgen.errors import BoltzgenError, CheckpointError, OutputError
from boltzgen.reproduce.command import add_options, run_command

__all__ = ["main"]

OK, FAILED, WRONG_INPUT = 0, 1, 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

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
  result.json (what --json prints), report.html, samples.dcd (with topology.pdb and weights.npz), model.safetensors,
  checkpoint.pt, history.csv, manifest.json
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
    if options.command == "reproduce":
        return _reproduce(options, words)
    return _run(options, words) if options.command in ("run", "train") else _short(options)


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
        argument_default=argparse.SUPPRESS,
    )
    add_molecule(run, "structure of one molecule without solvent, PDB or mmCIF; or a recipe, TOML")
    add_training(run)
    run.add_argument("--reference", action="store_true", help="run parallel tempering too, and compare")
    add_json(run)
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
    """A command that is a module of its own; it sets ``started`` once its input is known to be good."""

    def refuse(error: BoltzgenError) -> tuple[str, int]:
        started = getattr(options, "started", False) and not isinstance(error, CheckpointError)
        return _one_line(error), FAILED if started else WRONG_INPUT

    return _guarded(
        lambda: COMMANDS[options.command].run_command(options),
        refuse,
        lambda: _complain("go on with the same command", kind="") if getattr(options, "checkpoint", None) else None,
    )


def _reproduce(options: argparse.Namespace, words: list[str]) -> int:
    started = False

    def work() -> None:
        nonlocal started
        from boltzgen.output_files import OutputFolder

        OutputFolder(options.out, resume=True).claim()
        started = True
        run_command(options, words, _say, _murmur)

    def refuse(error: BoltzgenError) -> tuple[str, int]:
        if isinstance(error, CheckpointError) or (isinstance(error, OutputError) and not started):
            return f"{_one_line(error)} (choose another folder with --out)", WRONG_INPUT
        return _one_line(error), FAILED

    return _guarded(
        work,
        refuse,
        lambda: _complain("what is finished is kept. Go on with the same command", kind=""),
    )


def _run(arguments: argparse.Namespace, words: list[str]) -> int:
    folder: Path | None = None  # that of the run, once it has started
    say = _murmur if arguments.json else _say

    def work() -> None:
        nonlocal folder
        from boltzgen.run import RunOptions, execute, prepare, train  # takes seconds: after --help and typing errors

        options = RunOptions(**run_values(arguments), command=("boltzgen", *words))
        prepared = prepare(options, say)
        folder = prepared.folder.path
        result = (train if arguments.command == "train" else execute)(prepared, say)
        if result is None:  # the first process has it, where several train together
            return
        if arguments.json:
            print_json({**result.values, "folder": str(result.folder)})
        else:
            _say(f"\n{result}")

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
        sys.stdout.flush()
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
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        _drop_output()
        return FAILED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:  # files of the package say so by an OutputError
            _drop_output()
            _complain(f"the output cannot be written: {error.strerror}")
            go_on()
            return FAILED
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


def _drop_output() -> None:
    """Leave nothing in the buffer that Python would try to write when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _murmur(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
