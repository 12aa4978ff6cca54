"""What a run from a PDB file to a free energy can be told."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from boltzgen.errors import BoltzgenError, SelectionError
from boltzgen.molecule import Molecule

__all__ = ["OptionError", "RunOptions", "check_kinds_of_run", "choose_basins", "choose_device"]

# C7ax of a dipeptide without the part of C5 that wraps round at 180 degrees.
DEFAULT_BASIN = {"C7ax": "0 < phi < 150"}


class OptionError(BoltzgenError, ValueError):
    """An option is unknown, is not to be had here, or cannot give an honest answer together with another."""


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
    coordinates : {"internal", "cartesian"}
        Of the heavy atoms; see `BoltzmannGenerator.for_molecule`.
    hydrogens : {"flow", "network", "minimized"}
        Drawn, or a function of the heavy atoms, which is another target; see `BoltzmannGenerator.for_molecule`.
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
    coordinates: str = "internal"
    hydrogens: str = "flow"
    n_samples: int = 100_000
    command: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files go."""
        if self.out is not None:
            return Path(self.out)
        forcefield = re.sub(r"[^A-Za-z0-9.-]+", "_", Path(self.forcefield).stem)
        solvent = "" if self.solvent == "none" else f"-{self.solvent}"
        kinds = [self.coordinates] * (self.coordinates != "internal") + [self.hydrogens] * (self.hydrogens != "flow")
        return Path("-".join([f"{Path(self.pdb).stem}-{forcefield}{solvent}", *kinds, f"seed{self.seed}"]))


def check_kinds_of_run(options: RunOptions) -> None:
    """Refuse numbers and kinds of generators that cannot be, or that a reference run cannot be compared with.

    Raises
    ------
    OptionError
        With the remedy.
    """
    from boltzgen.flows.assembly import check_kinds

    if not 0 <= options.seed < 2**32:
        raise OptionError(f"a seed is a whole number from 0 to 2^32 - 1, not {options.seed}")
    if options.n_samples < 1:
        raise OptionError(f"n_samples = {options.n_samples}: at least one sample")
    if options.omega not in ("trans", "free"):
        raise OptionError(f"unknown omega = {options.omega!r}: choose trans or free")
    try:
        check_kinds(options.coordinates, options.hydrogens)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if options.reference and options.hydrogens != "flow":
        raise OptionError(
            f"--reference samples exp(-U/kT) of all atoms, but --hydrogens {options.hydrogens} has the target "
            "exp(-U(h(x_C))/kT) on the heavy atoms alone, so that the two differ by more than errors: leave one of "
            "them out, or compare in Python with boltzgen.placement.with_placed_hydrogens"
        )


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
        if not name.strip():
            raise SelectionError(f"the basin {expression!r} needs a name")
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
    """The device to compute on; "auto" takes a GPU where PyTorch has one, and each process of ``torchrun`` its own.

    Raises
    ------
    OptionError
    """
    if name == "auto":
        own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        return torch.device(own if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise OptionError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device
