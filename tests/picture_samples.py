"""Samples with known torsions, for the tests of pictures and reports."""

from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from boltzgen.ensemble import Ensemble
from boltzgen.molecule import Molecule
from boltzgen.training import History

PDB = Path(__file__).resolve().parents[1] / "systems" / "alanine_dipeptide.pdb"
CENTRES = np.arange(-177.5, 180.0, 5.0)


def bare_molecule() -> Molecule:
    """Alanine dipeptide with masses and no forces, which takes no time to set up."""
    pdb = app.PDBFile(str(PDB))
    system = openmm.System()
    for atom in pdb.topology.atoms():
        system.addParticle(atom.element.mass)
    return Molecule.from_openmm(pdb.topology, system, pdb.positions, 300 * unit.kelvin)


def rotated(positions: np.ndarray, atoms: np.ndarray, origin: int, axis_end: int, degrees: np.ndarray) -> np.ndarray:
    """Turn some atoms of each of (n, N, 3) positions about an axis by an angle each (Rodrigues)."""
    axis = positions[:, axis_end] - positions[:, origin]
    axis = (axis / np.linalg.norm(axis, axis=1, keepdims=True))[:, None]
    arm = positions[:, atoms] - positions[:, origin, None]
    cos, sin = (f(np.radians(degrees))[:, None, None] for f in (np.cos, np.sin))
    turned = arm * cos + np.cross(axis, arm) * sin + axis * (axis * arm).sum(-1, keepdims=True) * (1 - cos)
    result = positions.copy()
    result[:, atoms] = turned + positions[:, origin, None]
    return result


def configurations(molecule: Molecule, phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """(n, N, 3) positions in nm with the given phi and psi in degrees."""
    import mdtraj

    start = np.asarray(molecule.positions.value_in_unit(unit.nanometer), dtype=float)[None]
    result = np.repeat(start, len(phi), axis=0)
    bonds = [(int(a), int(b)) for a, b in molecule.bonds]
    for name, wanted in (("phi", phi), ("psi", psi)):
        quad = molecule.torsions[name]
        now = np.degrees(mdtraj.compute_dihedrals(mdtraj.Trajectory(start, molecule.mdtraj_topology), [quad])[0, 0])
        beyond = {quad[2]}
        while True:
            more = {b for pair in bonds for a, b in (pair, pair[::-1]) if a in beyond and b != quad[1]} - beyond
            if not more:
                break
            beyond |= more
        result = rotated(result, np.array(sorted(beyond)), quad[1], quad[2], np.asarray(wanted) - now)
    return result


def sample(molecule: Molecule, n: int = 400, seed: int = 0) -> tuple[Ensemble, np.ndarray, np.ndarray]:
    """An ensemble, and its phi and psi: at centres of 5-degree cells, so that rounding moves none across an edge."""
    rng = np.random.default_rng(seed)
    phi, psi = rng.choice(CENTRES, n), rng.choice(CENTRES, n)
    energies = rng.normal(-40.0, 10.0, n)
    log_q = -energies / molecule.kT + rng.normal(0.0, 0.5, n) - 7.0
    energies[:3] = np.inf
    log_weights = -energies / molecule.kT - log_q
    return Ensemble(configurations(molecule, phi, psi), log_weights, molecule.kT, energies, log_q, molecule), phi, psi


def record(stage: str, evaluations: int, loss: float = 1.0, **populations: float) -> dict:
    return {
        "stage": stage,
        "step": evaluations // 100,
        "temperature": 300.0,
        "loss": loss,
        "ess_fraction": 0.5,
        "energy_evaluations": evaluations,
        "seconds": 1.0,
        "populations": populations,
    }


def history() -> History:
    stages = ["hot"] * 3 + ["cooling"] * 4 + ["refinement"] * 2
    return History([record(s, 1000 * (i + 1), 5.0 / (i + 1), C7ax=0.1 / (i + 1)) for i, s in enumerate(stages)])
