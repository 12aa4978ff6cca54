"""Hydrogens as a function of the heavy atoms: against OpenMM's minimiser, densities of heavy atoms, and the kinds."""

import copy
import math

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from small_molecules import small_molecule

import boltzgen as bg
from boltzgen.coordinates.hydrogens import HydrogenCoordinates
from boltzgen.coordinates.region import Region
from boltzgen.energy import CompiledPotential
from boltzgen.errors import StructureError
from boltzgen.flows.hydrogen_minimization import minimize_batch
from boltzgen.flows.molecular import GeneratorConfig
from boltzgen.placement import placement_accuracy, train_placement, with_placed_hydrogens

SMALL = GeneratorConfig(
    torsion_layers=2, torsion_hidden=16, stiff_layers=2, stiff_hidden=24, cartesian_rounds=1, cartesian_hidden=16
)
KINDS = [(c, h) for c in ("internal", "cartesian") for h in ("flow", "network", "minimized")]


def build(molecule, potential, coordinates="cartesian", hydrogens="network", **options):
    options = {"config": SMALL, "seed": 0} | options
    return bg.BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates=coordinates, hydrogens=hydrogens, **options
    )


@pytest.fixture(scope="module")
def butane():
    molecule = small_molecule("butane")
    return molecule, CompiledPotential(molecule)


@pytest.mark.parametrize("name", ["butane", "toluene", "cyclopentane", "norbornane"])
def test_hydrogens_come_back_where_they_were(name):
    molecule = small_molecule(name)
    potential = CompiledPotential(molecule)
    generator = bg.BoltzmannGenerator.for_molecule(molecule, potential, config=SMALL, dtype=torch.float64)
    coordinates = HydrogenCoordinates(generator.coordinates)
    positions, _ = generator.sample_and_log_prob(50)
    values = coordinates.read(positions)
    again, _ = coordinates.place(positions[:, coordinates.heavy], values)
    torch.testing.assert_close(again, positions, rtol=0, atol=1e-9)


def test_volume_of_the_hydrogens_against_autograd(dipeptide, potential):
    generator = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, config=SMALL, dtype=torch.float64)
    coordinates = HydrogenCoordinates(generator.coordinates)
    positions, _ = generator.sample_and_log_prob(3)
    hydrogens = torch.as_tensor(dipeptide.hydrogens)
    for x in positions:
        values = coordinates.read(x[None])[0]
        heavy = x[None, coordinates.heavy]
        jacobian = torch.autograd.functional.jacobian(
            lambda v, heavy=heavy: coordinates.place(heavy, v[None])[0][0, hydrogens].flatten(), values
        )
        found = float(coordinates.log_volume(values[None]))
        assert abs(float(torch.linalg.slogdet(jacobian).logabsdet) - found) < 1e-9


def test_minimizer_finds_the_minimum_of_known_functions():
    """Quadratics of different conditioning and a quartic valley, each row on its own."""
    rng = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, 3, 5, dtype=torch.float64).repeat(20, 1) * torch.rand(20, 1, generator=rng).double()
    centres = torch.randn(20, 5, generator=rng, dtype=torch.float64)

    def function(x, rows):
        d = x - centres[rows]
        quartic = d.pow(4).sum(1)
        return 0.5 * (scales[rows] * d.square()).sum(1) + quartic, scales[rows] * d + 4 * d.pow(3)

    found, converged = minimize_batch(function, torch.zeros(20, 5, dtype=torch.float64), tolerance=1e-8)
    assert bool(converged.all())
    torch.testing.assert_close(found, centres, rtol=0, atol=1e-6)


def test_minimized_hydrogens_against_openmm(dipeptide, potential):
    """OpenMM's minimiser with the heavy atoms' masses at zero, from the same start: same minimum."""
    generator = build(dipeptide, potential, hydrogens="minimized", dtype=torch.float64)
    network = build(dipeptide, potential, hydrogens="network", dtype=torch.float64)
    positions, _ = generator.sample_and_log_prob(6)
    with torch.no_grad():
        start = network.flow.projected(positions)
    system = copy.deepcopy(dipeptide.system)
    for atom in dipeptide.heavy_atoms:
        system.setParticleMass(int(atom), 0)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies = potential(positions)
    for k in range(6):
        context.setPositions(start[k].numpy())
        openmm.LocalEnergyMinimizer.minimize(context, tolerance=0.001)
        state = context.getState(getEnergy=True, getPositions=True)
        theirs = state.getPositions(asNumpy=True)._value
        # ours converges to 1e-3 kT per thermal width, which is 1e-6 kT of energy for each coordinate
        assert abs(float(energies[k]) - state.getPotentialEnergy()._value) < 1e-3
        assert np.abs(theirs - positions[k].numpy()).max() < 1e-3
    _, forces = potential.energy_and_forces(positions)
    assert float(forces[:, dipeptide.hydrogens].abs().max()) < 5.0  # of 1e4 kJ/mol/nm at a stretch of 0.03 nm


@pytest.mark.parametrize("constraints", [None, app.HBonds])
def test_gradient_through_minimized_hydrogens(dipeptide, potential, constraints):
    """dU(h(x_C))/dx_C by finite differences of the minimised energy; constrained bonds pull on the heavy atoms."""
    if constraints is not None:
        source = pytest.importorskip("openmmtools.testsystems").AlanineDipeptideVacuum(constraints=constraints)
        molecule = bg.Molecule.from_openmm(source.topology, source.system, source.positions, 300 * unit.kelvin)
        dipeptide, potential = molecule, CompiledPotential(molecule)
    generator = build(dipeptide, potential, hydrogens="minimized", dtype=torch.float64)
    heavy, _ = generator.flow.heavy.sample_and_log_prob(1, generator.rng)
    heavy = heavy.detach().requires_grad_(True)
    energy = potential(generator.flow.hydrogens.sample(heavy)[0])
    (gradient,) = torch.autograd.grad(energy.sum(), heavy)
    step = 1e-4
    for atom, axis in ((0, 0), (4, 1), (9, 2)):
        shift = torch.zeros_like(heavy)
        shift[0, atom, axis] = step
        both = torch.cat([heavy + shift, heavy - shift]).detach()
        up, down = potential(generator.flow.hydrogens.sample(both)[0])
        slope = float(up - down) / (2 * step)
        # tolerance of minimisation over the step: 1e-5 kJ/mol / 1e-4 nm
        assert abs(slope - float(gradient[0, atom, axis])) < 0.5 + 1e-3 * abs(slope)
    # a common shift of all heavy atoms takes the hydrogens along
    assert float(gradient.sum(1).abs().max()) < 1e-6 * float(gradient.abs().max())


@pytest.mark.parametrize("hydrogens", ["network", "minimized"])
def test_only_heavy_atoms_decide_what_lies_in_the_domain(butane, hydrogens):
    """Target and density are functions of the heavy atoms: hydrogens of a structure put at will change nothing."""
    molecule, potential = butane
    generator = build(molecule, potential, hydrogens=hydrogens, dtype=torch.float64)
    positions = generator.sample_and_log_prob(8)[0].detach().numpy()
    inside, weights = generator.contains(positions), generator.log_weights_of(positions, np.zeros(8))
    assert inside.any()
    positions[:, molecule.hydrogens] += 0.05  # their bonds leave their bounds
    assert not Region(generator.coordinates).contains(torch.from_numpy(positions)).any()
    np.testing.assert_array_equal(generator.contains(positions), inside)
    np.testing.assert_allclose(generator.log_weights_of(positions, np.zeros(8)), weights, rtol=0, atol=1e-6)
    positions[:, molecule.heavy_atoms] *= 2  # and so do their own
    assert not generator.contains(positions).any()


def test_network_learns_the_minimum(butane):
    molecule, potential = butane
    generator = build(molecule, potential)
    with torch.no_grad():
        heavy = generator.flow.heavy.sample_and_log_prob(300, generator.rng)[0]
    before = placement_accuracy(generator, heavy)
    flow_before = [p.clone() for p in generator.flow.heavy.parameters()]
    train_placement(generator, n_steps=200, batch_size=128)
    after = placement_accuracy(generator, heavy)
    assert after.mean_excess < 0.2 * before.mean_excess
    assert after.rms_nm < before.rms_nm
    assert after.mean_excess > -1e-6
    assert all(torch.equal(a, b) for a, b in zip(flow_before, generator.flow.heavy.parameters(), strict=True))
    exact = build(molecule, potential, hydrogens="minimized")
    assert abs(placement_accuracy(exact, heavy).mean_excess) < 1e-3


@pytest.mark.parametrize("coordinates", ["internal", "cartesian"])
def test_log_prob_is_the_density_of_the_heavy_atoms(butane, coordinates):
    """Moving hydrogens changes nothing; the heavy density is normalised: its log-weights against itself vanish."""
    molecule, potential = butane
    generator = build(molecule, potential, coordinates, dtype=torch.float64)
    positions, log_q = generator.sample_and_log_prob(200)
    with torch.no_grad():
        torch.testing.assert_close(generator.log_prob(positions), log_q, rtol=0, atol=1e-8)
        moved = positions.clone()
        moved[:, molecule.hydrogens] += 0.01
        torch.testing.assert_close(generator.log_prob(moved), log_q, rtol=0, atol=1e-8)
        torch.testing.assert_close(generator.flow.projected(moved), positions, rtol=0, atol=1e-9)
    weights = generator.log_weights_of(moved.numpy(), np.full(200, np.nan))
    np.testing.assert_allclose(weights, generator.weigh(positions, log_q).log_weights, rtol=0, atol=1e-6)


def test_heavy_density_against_autograd(dipeptide, potential):
    """Internal coordinates, fixed hydrogens: log q of heavy internal coordinates less the heavy volume element."""
    generator = build(dipeptide, potential, "internal", dtype=torch.float64)
    heavy_flow = generator.flow.heavy
    positions, log_q = generator.sample_and_log_prob(2)
    heavy = positions[:, generator.flow.heavy_atoms]
    internal = heavy_flow.internal
    with torch.no_grad():
        coordinates, _ = internal.to_internal(heavy)
        inner = heavy_flow.log_prob_internal(coordinates)
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda c: internal.to_cartesian(c[None])[0].flatten(), coordinates[k]
        )
        # modulo rigid motion: the six rows of the first three atoms that the frame of the map holds at zero
        free = [i for i in range(30) if float(jacobian[i].abs().max()) > 1e-12]
        bonds, angles, _ = internal.split(coordinates[k])
        # the rigid-motion part of the volume element is r1 r2 r2 sin(theta) of the first three atoms
        rigid = bonds[0].log() * 2 + bonds[1].log() + angles[0].sin().log()
        log_volume = torch.linalg.slogdet(jacobian[free]).logabsdet + rigid
        assert abs(float(inner[k] - log_volume - log_q[k])) < 1e-7


@pytest.mark.parametrize(("coordinates", "hydrogens"), KINDS)
def test_saved_and_seeded(butane, tmp_path, coordinates, hydrogens):
    molecule, potential = butane
    generator = build(molecule, potential, coordinates, hydrogens, seed=4)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    if coordinates == "cartesian":
        generator.set_alignment(200.0)
    generator.save(tmp_path / "model.safetensors")
    loaded = bg.BoltzmannGenerator.load(tmp_path / "model.safetensors")
    ours, theirs = generator.sample_and_log_prob(20), loaded.sample_and_log_prob(20)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert repr(loaded) == repr(generator)
    assert loaded.domain() == generator.domain()
    x = ours[0].double()
    torch.testing.assert_close(loaded.reduced_energy(x), generator.reduced_energy(x), rtol=0, atol=0)
    first, second, other = (build(molecule, potential, coordinates, hydrogens, seed=s) for s in (7, 7, 8))
    a, b, c = (g.sample_and_log_prob(4)[0] for g in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("hydrogens", ["flow", "network", "minimized"])
def test_the_target_is_said(butane, hydrogens):
    molecule, potential = butane
    generator = build(molecule, potential, hydrogens=hydrogens)
    ensemble = generator.sample(60)
    words = (repr(generator), repr(ensemble), generator.domain())
    assert all(("exp(-U(h(x_C))/kT) on the heavy atoms" in text) == (hydrogens != "flow") for text in words)


def test_unknown_kinds_are_refused(dipeptide, potential):
    for options, hint in (
        ({"coordinates": "cartesain"}, "did you mean 'cartesian'"),
        ({"hydrogens": "minimised"}, "did you mean 'minimized'"),
        ({"hydrogens": "netwrok"}, "did you mean 'network'"),
    ):
        with pytest.raises(ValueError, match=hint):
            bg.BoltzmannGenerator.for_molecule(dipeptide, potential, **options)
    with pytest.raises(StructureError, match="hydrogens='network'"):
        train_placement(build(dipeptide, potential, hydrogens="flow"))


def test_reweighting_to_placed_hydrogens(butane):
    """Weights are exp(-(U(h) - U)/kT) q(x_H | x_C): the mean of their heavy part is a ratio of two known integrals.

    Samples of a normalised all-atom density p, here that of a generator with flowing hydrogens, take the place of the
    Boltzmann distribution: with U = -kT log p the mean weight is the integral of exp(-U(h(x_C))/kT) over heavy atoms,
    which the generator with fixed hydrogens estimates on its own.
    """
    molecule, potential = butane
    source = build(molecule, potential, hydrogens="flow", dtype=torch.float64, seed=2)
    fixed = build(molecule, potential, hydrogens="minimized", dtype=torch.float64, seed=2)
    positions, log_q = source.sample_and_log_prob(3000)
    reference = source.weigh(positions, log_q)
    placed = with_placed_hydrogens(fixed, reference)
    # both are importance sampling of exp(-U(h(x_C))/kT - penalty) over the same heavy atoms
    direct = fixed.sample(3000).log_z
    found = placed.log_z
    error = math.hypot(found.high - found.value, direct.high - direct.value) / 1.96
    assert error < 0.3
    assert found.unit == direct.unit == "nm^6"  # four carbons, rigid motions taken out
    assert abs(found.value - direct.value) < 4 * error
    np.testing.assert_array_equal(
        placed.positions[:, molecule.heavy_atoms], reference.positions[:, molecule.heavy_atoms]
    )
