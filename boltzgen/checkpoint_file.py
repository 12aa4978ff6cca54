"""The state of long work on disk: written atomically, read without running code, refused where it does not belong."""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boltzgen import __version__
from boltzgen.errors import CheckpointError
from boltzgen.output_files import check_writable, explain_os_error, write_bytes

__all__ = ["CHECKPOINT_SECONDS", "Checkpointed", "StoredState", "check_identity", "read_checkpoint", "write_checkpoint"]

CHECKPOINT_SECONDS = 60.0
FORMAT = "boltzgen training"
SHOWN = 40  # characters of a value, in messages
FORMAT_VERSION = 4  # since 3: buffer, cooling, streams of random numbers; since 4: errors of foreseen populations


@dataclass(frozen=True)
class StoredState:
    """What a checkpoint holds.

    Attributes
    ----------
    path : Path
    identity : {name: value}
        What work must share to go on from here: molecule, settings, seed and so on.
    content : {name: value}
        Tensors, numbers and strings.
    """

    path: Path
    identity: dict[str, Any]
    content: dict[str, Any]


class Checkpointed:
    """Work in steps whose state is in a file, from which the same work goes on.

    Parameters
    ----------
    path : path-like or None
        Read if it exists; None: nothing is read or written.
    identity : {name: value}
        Must be that of the file.
    state : callable
        Gives all that the next step depends on, of tensors, numbers and strings.

    Attributes
    ----------
    path : Path or None

    Raises
    ------
    CheckpointError
        If the file is damaged, or of other work.
    OutputError
        If it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, Any],
        state: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.path = None if path is None else Path(path)
        self._identity, self._state = {"boltzgen": __version__, **identity}, state
        self._found: Mapping[str, Any] | None = None
        if self.path is None:
            return
        check_writable(self.path)
        if self.path.exists():
            found = read_checkpoint(self.path)
            check_identity(self.path, found.identity, self._identity)
            self._found = found.content

    @property
    def exists(self) -> bool:
        """Whether there is a state that `restore` has not given yet."""
        return self._found is not None

    def restore(self, take: Callable[[Mapping[str, Any]], None]) -> None:
        """Give the state of the file, if there is one, to a callable.

        Raises
        ------
        CheckpointError
            If it does not fit.
        """
        found, self._found = self._found, None
        if found is None:
            return
        try:
            take(found)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} belongs to another run: {error}") from error
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} does not fit: {error}") from error

    def written(self, steps: Iterable[int]) -> Iterator[int]:
        """The same steps, with the state written every minute; `write` is for their end."""
        last = time.monotonic()
        for step in steps:
            yield step
            if time.monotonic() - last >= CHECKPOINT_SECONDS:
                self.write()
                last = time.monotonic()

    def write(self) -> None:
        """Write the state as it is, if there is a file for it."""
        if self.path is not None:
            write_checkpoint(self.path, self._identity, self._state())


def write_checkpoint(path: str | os.PathLike[str], identity: Mapping[str, Any], content: Mapping[str, Any]) -> Path:
    """Write a state; the file is the old one or the whole new one.

    Parameters
    ----------
    path : path-like
    identity : {name: number or string}
        Compared by `check_identity`.
    content : {name: value}

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "boltzgen_version": __version__,
        "identity": dict(identity),
    }
    buffer = io.BytesIO()  # torch.save into a file does not say why it failed
    torch.save({**header, **content}, buffer)
    return write_bytes(path, buffer.getvalue())


def read_checkpoint(path: str | os.PathLike[str]) -> StoredState:
    """Read what `write_checkpoint` wrote; only tensors, numbers and strings are accepted.

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
    if "identity" not in content:
        raise CheckpointError(f"the checkpoint {path} is damaged: 'identity' is missing")
    return StoredState(path, content.pop("identity"), content)


def check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with something else.

    Raises
    ------
    CheckpointError
        Naming what differs, with both values.
    """
    differences = [
        "{} is {} there and {} here".format(name, *_apart(found.get(name), wanted.get(name)))
        for name in dict.fromkeys([*wanted, *found])
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise CheckpointError(f"{path} belongs to another run: {'; '.join(differences)}")


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
