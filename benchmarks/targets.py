"""The molecules and energies that published Boltzmann generators are measured on, and two of our own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import openmm
import torch
from openmm import app, unit
from openmmtools import testsystems

from boltzgen import __version__
from boltzgen.molecule import Molecule

__all__ = ["BINS", "TARGETS", "torsion_pairs", "versions"]

BINS = 100  # of each torsion, in published Ramachandran histograms
SYSTEMS = Path(__file__).resolve().parent.parent / "systems"


def dipeptide_charmm36m() -> Molecule:
    """Alanine dipeptide, CHARMM36m, vacuum, 300 K."""
    return Molecule.from_pdb(SYSTEMS / "alanine_dipeptide.pdb")


def dipeptide_ff96() -> Molecule:
    """Alanine dipeptide, ff96 with OBC1, no constraints, 300 K: the published benchmark."""
    test = testsystems.AlanineDipeptideImplicit(constraints=None)
    return Molecule.from_openmm(test.topology, test.system, test.positions, 300 * unit.kelvin)


def tetrapeptide_ff99sb() -> Molecule:
    """ACE-ALA3-NME, ff99SB-ILDN with OBC, bonds of hydrogens constrained, 300 K: the published benchmark."""
    pdb = app.PDBFile(str(SYSTEMS / "ace_ala3_nme.pdb"))
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    return Molecule.from_openmm(pdb.topology, system, pdb.positions, 300 * unit.kelvin)


def tetrapeptide_charmm36m() -> Molecule:
    """ACE-ALA3-NME, CHARMM36m with OBC2, 300 K."""
    return Molecule.from_pdb(SYSTEMS / "ace_ala3_nme.pdb", solvent="obc2")


TARGETS: dict[str, Callable[[], Molecule]] = {
    "dipeptide-charmm36m": dipeptide_charmm36m,
    "dipeptide-ff96": dipeptide_ff96,
    "tetrapeptide-ff99sb": tetrapeptide_ff99sb,
    "tetrapeptide-charmm36m": tetrapeptide_charmm36m,
}


def torsion_pairs(molecule: Molecule) -> dict[str, tuple[str, str]]:
    """Names of phi and psi by residue."""
    names = [name for name in molecule.torsions if name.startswith("phi")]
    return {name.replace("phi", "").strip("[]") or "1": (name, name.replace("phi", "psi")) for name in names}


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {
        "boltzgen": __version__,
        "torch": torch.__version__,
        "openmm": openmm.version.version,
        "python": platform.python_version(),
    }
