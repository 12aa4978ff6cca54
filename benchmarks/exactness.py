"""Exactness of the density from end to end: log Z of a harmonic molecule, whose value is known.

    python benchmarks/exactness.py [--repetitions 1000] [--samples 2000] [--seed 0] [--constraints hbonds]

The molecule has the atoms and bonds of alanine dipeptide and an energy that is a sum of functions of one internal
coordinate each: harmonic bonds and angles, stiff out-of-plane torsions and soft torsions about every bond. Its log Z is
then a sum of logarithms of one-dimensional integrals, with r^2 for each bond and sin(theta) for each angle, which scipy
computes; a constrained bond is a factor r^2. The generator is untrained. Each repetition estimates log Z from samples
of its own; counted is how often the 95 % interval holds the true value.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import unit
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import beta as beta_distribution

from boltzgen.coordinates.chart import CONSTRAINED, CoordinateChart
from boltzgen.free_energy import log_z
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

STRUCTURE = Path(__file__).resolve().parent.parent / "systems" / "alanine_dipeptide.pdb"
BOND, ANGLE, PLANE, SOFT = 250_000.0, 400.0, 150.0, 3.0  # kJ/mol/nm^2, kJ/mol/rad^2, kJ/mol, kJ/mol


def harmonic_molecule(source: Molecule, chart: CoordinateChart) -> tuple[Molecule, float]:
    """The same atoms with an energy by internal coordinate, and its log Z modulo rigid motion (nm)."""
    positions = np.array(source.positions.value_in_unit(unit.nanometer))
    centres, _ = chart.internal.to_internal(torch.as_tensor(positions)[None])
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    system = openmm.System()
    for index in range(source.system.getNumParticles()):
        system.addParticle(source.system.getParticleMass(index))
    for (i, j), nm in source.constraints:
        system.addConstraint(i, j, nm)
    total = 0.0
    for row, centre in zip(chart.rows, centres[0].tolist(), strict=True):
        if row.kind == CONSTRAINED:
            total += 2 * np.log(row.centre)
        elif row.kind == "bond":
            bond.addBond(*row.atoms, centre, BOND)
            total += _log_integral(lambda r, c=centre: r**2 * np.exp(-0.5 * BOND * (r - c) ** 2 / source.kT), centre)
        elif row.kind == "angle":
            angle.addAngle(*row.atoms, centre, ANGLE)
            total += _log_integral(
                lambda t, c=centre: np.sin(t) * np.exp(-0.5 * ANGLE * (t - c) ** 2 / source.kT), centre, np.pi
            )
        else:
            k = SOFT if row.kind == "free torsion" else PLANE
            torsion.addTorsion(*row.atoms, 1, centre + np.pi, k)
            total += np.log(2 * np.pi * ive(0, k / source.kT))  # k (1 - cos(phi - centre))
    for force in (bond, angle, torsion):
        system.addForce(force)
    return Molecule.from_openmm(source.topology, system, positions, source.temperature), total


def _log_integral(density: object, centre: float, upper: float = 2.0) -> float:
    value, _ = quad(density, 0.0, upper, points=[centre], epsabs=0, epsrel=1e-12, limit=400)
    return float(np.log(value))


def main() -> None:
    """Estimate, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--constraints", choices=("hbonds", "allbonds"))
    options = parser.parse_args()
    source = Molecule.from_pdb(STRUCTURE, constraints=options.constraints)
    chart = BoltzmannGenerator.for_molecule(source).coordinates
    molecule, truth = harmonic_molecule(source, chart)
    generator = BoltzmannGenerator.for_molecule(molecule, seed=options.seed)
    hits, values, efficiency = 0, [], []
    for _ in range(options.repetitions):
        ensemble = generator.sample(options.samples)
        estimate = log_z(ensemble.log_weights)
        low, high = estimate.low, estimate.high
        hits += low <= truth <= high
        values.append(estimate.value)
        efficiency.append(ensemble.ess_fraction)
    share, n = hits / options.repetitions, options.repetitions
    low, high = beta_distribution.ppf((0.025, 0.975), (hits, hits + 1), (n - hits + 1, n - hits))
    rigid = f", {options.constraints} constrained" if options.constraints else ""
    print(f"harmonic molecule, {generator.flow.n_atoms} atoms{rigid}, {n} repetitions of {options.samples} samples")
    print(f"log Z: true {truth:.6f}; mean of the estimates {np.mean(values):.6f} +- {np.std(values) / np.sqrt(n):.6f}")
    print(f"ESS {np.mean(efficiency):.3f}; 95 % intervals that hold the truth: {share:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
