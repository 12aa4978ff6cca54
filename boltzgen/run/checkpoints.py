"""The state of a training on disk, with the generator that it trains."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from boltzgen.checkpoint_file import check_identity, read_checkpoint, write_checkpoint
from boltzgen.errors import CheckpointError
from boltzgen.generator_description import describe
from boltzgen.placement_training import PlacementTraining
from boltzgen.training import Training

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]


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
        check_identity(self.path, self.identity, identity)

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
        "description": description,
        "arrays": arrays,
        "training": state,
        "placement": None if placement is None else placement.state_dict(),
    }
    return write_checkpoint(path, identity, content)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote; only tensors, numbers and strings are accepted.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or another version.
    """
    stored = read_checkpoint(path)
    content = stored.content
    try:
        return Checkpoint(
            path=stored.path,
            identity=stored.identity,
            description=content["description"],
            arrays=content["arrays"],
            training=content["training"],
            placement=content.get("placement"),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint {stored.path} is damaged, or not that of a training: {error} is missing"
        ) from error
