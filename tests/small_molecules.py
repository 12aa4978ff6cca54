"""Small molecules of CGenFF as OpenMM objects, and toy Systems for any topology."""

from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from boltzgen.forcefields import build_system
from boltzgen.molecule import Molecule

DATA = Path(__file__).resolve().parent / "data"
__all__ = ["DATA", "harmonic_molecule", "small_molecule"]


def small_molecule(name: str) -> Molecule:
    """A structure in tests/data/cgenff with the parameters of its residue in charmm36.xml."""
    pdb = app.PDBFile(str(DATA / "cgenff" / f"{name}.pdb"))
    return Molecule.from_openmm(pdb.topology, build_system(pdb.topology, "charmm36", None).system, pdb.positions)


def harmonic_molecule(elements: list[str], bonds: list[tuple[int, int]], positions: np.ndarray) -> Molecule:
    """Bonds and angles (harmonic, at rest in the given structure) and nothing else; positions in nm."""
    topology = app.Topology()
    residue = topology.addResidue("TOY", topology.addChain("A"))
    atoms = [
        topology.addAtom(f"{symbol}{i}", app.Element.getBySymbol(symbol), residue) for i, symbol in enumerate(elements)
    ]
    system = openmm.System()
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for atom in atoms:
        system.addParticle(atom.element.mass)
    neighbours: list[list[int]] = [[] for _ in elements]
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
        stretch.addBond(i, j, float(np.linalg.norm(positions[i] - positions[j])), 3e5)
        neighbours[i].append(j)
        neighbours[j].append(i)
    for j, near in enumerate(neighbours):
        for n, i in enumerate(near):
            for k in near[:n]:
                u, v = positions[i] - positions[j], positions[k] - positions[j]
                angle = np.arctan2(np.linalg.norm(np.cross(u, v)), u @ v)
                bend.addAngle(i, j, k, float(angle), 400.0)
    system.addForce(stretch)
    system.addForce(bend)
    return Molecule.from_openmm(topology, system, np.asarray(positions, dtype=float) * unit.nanometer)
