"""Recipes: the options of a run in a TOML file."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from boltzgen.run.options import OptionError

__all__ = ["KEYS", "read_recipe"]

KEYS: dict[str, tuple[type, ...]] = {
    "pdb": (str,),
    "forcefield": (str,),
    "solvent": (str,),
    "temperature": (int, float),
    "budget": (str, int),
    "basins": (dict,),
    "ph": (int, float),
    "variants": (dict,),
    "reference": (bool,),
    "device": (str,),
    "seed": (int,),
    "omega": (str,),
    "coordinates": (str,),
    "hydrogens": (str,),
    "n_samples": (int,),
}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keyword arguments of `RunOptions` from a TOML file; ``pdb`` is found beside it.

    The schema is closed: ``pdb`` must be there, and every key is one of `KEYS`, which mean what `RunOptions` says;
    ``basins`` and ``variants`` are tables of text.

    Raises
    ------
    OptionError
        If the file cannot be read, a key is unknown (the nearest one is named), or a value is of the wrong kind.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: no valid TOML: {error}") from error
    for key, value in values.items():
        _check(path, key, value)
    if "pdb" not in values:
        raise OptionError(f"{path}: the key 'pdb' is missing: name the structure file")
    return values | {"pdb": path.parent / values["pdb"]}


def _check(path: Path, key: str, value: Any) -> None:
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}"
        raise OptionError(f"{path}: unknown key {key!r}; {hint}")
    wanted = KEYS[key]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        kinds = " or ".join(
            _WORDS[kind] for kind in wanted[-1:] + wanted[:-1] if kind is not int or float not in wanted
        )
        raise OptionError(f"{path}: {key} = {value!r} must be {kinds}")
    if isinstance(value, str) and "\0" in value:
        raise OptionError(f"{path}: {key} = {value!r} holds a NUL character")
    if isinstance(value, dict):
        for name, text in value.items():
            if not isinstance(text, str):
                raise OptionError(f"{path}: {key}.{name} = {text!r} must be text")
