"""Hydrogens as a function of the heavy atoms, and the alignment of Cartesian generators: what each costs and leaves.

Prints, for alanine dipeptide in vacuum with CHARMM36m: how much of the orientation a penalty keeps; evaluations of a
batched minimisation; what a network of the paper's size reaches; and the minor basin's population with flowing and with
fixed hydrogens. Run from the root of the repository: ``python benchmarks/hydrogens.py [n_steps]``.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

import boltzgen as bg
from boltzgen.energy import CompiledPotential
from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.placement import placement_accuracy, train_placement, with_placed_hydrogens

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "benchmarks" / "results" / "reference_ace_ala_nme_charmm36m_vacuum_300K.npz"


def main(n_steps: int = 500) -> None:
    molecule = bg.Molecule.from_pdb(ROOT / "systems" / "alanine_dipeptide.pdb")
    potential = CompiledPotential(molecule)
    positions = np.load(REFERENCE)["positions"]
    print_orientations(molecule, torch.as_tensor(positions[::80]).double())
    build = lambda hydrogens: bg.BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates="cartesian", hydrogens=hydrogens
    )
    network, minimized, flowing = build("network"), build("minimized"), build("flow")
    heavy = torch.as_tensor(positions[:, molecule.heavy_atoms])
    print(f"\nHydrogens of {len(heavy[::16]):,} reference configurations")
    before, started = potential.counts.force, time.perf_counter()
    minimized.flow.hydrogens.sample(heavy[::16])
    spent, seconds = (potential.counts.force - before) / len(heavy[::16]), time.perf_counter() - started
    print(f"minimized: {spent:.1f} force evaluations and {1e3 * seconds / len(heavy[::16]):.2f} ms each")
    print(f"network, untrained: {placement_accuracy(network, heavy[::16])}")
    started = time.perf_counter()
    train_placement(network, positions[1::2], n_steps=n_steps)
    seconds = time.perf_counter() - started
    print(f"network, {n_steps} steps in {seconds:.0f} s: {placement_accuracy(network, heavy[::16])}")
    fit_hydrogens(flowing, torch.as_tensor(positions), n_steps)
    print_bias(molecule, potential, (minimized, network), flowing, positions)


def print_orientations(molecule: bg.Molecule, positions: torch.Tensor) -> None:
    """Share of the weight of all orientations that lies beyond the cap, by random rotations of reference frames."""
    print("Share of exp(-penalty) over all orientations that lies beyond the cap of 60 degrees")
    heavy = molecule.heavy_atoms
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(1_000, 4, generator=generator, dtype=torch.float64), dim=1)
    w, v = q[:, :1, None], q[:, None, 1:]
    centred = positions - positions[:, heavy].mean(1, keepdim=True)
    for strength in (10.0, 30.0, 100.0, 300.0, 1000.0):
        penalty = AlignmentPenalty(centred[0, heavy], strength, atoms=heavy)
        beyond, total = 0.0, 0.0
        for x in centred:
            axis = v.expand(-1, len(x), 3)
            twice = 2 * torch.linalg.cross(axis, x.expand(len(q), -1, 3), dim=-1)
            turned = x + w * twice + torch.linalg.cross(axis, twice, dim=-1)
            weight = torch.exp(-penalty(turned))
            total += float(weight.sum())
            beyond += float(weight[penalty.angle(turned) > penalty.max_angle].sum())
        print(f"lambda = {strength:6g} nm^-2: {beyond / total:.4f}")


def fit_hydrogens(flowing: bg.BoltzmannGenerator, positions: torch.Tensor, n_steps: int) -> None:
    """Maximum likelihood of the hydrogens given the heavy atoms."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flowing.flow.hydrogens.parameters(), lr=2e-3)
    for _ in range(n_steps):
        rows = torch.randint(len(positions), (256,), generator=generator)
        loss = -flowing.flow.hydrogens.log_prob(positions[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def print_bias(
    molecule: bg.Molecule,
    potential: CompiledPotential,
    fixed: tuple[bg.BoltzmannGenerator, ...],
    flowing: bg.BoltzmannGenerator,
    positions: np.ndarray,
) -> None:
    """Population of phi > 0 in the reference, and with its hydrogens at their minimum (appendix E of the paper)."""
    with torch.no_grad():
        energies = potential(torch.as_tensor(positions).double()).numpy()
    groups = np.load(REFERENCE)["groups"]
    reference = bg.Ensemble(
        positions, np.load(REFERENCE)["log_weights"], molecule.kT, energies, molecule=molecule, groups=groups
    )
    basin = {"phi > 0": "0 < phi < 180"}
    print("\nPopulation of phi > 0")
    print(f"reference            {_shown(reference.free_energy(basin)['phi > 0'])}")
    for generator in fixed:
        placed = with_placed_hydrogens(generator, reference, flowing.flow.hydrogens)
        found = _shown(placed.free_energy(basin)["phi > 0"])
        print(f"hydrogens {generator.flow.kinds['hydrogens']:<10} {found}, ESS {placed.ess_fraction:.1%}")


def _shown(basin: bg.BasinFreeEnergy) -> str:
    return f"{basin.probability:.4f}; free energy {basin.delta_f_kT:.2f} kT [{basin.low_kT:.2f}, {basin.high_kT:.2f}]"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
