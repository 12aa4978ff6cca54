"""Samplers on potentials of some atoms of a molecule: the same dynamics, whole molecules in the end; U(h(x_C))."""

from __future__ import annotations

import copy
import types
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from torch import Tensor

import boltzgen as bg
from boltzgen import sampling
from boltzgen.energy import BatchedPotential, CompiledPotential, FunctionPotential, RawEvaluation
from boltzgen.errors import PotentialError, StructureError
from boltzgen.placement import PlacedPotential, hydrogen_density, with_placed_hydrogens
from boltzgen.sampling.flattened import flat_bias
from boltzgen.sampling.particles import Particles
from boltzgen.sampling.run import GAS_CONSTANT, generator

KT = GAS_CONSTANT * 300
MOVING = np.array([0, 1, 2, 3, 5])  # the atom numbered 4 follows


class Following(BatchedPotential):
    """A potential of five atoms of six; the one left out is where the last of them is, and a little further."""

    atoms = MOVING
    target = "five atoms"

    def __init__(self, whole: BatchedPotential) -> None:
        super().__init__(5)
        self.whole = whole

    def all_atoms(self, positions: Tensor) -> Tensor:
        return torch.cat([positions[:, :4], positions[:, 4:] + 0.1, positions[:, 4:]], dim=1)

    def _evaluate(self, positions: Tensor, forces: bool) -> RawEvaluation:
        return RawEvaluation(*self.whole.energy_and_forces(positions))


def chain(masses: list[float], atoms: list[int]) -> types.SimpleNamespace:
    """Five atoms in a row with two torsions, among as many as there are masses; what samplers use of a Molecule."""
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i in range(4):
        bond.addBond(atoms[i], atoms[i + 1], 0.15, 1e5)
    for i in range(3):
        angle.addAngle(*atoms[i : i + 3], 1.9, 400)
    torsion.addTorsion(*atoms[:4], 1, 0.0, 3 * KT)
    torsion.addTorsion(*atoms[1:], 2, 1.0, 2 * KT)
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for force in (bond, angle, torsion):
        system.addForce(force)
    positions = np.zeros((len(masses), 3))
    positions[atoms] = [[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.14, 0.02], [0.4, 0.28, 0]]
    return types.SimpleNamespace(
        system=system,
        positions=positions * unit.nanometer,
        temperature=300 * unit.kelvin,
        kT=KT,
        torsions={"phi": tuple(atoms[:4]), "psi": tuple(atoms[1:])},
    )


@pytest.fixture(scope="module")
def pair() -> tuple[types.SimpleNamespace, CompiledPotential, types.SimpleNamespace, Following]:
    """Five atoms with their potential, and the same five among six."""
    five, six = chain([14.0, 12, 12, 15, 16], list(range(5))), chain([14.0, 12, 12, 15, 99, 16], MOVING.tolist())
    potential = CompiledPotential(five, compile=False)
    return five, potential, six, Following(potential)


def test_parallel_tempering_moves_the_same_atoms_the_same_way(pair: Any) -> None:
    five, potential, six, following = pair
    options: dict[str, Any] = {"n_steps": 60, "n_replicas": 3, "n_walkers": 4, "exchange_interval": 5, "seed": 2}
    plain = FunctionPotential(lambda x: potential(x), 5)  # by the same way through (B, N, 3) positions
    expected = sampling.parallel_tempering(five, plain, save_interval=10, **options).ensemble
    found = sampling.parallel_tempering(six, following, save_interval=10, **options).ensemble
    np.testing.assert_array_equal(found.positions[:, MOVING], expected.positions)
    np.testing.assert_allclose(found.positions[:, 4], expected.positions[:, 4] + 0.1, atol=1e-6)
    np.testing.assert_array_equal(found.energies, expected.energies)
    assert (found.target, expected.target) == ("five atoms", "")


def test_the_bias_is_added_where_it_cannot_join_the_terms(pair: Any) -> None:
    five, potential, six, following = pair
    grid = 3 * np.add.outer(np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 6))
    x = torch.tensor(five.positions._value).float() + 0.02 * torch.randn(30, 5, 3, generator=generator(1))
    layout = x.permute(2, 1, 0).contiguous()
    found = []
    for molecule, target in ((five, potential), (six, following)):
        bias = sampling.TorsionBias(flat_bias(molecule, ("phi", "psi"), 24).atoms, grid)
        energy = sampling.BiasedEnergy(target, flat_bias(molecule, ("phi", "psi"), 24), 0)
        energy.set_grid(bias.grid)
        found.append(energy.forces(layout))
        whole = x if molecule is five else following.all_atoms(x)
        torch.testing.assert_close(
            found[-1][0].double(), potential(x).double() + bias.energy(whole), rtol=1e-5, atol=1e-3
        )
    # two orders of addition in float32, of gradients up to 1e3 kJ/mol/nm
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=0.05)


def test_flattened_sampling_returns_whole_molecules(pair: Any) -> None:
    _, potential, six, following = pair
    bias = sampling.learn_bias(six, following, n_steps=80, n_walkers=16, grid_size=24, time_step=4, seed=1)
    assert np.ptp(bias.grid) > 0
    run = sampling.flattened_sampling(
        six, following, bias, n_steps=100, n_walkers=16, n_groups=4, time_step=4, save_interval=20, seed=2
    )
    x = torch.from_numpy(run.ensemble.positions)
    assert x.shape == (64, 6, 3)
    np.testing.assert_allclose(potential(x[:, MOVING]), run.ensemble.energies, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(run.ensemble.log_weights * KT, bias.energy(x), atol=1e-6)
    assert run.ensemble.target == "five atoms"


def test_atoms_that_follow_cannot_be_biased_and_numbers_must_fit(pair: Any) -> None:
    _, potential, six, following = pair
    with pytest.raises(PotentialError, match="atom 4 does not move by itself"):
        sampling.BiasedEnergy(following, sampling.TorsionBias(((0, 1, 2, 4), (1, 2, 3, 5)), np.zeros((8, 8))), 0)
    with pytest.raises(PotentialError, match="of 5 atoms, the molecule has 6"):
        sampling.parallel_tempering(six, potential, n_steps=10)


def test_constraints_among_moving_atoms_are_refused(pair: Any) -> None:
    """Those that the other atoms have are part of the function; the rest would be lost."""
    _, _, six, following = pair
    for atoms, refused in (((3, 4), False), ((3, 5), True)):
        constrained = types.SimpleNamespace(**{**vars(six), "system": copy.deepcopy(six.system)})
        constrained.system.addConstraint(*atoms, 0.15)
        if not refused:
            Particles(constrained, following)
            continue
        with pytest.raises(PotentialError, match="atoms 3 and 5 are constrained"):
            Particles(constrained, following)


def test_one_replica_is_plain_dynamics(pair: Any) -> None:
    five, potential, _, _ = pair
    run = sampling.parallel_tempering(
        five, potential, n_steps=60, n_replicas=1, n_walkers=4, exchange_interval=10, save_interval=20
    )
    assert len(run.swap_acceptance) == 0
    assert run.round_trips is None
    assert run.verdict().verdict.startswith("consistent")


@pytest.fixture(scope="module")
def placing(dipeptide, potential) -> bg.BoltzmannGenerator:
    """A network of some weights: an untrained one would not depend on its inputs in the last layer."""
    placing = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, hydrogens="network", dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in placing.flow.hydrogens.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    return placing


def test_placed_potential_is_the_energy_of_the_whole_molecule(dipeptide, potential, placing) -> None:
    target = PlacedPotential(placing)
    positions, _ = placing.sample_and_log_prob(3)
    heavy = positions[:, dipeptide.heavy_atoms]
    torch.testing.assert_close(target(heavy), potential(positions), rtol=0, atol=1e-9)
    torch.testing.assert_close(target.all_atoms(heavy), positions, rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(target.terms(heavy).values()), target(heavy), rtol=0, atol=1e-6)
    _, forces = target.energy_and_forces(heavy)
    step = 1e-5
    for atom, axis in ((0, 0), (4, 1), (9, 2)):
        shift = torch.zeros_like(heavy)
        shift[:, atom, axis] = step
        slope = (target(heavy + shift) - target(heavy - shift)) / (2 * step)
        # the error of central differences: third derivatives of 1e9 kJ/mol/nm^3 times step^2 / 6
        torch.testing.assert_close(-slope, forces[:, atom, axis], rtol=1e-5, atol=0.05)
    # forces on heavy atoms include those through the hydrogens
    frozen = potential.energy_and_forces(positions)[1][:, dipeptide.heavy_atoms]
    assert float((frozen - forces).abs().max()) > 10


def test_placed_potential_samples_whole_molecules(dipeptide, potential, placing) -> None:
    run = sampling.parallel_tempering(
        dipeptide,
        PlacedPotential(placing),
        n_steps=40,
        n_replicas=2,
        n_walkers=4,
        exchange_interval=10,
        save_interval=10,
        time_step=2.0,
    )
    positions = torch.from_numpy(run.ensemble.positions)
    with torch.no_grad():
        again = placing.flow.projected(positions.double())
    torch.testing.assert_close(again, positions.double(), rtol=0, atol=1e-5)
    assert "U(h(x_C))" in run.ensemble.target
    np.testing.assert_allclose(potential(positions.double()), run.ensemble.energies, rtol=0, atol=0.1)


@pytest.mark.parametrize("flattened", [False, True])
def test_minimisations_are_among_the_evaluations_of_a_run(dipeptide, potential, flattened) -> None:
    minimizing = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, hydrogens="minimized", dtype=torch.float64)
    target = PlacedPotential(minimizing)
    settings: dict[str, Any] = {"n_steps": 4, "n_walkers": 4, "save_interval": 2, "time_step": 1.0}
    before = potential.counts.force
    if flattened:
        bias = flat_bias(dipeptide, ("phi", "psi"), 8)
        run = sampling.flattened_sampling(dipeptide, target, bias, n_groups=2, **settings)
    else:
        run = sampling.parallel_tempering(dipeptide, target, n_replicas=1, exchange_interval=1, **settings)
    assert run.evaluations == potential.counts.force - before
    assert run.evaluations > 5 * target.counts.force  # L-BFGS takes ten or so


def test_samples_of_a_generator_are_weighted_by_their_heavy_atoms_alone(dipeptide, potential, placing) -> None:
    """With the generator's own density of hydrogens the weights do not depend on the hydrogens that were drawn."""
    flowing = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, dtype=torch.float64, seed=3)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flowing.flow.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    density = hydrogen_density(flowing)
    positions, log_q = flowing.sample_and_log_prob(40)
    with torch.no_grad():
        heavy = positions[:, dipeptide.heavy_atoms]
        others, log_q_others = density.sample(heavy, flowing.rng)
        torch.testing.assert_close(log_q - density.log_prob(positions), flowing.log_prob(others) - log_q_others)
    found = [
        with_placed_hydrogens(placing, flowing.weigh(x, flowing.log_prob(x).detach()), density).log_weights
        for x in (positions, others)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def test_only_fixed_hydrogens_make_a_placed_potential(dipeptide, potential, placing) -> None:
    flowing = bg.BoltzmannGenerator.for_molecule(dipeptide, potential)
    with pytest.raises(StructureError, match="'network' or 'minimized'"):
        PlacedPotential(flowing)
    with pytest.raises(StructureError, match="density of hydrogens"):
        hydrogen_density(placing)
