"""Writing results: a folder that is claimed before work begins, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boltzgen.errors import OutputError

__all__ = ["OutputFolder", "check_writable", "explain_os_error", "write_bytes", "write_json"]


class OutputFolder:
    """A folder for the files of one run.

    Parameters
    ----------
    path : path-like
    resume : bool
        True: the folder holds an earlier part of this run; False: it must be empty or not exist.

    Raises
    ------
    OutputError
        If the folder is not empty, not a folder, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = Path(path)
        self._made: list[Path] = []
        try:
            self._check(resume)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"the output folder {self.path} cannot be used: {explain_os_error(error)}") from error

    def _check(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"the output folder {self.path} exists and is a file: choose another with --out")
        if self.path.is_dir() and any(self.path.iterdir()) and not resume:
            raise OutputError(
                f"the output folder {self.path} is not empty: choose another with --out, or go on with --resume"
            )
        existing = next(p for p in [self.path, *self.path.absolute().parents] if p.exists())
        if not existing.is_dir():
            raise OutputError(f"the output folder {self.path} cannot be made: {existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"the output folder {self.path} cannot be written: no permission for {existing}")

    def claim(self) -> None:
        """Make the folder, with its parents.

        Raises
        ------
        OutputError
        """
        missing = [p for p in [self.path, *self.path.parents] if not p.exists()]
        try:
            for folder in reversed(missing):
                folder.mkdir()
                self._made.append(folder)
        except OSError as error:
            self.release()
            raise OutputError(f"the output folder {self.path} cannot be made: {explain_os_error(error)}") from error

    def release(self) -> None:
        """Remove what `claim` made, as far as it is still empty."""
        with contextlib.suppress(OSError):
            while self._made:
                self._made[-1].rmdir()
                self._made.pop()

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be made where it is meant to be, before any work; nothing is left behind.

    Raises
    ------
    OutputError
        Naming the file and the reason.
    """
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder")
    with _explained(path):
        partial = _partial(path)
        partial.touch()
        partial.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file under a temporary name, then rename it: `path` is the old file or the whole new one.

    Raises
    ------
    OutputError
        Naming the file and the reason; the temporary file is gone then.
    """
    path = Path(path)
    partial = _partial(path)
    with _explained(path):
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Path:
    """Write valid JSON: numbers that are not finite become null.

    Raises
    ------
    OutputError
    """
    text = json.dumps(finite_or_null(values), indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def finite_or_null(value: Any) -> Any:
    """A copy of nested mappings and lists with None in the place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float):  # includes numpy.float64
        return float(value) if math.isfinite(value) else None
    return value


def explain_os_error(error: OSError) -> str:
    """The reason in plain words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {explain_os_error(error)}") from error
