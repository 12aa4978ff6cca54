"""What the commands share: reading a finished run, and printing."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzgen.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import torch

    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator

__all__ = [
    "EXIT_CODES",
    "add_json",
    "add_run",
    "finite_number",
    "print_json",
    "read_ensemble",
    "read_generator",
    "seed_number",
    "writable_file",
]

MODEL = "model.safetensors"

EXIT_CODES = """\
exit codes:
  0    the result is written, whatever its verdict
  1    the work failed after it had started (a full disk, a training that collapsed)
  2    the input or an option cannot be used; nothing was written
  130  interrupted by Ctrl-C (143 by SIGTERM); where there is something to go on from, the message says how
"""


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument that names a run."""
    parser.add_argument("run", metavar="RUN", help="output folder of boltzgen run")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option to print JSON."""
    add = parser.add_argument
    add("--json", action="store_true", default=False, help="print the result as JSON, NaN and infinities as null")


def finite_number(text: str) -> float:
    """What an option gives as a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def seed_number(text: str) -> int:
    """What an option gives as a seed."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 2^32 - 1, not {text!r}")
    return int(text)


def read_generator(run: str, seed: int | None = None, device: str | torch.device = "cpu") -> BoltzmannGenerator:
    """The generator of a run.

    Parameters
    ----------
    run : str
        Output folder, or a model file.
    seed : int, optional
        Of its random numbers from here on.

    Raises
    ------
    CheckpointError
        If there is no model, or it cannot be read.
    """
    from boltzgen.generator import BoltzmannGenerator

    path = Path(run)
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        raise CheckpointError(f"{path} holds no {MODEL}: give the output folder of a finished boltzgen run")
    generator = BoltzmannGenerator.load(model, device)
    if seed is not None:
        generator.rng.manual_seed(seed)
    return generator


def read_ensemble(run: str) -> Ensemble:
    """The samples of a run, with the molecule of its model.

    Raises
    ------
    CheckpointError, OutputError
        If files are missing or damaged.
    """
    from boltzgen.ensemble import Ensemble

    return Ensemble.load(run, read_generator(run).molecule)


def print_json(values: Mapping[str, Any]) -> None:
    """To standard output."""
    from boltzgen.output_files import finite_or_null

    print(json.dumps(finite_or_null(values), indent=2, ensure_ascii=False, allow_nan=False))


def writable_file(text: str, suffixes: tuple[str, ...]) -> Path:
    """A file to write, checked before work begins.

    Raises
    ------
    OutputError
        If its ending is none of the known ones, its folder does not exist, or no file can be made there.
    """
    from boltzgen.output_files import check_writable

    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{text}: the name must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{text}: there is no folder {path.absolute().parent}")
    check_writable(path)
    return path
