"""The peptide of 304 atoms of the scaling table: the sequence of Trp-cage TC5b as an extended chain.

    python benchmarks/data/trp_cage.py

Writes trp_cage.pdb beside itself. The chain is joined from the capped amino acids of tests/data/capped, whose caps
overlap with the backbone of the neighbour, and minimised with CHARMM36m and OBC2. It is not the native fold.
"""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from boltzgen.molecule import Molecule

HERE = Path(__file__).resolve().parent
CAPPED = HERE.parent.parent / "tests" / "data" / "capped"
# Neidigh, Fesinmeyer and Andersen (2002), PDB entry 1L2Y.
# fmt: off
SEQUENCE = ["ASN", "LEU", "TYR", "ILE", "GLN", "TRP", "LEU", "LYS", "ASP", "GLY",
            "GLY", "PRO", "SER", "SER", "GLY", "ARG", "PRO", "PRO", "PRO", "SER"]
# fmt: on

Floats = NDArray[np.float64]


def capped(residue: str) -> dict[tuple[str, str], Floats]:
    """Positions (3,) in nm of the heavy atoms, by residue (ACE, NME or the amino acid) and atom name."""
    pdb = app.PDBFile(str(CAPPED / f"{residue}.pdb"))
    positions = np.array(pdb.positions.value_in_unit(unit.nanometer))
    atoms = zip(pdb.topology.atoms(), positions, strict=True)
    return {(a.residue.name, a.name): x for a, x in atoms if a.element is not app.element.hydrogen}


def superposition(moving: Floats, fixed: Floats) -> tuple[Floats, Floats]:
    """Rotation R and shift t of least squares, so that moving @ R + t lies on fixed (Kabsch)."""
    u, _, vh = np.linalg.svd((moving - moving.mean(0)).T @ (fixed - fixed.mean(0)))
    rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vh))]) @ vh
    return rotation, fixed.mean(0) - moving.mean(0) @ rotation


def chain() -> list[tuple[str, dict[str, Floats]]]:
    """Residue names with the positions of their heavy atoms; the last has the OXT of a free carboxylate."""
    joined: list[tuple[str, dict[str, Floats]]] = []
    overlap: Floats | None = None  # CA, C, O of the residue before, N and C of its NME cap
    for name in SEQUENCE:
        atoms = capped(name)
        if overlap is not None:
            own = [("ACE", "CH3"), ("ACE", "C"), ("ACE", "O"), (name, "N"), (name, "CA")]
            rotation, shift = superposition(np.array([atoms[key] for key in own]), overlap)
            atoms = {key: x @ rotation + shift for key, x in atoms.items()}
        following = [(name, "CA"), (name, "C"), (name, "O"), ("NME", "N"), ("NME", "C")]
        overlap = np.array([atoms[key] for key in following])
        joined.append((name, {atom: x for (residue, atom), x in atoms.items() if residue == name}))
    joined[-1][1]["OXT"] = atoms["NME", "N"]
    return joined


def write(path: Path, residues: list[tuple[str, dict[str, Floats]]]) -> None:
    topology = app.Topology()
    part = topology.addChain("A")
    positions = []
    for number, (name, atoms) in enumerate(residues, 1):
        residue = topology.addResidue(name, part, str(number))
        for atom, x in atoms.items():
            topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
            positions.append(x)
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, np.array(positions) * unit.nanometer, file, keepIds=True)


def main() -> None:
    """Build, minimise, write."""
    path = HERE / "trp_cage.pdb"
    write(path, chain())
    molecule = Molecule.from_pdb(path, solvent="obc2")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001))
    context.setPositions(molecule.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0)
    state = context.getState(getPositions=True, getEnergy=True)
    positions = state.getPositions(asNumpy=True)
    with path.open("w") as file:
        app.PDBFile.writeFile(molecule.topology, positions, file, keepIds=True)
    trajectory = mdtraj.Trajectory(positions._value[None], mdtraj.Topology.from_openmm(molecule.topology))
    print(f"{molecule.topology.getNumAtoms()} atoms, {state.getPotentialEnergy()}")
    print(f"omega {np.degrees(mdtraj.compute_omega(trajectory)[1]).round()}")


if __name__ == "__main__":
    main()
