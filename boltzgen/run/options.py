"""What a run from a PDB file to a free energy can be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from boltzgen.errors import BoltzgenError, SelectionError
from boltzgen.molecule import Molecule

__all__ = ["DeviceError", "RunOptions", "choose_basins", "choose_device"]

# C7ax of a dipeptide without the part of C5 that wraps round at 180 degrees.
DEFAULT_BASIN = {"C7ax": "0 < phi < 150"}


class DeviceError(BoltzgenError, ValueError):
    """A device is unknown or not there."""


@dataclass(frozen=True)
class RunOptions:
    """Options of `boltzgen.run.run`, those of ``boltzgen run``.

    Attributes
    ----------
    pdb : path-like
        PDB or mmCIF file.
    forcefield, solvent : str
        Names known to `boltzgen.forcefields`; ``"none"`` is vacuum.
    temperature : float
        Kelvin.
    budget : str or int
        quick, standard, thorough, or a number of energy evaluations.
    basins : {name: expression}
        Without any, a molecule with one phi gets C7ax.
    ph : float
    variants : {residue: state}
        Protonation states that override the choice by pH.
    reference : bool
        Whether to run parallel tempering beside.
    device : str
        auto, cpu, cuda or cuda:N.
    seed : int
    out : path-like, optional
        Folder for the files; by default named after molecule, force field and seed.
    resume : bool
        Go on from the checkpoint in ``out``.
    omega : {"trans", "free"}
        Whether amide torsions stay on their side.
    n_samples : int
        Final samples.
    command : sequence of str
        How the run was asked for, for the manifest and for the hint on resuming.
    """

    pdb: str | Path
    forcefield: str = "charmm36m"
    solvent: str = "none"
    temperature: float = 300.0
    budget: str | int = "standard"
    basins: Mapping[str, str] = field(default_factory=dict)
    ph: float = 7.0
    variants: Mapping[str, str] = field(default_factory=dict)
    reference: bool = False
    device: str = "auto"
    seed: int = 0
    out: str | Path | None = None
    resume: bool = False
    omega: str = "trans"
    n_samples: int = 100_000
    command: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files go."""
        if self.out is not None:
            return Path(self.out)
        forcefield = re.sub(r"[^A-Za-z0-9.-]+", "_", Path(self.forcefield).stem)
        solvent = "" if self.solvent == "none" else f"-{self.solvent}"
        return Path(f"{Path(self.pdb).stem}-{forcefield}{solvent}-seed{self.seed}")


def choose_basins(options: RunOptions, molecule: Molecule) -> dict[str, str]:
    """The named basins, or C7ax where there is a single phi, of a chiral residue other than proline; else none.

    Raises
    ------
    SelectionError
        If an expression does not parse.
    """
    from boltzgen.collective_variables import parse_basin

    chosen = dict(options.basins)
    if not chosen and _has_alanine_like_phi(molecule):
        chosen = dict(DEFAULT_BASIN)
    for name, expression in chosen.items():
        try:
            parse_basin(expression, molecule)
        except SelectionError as error:
            raise SelectionError(f"basin {name}: {error}") from error
    return chosen


def _has_alanine_like_phi(molecule: Molecule) -> bool:
    """One phi that turns freely about a chiral centre: C7ax means nothing for glycine and is out of proline's reach."""
    if "phi" not in molecule.torsions:
        return False
    alpha_carbon = molecule.torsions["phi"][2]
    residue = next(atom.residue.name for atom in molecule.topology.atoms() if atom.index == alpha_carbon)
    return residue not in ("GLY", "PRO")


def choose_device(name: str) -> torch.device:
    """The device to compute on; "auto" takes a GPU where PyTorch has one.

    Raises
    ------
    DeviceError
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device
