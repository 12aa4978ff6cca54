"""What the commands share: reading a finished run, and printing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzgen.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["add_json", "add_run", "print_json", "read_ensemble", "read_generator", "writable_file"]

MODEL = "model.safetensors"


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument that names a run."""
    parser.add_argument("run", metavar="RUN", help="output folder of boltzgen run")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option to print JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, NaN and infinities as null")


def read_generator(run: str, seed: int | None = None, device: str | None = None) -> BoltzmannGenerator:
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
    generator = BoltzmannGenerator.load(model, **({} if device is None else {"device": device}))
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
        If its ending is none of the known ones, or its folder does not exist.
    """
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{text}: the name must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{text}: there is no folder {path.absolute().parent}")
    return path
