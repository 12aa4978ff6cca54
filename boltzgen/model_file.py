"""A trained generator as one safetensors file: parameters as tensors, the rest as JSON in its header.

Reading such a file runs no code from it. Nothing is computed again: the internal coordinates come back to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from boltzgen import __version__
from boltzgen.errors import CheckpointError
from boltzgen.generator_description import describe, rebuild
from boltzgen.output_files import explain_os_error, write_bytes

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["load_generator", "save_generator"]

FORMAT = "boltzgen generator"
# Since 2: lines of atoms, symmetric groups; since 3: hydrogens in local groups; since 4: the domain of Cartesian flows,
# splines of zuko.
FORMAT_VERSION = "4"


def save_generator(generator: BoltzmannGenerator, path: str | os.PathLike[str]) -> Path:
    """Write a generator to one file, atomically.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Of a molecule.
    path : path-like
        Usually ends in ``.safetensors``.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If the flow is not that of a molecule.
    OutputError
        If the file cannot be written.
    """
    description, arrays = describe(generator)
    tensors = {f"flow.{name}": value for name, value in generator.flow.state_dict().items()} | arrays
    tensors[f"rng.{generator.device.type}"] = generator.rng.get_state()
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "boltzgen_version": __version__,
        "description": description,
        "sha256": _digest(tensors),
    }
    return write_bytes(path, safetensors_torch.save(tensors, metadata))


def load_generator(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> BoltzmannGenerator:
    """Read what `save_generator` wrote.

    Random numbers go on where they stood when the file was written, if the device is of the same kind.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or of another kind.
    """
    metadata, tensors = _read(Path(path))
    if tensors and metadata.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    try:
        generator = rebuild(metadata["description"], tensors, device)
        parameters = {name.removeprefix("flow."): v for name, v in tensors.items() if name.startswith("flow.")}
        generator.flow.load_state_dict(parameters)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    state = tensors.get(f"rng.{generator.device.type}")
    if state is not None:
        generator.rng.set_state(state)
    return generator


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the model {path} cannot be read: {explain_os_error(error)}") from error
    try:
        metadata = _header(content)
        tensors = safetensors_torch.load(content)
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged, or not a model of boltzgen ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not a model of boltzgen")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('format_version')}, written by boltzgen "
            f"{metadata.get('boltzgen_version')}; this is boltzgen {__version__}, which reads version {FORMAT_VERSION}"
        )
    return metadata, tensors


def _header(content: bytes) -> dict[str, str]:
    """The metadata: eight bytes of length, little-endian, then JSON."""
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError("the header is longer than the file")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
