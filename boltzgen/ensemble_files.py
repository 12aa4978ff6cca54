"""Ensembles on disk: a trajectory that other programs read, and a file of weights that makes it whole again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzgen.errors import OutputError

if TYPE_CHECKING:
    from boltzgen.ensemble import Ensemble
    from boltzgen.molecule import Molecule

__all__ = ["FORMATS", "load_ensemble", "save_ensemble"]

# Each with what it does to positions: DCD and NetCDF keep single precision, XTC rounds to 1e-3 nm, PDB to 1e-4 nm,
# NPZ keeps everything. Energies and weights are always those of the positions before.
FORMATS = ("dcd", "nc", "xtc", "pdb", "npz")
_ARRAYS = {
    "log_weights": "log_weights",
    "energies": "energies_kJ_per_mol",
    "log_q": "log_q",
    "log_rigid_integral": "log_rigid_integral",
    "groups": "groups",
}
_DAMAGE = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)  # how a damaged file comes out
_C_OUTPUT = threading.Lock()  # of two threads, the second would take the silence of the first for the output
_VALUES = ("kT", "kind", "target", "n_lost", "n_defects", "evaluations", "dimension")


def save_ensemble(ensemble: Ensemble, folder: str | os.PathLike[str], format: str) -> Path:
    """Write ``topology.pdb``, ``samples.<format>`` and ``weights.npz``; see `Ensemble.save`."""
    if format not in FORMATS:
        raise OutputError(f"format must be {', '.join(FORMATS)}, not {format!r}")
    folder = Path(folder)
    trajectory = None if format == "npz" and ensemble.molecule is None else ensemble.trajectory
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if trajectory is not None:
            _atomic(folder / "topology.pdb", lambda path: trajectory[0].save_pdb(str(path)))
        _atomic(folder / f"samples.{format}", lambda path: _write(ensemble, trajectory, path, format))
        present: dict[str, Any] = {
            stored: getattr(ensemble, name) for name, stored in _ARRAYS.items() if getattr(ensemble, name) is not None
        }
        present |= {name: getattr(ensemble, name) for name in _VALUES if getattr(ensemble, name) is not None}
        _atomic(folder / "weights.npz", lambda path: np.savez_compressed(path, **present))
    except OSError as error:
        raise OutputError(f"cannot write the samples to {folder}: {error}") from error
    return folder


def load_ensemble(folder: str | os.PathLike[str], molecule: Molecule | None) -> Ensemble:
    """Read what `save_ensemble` wrote; see `Ensemble.load`."""
    from boltzgen.ensemble import Ensemble

    folder = Path(folder)
    found = [folder / f"samples.{format}" for format in FORMATS if (folder / f"samples.{format}").is_file()]
    if not found or not (folder / "weights.npz").is_file():
        raise OutputError(f"{folder} holds no ensemble: samples.<{'|'.join(FORMATS)}> and weights.npz are needed")
    try:
        with np.load(folder / "weights.npz", allow_pickle=False) as stored:
            arrays = {name: stored[key] for name, key in _ARRAYS.items() if key in stored}
            values = {name: stored[name].item() for name in _VALUES if name in stored}
        positions = _read(found[0], folder / "topology.pdb")
    except _DAMAGE as error:
        raise OutputError(f"cannot read the samples in {folder}: {error}") from error
    if "log_weights" not in arrays or arrays["log_weights"].ndim != 1:
        raise OutputError(f"cannot read the samples in {folder}: weights.npz holds no list of log-weights")
    if "kT" not in values:
        if molecule is None:
            raise OutputError(f"{folder} does not say its temperature (an older version wrote it): give the molecule")
        values["kT"] = molecule.kT
    if not (np.isfinite(values["kT"]) and values["kT"] > 0):
        raise OutputError(f"cannot read the samples in {folder}: weights.npz has kT = {values['kT']:g} kJ/mol")
    if len(positions) != len(arrays["log_weights"]) or (
        molecule is not None and positions.shape[1] != molecule.n_atoms
    ):
        expected = f"{len(arrays['log_weights'])} samples" + (
            f" of {molecule.n_atoms} atoms" if molecule is not None else ""
        )
        raise OutputError(f"{found[0]} holds positions of shape {positions.shape}; {expected} were expected")
    n_infinite = int(np.isneginf(arrays["log_weights"]).sum())
    return Ensemble(positions, molecule=molecule, n_infinite=n_infinite, **arrays, **values)


def _write(ensemble: Ensemble, trajectory: Any, path: Path, format: str) -> None:
    if format == "npz":
        np.savez_compressed(path, positions=ensemble.positions)
        return
    savers = {"dcd": "save_dcd", "nc": "save_netcdf", "xtc": "save_xtc", "pdb": "save_pdb"}
    try:
        getattr(trajectory, savers[format])(str(path))
    except TypeError as error:  # how a failed write comes out of mdtraj 1.11
        raise OSError("the trajectory could not be written; is the disk full?") from error
    if format == "dcd" and path.stat().st_size < trajectory.n_frames * 3 * (4 * trajectory.n_atoms + 8):
        raise OSError("the trajectory is incomplete; is the disk full?")


def _read(path: Path, topology: Path) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored["positions"])
    import mdtraj

    if path.suffix == ".pdb":
        return np.asarray(mdtraj.load(str(path)).xyz)
    with _silent_c():
        return np.asarray(mdtraj.load(str(path), top=str(topology)).xyz)


@contextlib.contextmanager
def _silent_c() -> Iterator[None]:
    """The reader of DCD files greets on C's standard output, where a command may be writing JSON."""
    with _C_OUTPUT, contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError, AttributeError):  # without standard output there is nothing to protect
            sys.stdout.flush()
            _flush_c()
            kept = os.dup(1)
            undo.callback(os.close, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            undo.callback(os.close, nowhere)
            os.dup2(nowhere, 1)
            undo.callback(os.dup2, kept, 1)
            undo.callback(_flush_c)
        yield


def _flush_c() -> None:
    with contextlib.suppress(OSError, TypeError, AttributeError):  # where C's library is not found by no name
        ctypes.CDLL(None).fflush(None)


def _atomic(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
