"""The state of a training on disk: written atomically, read without running code, refused where it does not belong."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzgen import __version__
from boltzgen.errors import CheckpointError
from boltzgen.generator_description import describe
from boltzgen.output_files import explain_os_error, write_bytes
from boltzgen.placement_training import PlacementTraining
from boltzgen.training import Training

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = "boltzgen training"
SHOWN = 40  # characters of a value, in messages
FORMAT_VERSION = 4  # since 3: buffer, cooling, streams of random numbers; since 4: errors of foreseen populations


@dataclass(frozen=True)
class Checkpoint:
    """A training between two of its steps.

    Attributes
    ----------
    path : Path
    identity : {name: value}
        What a training must share to go on from here: molecule, force field, budget, seed and so on.
    description, arrays :
        The generator, as `boltzgen.generator_description.describe` gives it.
    training : dict
        State of the `Training`.
    placement : dict or None
        State of the `PlacementTraining`, where a network places hydrogens.
    """

    path: Path
    identity: dict[str, Any]
    description: str
    arrays: dict[str, Tensor]
    training: dict[str, Any]
    placement: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        return int(self.training["step"])

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse to go on with something else.

        Raises
        ------
        CheckpointError
            Naming what differs, with both values.
        """
        differences = [
            "{} is {} there and {} here".format(name, *_apart(self.identity.get(name), identity.get(name)))
            for name in dict.fromkeys([*identity, *self.identity])
            if self.identity.get(name) != identity.get(name)
        ]
        if differences:
            raise CheckpointError(f"{self.path} belongs to another run: {'; '.join(differences)}")

    def restore(self, training: Training) -> None:
        """Put the state into an equal training.

        Raises
        ------
        CheckpointError
            If stages, batch size or networks differ.
        """
        try:
            training.load_state_dict(self.training)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} does not fit this training: {error}") from error


def save_checkpoint(
    path: str | os.PathLike[str],
    training: Training,
    identity: Mapping[str, Any],
    placement: PlacementTraining | None = None,
) -> Path:
    """Write the whole state of a training; the file is the old one or the whole new one.

    All processes of a training must call this: the first writes.

    Parameters
    ----------
    path : path-like
    training : Training
    identity : {name: number or string}
        Compared by `Checkpoint.check`.
    placement : PlacementTraining, optional
        What comes before the training, where a network places hydrogens.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    state = training.state_dict()
    if not training.processes.is_first:
        return Path(path)
    description, arrays = describe(training.generator)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "boltzgen_version": __version__,
        "identity": dict(identity),
        "description": description,
        "arrays": arrays,
        "training": state,
        "placement": None if placement is None else placement.state_dict(),
    }
    buffer = io.BytesIO()  # torch.save into a file does not say why it failed
    torch.save(content, buffer)
    return write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote; only tensors, numbers and strings are accepted.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or another version.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path} to go on from") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {explain_os_error(error)}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged, or not one of boltzgen") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of boltzgen")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint {path} has format version {content.get('format_version')}, written by boltzgen "
            f"{content.get('boltzgen_version')}; this is boltzgen {__version__}, which reads version {FORMAT_VERSION}"
        )
    try:
        return Checkpoint(
            path=path,
            identity=content["identity"],
            description=content["description"],
            arrays=content["arrays"],
            training=content["training"],
            placement=content.get("placement"),
        )
    except KeyError as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error} is missing") from error


def _apart(there: Any, here: Any) -> tuple[str, ...]:
    """Two values as text; of long ones a part that begins before the place in which they differ."""
    texts = str(there), str(here)
    if texts[0] == texts[1]:
        return repr(there), repr(here)
    if max(map(len, texts)) <= SHOWN:
        return texts
    common = next((k for k, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    word = max(texts[0].rfind(" ", 0, common), texts[0].rfind("(", 0, common)) + 1
    start = max(word, common - SHOWN // 2)
    return tuple(_cut(text, start) for text in texts)


def _cut(text: str, start: int) -> str:
    before, after = "…" if start else "", "…" if len(text) > start + SHOWN else ""
    return f"{before}{text[start : start + SHOWN]}{after}"
