"""Cartesian generators: densities against the autograd Jacobian, and the alignment penalty against known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_molecules import harmonic_molecule, small_molecule

import boltzgen as bg
from boltzgen.energy import CompiledPotential
from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.energy.base import BatchedPotential, RawEvaluation
from boltzgen.energy.orientation import draw_rigid_motions, log_rigid_integral
from boltzgen.errors import StructureError
from boltzgen.flows.cartesian import MAX_LOG_SCALE, CartesianFlow
from boltzgen.flows.molecular import GeneratorConfig

SMALL = GeneratorConfig(cartesian_rounds=2, cartesian_hidden=24, placement_hidden=24, stiff_hidden=24, stiff_layers=2)


def roughened(generator, scale=0.1, seed=0):
    """The generator with random weights, far from its start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng).to(parameter))
    return generator


@pytest.fixture(scope="module")
def cartesian(dipeptide, potential):
    generator = bg.BoltzmannGenerator.for_molecule(
        dipeptide, potential, coordinates="cartesian", config=SMALL, dtype=torch.float64, seed=3
    )
    return roughened(generator, 0.05)


def test_flow_is_a_bijection_with_the_stated_jacobian():
    torch.manual_seed(0)
    factor = torch.tril(torch.randn(6, 6)) + 3 * torch.eye(6)
    flow = CartesianFlow((2, 3), centre=torch.randn(2, 3), factor=factor, n_rounds=3, n_hidden=16).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    base = torch.randn(5, 6, dtype=torch.float64)
    positions, log_det = flow(base)
    back, log_det_back = flow.inverse(positions)
    torch.testing.assert_close(back, base, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-10)
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda z: flow(z[None])[0].flatten(), base[row])
        assert abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_det[row].detach())) < 1e-10
    # every coordinate is moved: the conditional maps do more than the last linear one
    assert float((log_det - torch.linalg.slogdet(factor.double()).logabsdet).abs().min().detach()) > 0.01


def test_sizes_of_the_paper():
    flow = CartesianFlow((10, 3))
    assert len(flow.blocks) == 96
    (first, celu, last) = flow.blocks[0].network
    assert (first.in_features, first.out_features, last.out_features) == (15, 256, 30)
    assert isinstance(celu, torch.nn.CELU)
    # each pair of blocks moves every coordinate once
    for a, b in zip(flow.blocks[::2], flow.blocks[1::2], strict=True):
        moved = [block.order[block.n_keep :] for block in (a, b)]
        assert torch.equal(torch.cat(moved).sort().values, torch.arange(30))


def test_scales_stay_finite_whatever_the_networks_say():
    flow = CartesianFlow((1, 4), n_rounds=2, n_hidden=8)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(50.0)
    _, log_det = flow(torch.randn(8, 4))
    # eight blocks scale two coordinates each
    assert float(log_det.abs().max().detach()) <= 8 * 2 * MAX_LOG_SCALE


def test_round_trip_in_single_precision(dipeptide, potential):
    """The size of the paper, weights moved off the identity: 1e-5 nm."""
    generator = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, coordinates="cartesian")
    roughened(generator, 0.01)
    flow = generator.flow.heavy
    rng = torch.Generator().manual_seed(1)
    base = torch.randn(256, 30, generator=rng)
    with torch.no_grad():
        positions, log_det = flow(base)
        again, _ = flow(flow.inverse(positions)[0])
    assert float((again - positions).abs().max()) < 1e-5
    assert float(log_det.std()) > 0.1


def test_double_well_learned_from_data():
    """8 x 4 blocks of 64, as in the paper; held-out likelihood beats the best normal distribution."""
    well = bg.energy.DoubleWell()
    flow = CartesianFlow((1, 12), factor=10.0, n_rounds=8, n_hidden=64)
    generator = bg.BoltzmannGenerator(flow, well, seed=0)
    data = well.sample(20_000, torch.Generator().manual_seed(0)).float()
    bg.pretrain(generator, data, n_steps=80, batch_size=256, learning_rate=3e-3)
    fresh = well.sample(4000, torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        mine = generator.log_prob(fresh).double().mean()
    best_normal = torch.distributions.Normal(data[:, 0].mean(0), data[:, 0].std(0)).log_prob(fresh[:, 0]).sum(1).mean()
    truth = well.log_prob(fresh.double()).mean()
    assert float(best_normal) < float(mine) <= float(truth) + 0.05
    ensemble = generator.sample(2000)
    # importance sampling gives log Z within its own interval, widened to 4 standard errors for a fixed seed
    half = ensemble.log_z.high - ensemble.log_z.value
    assert abs(ensemble.log_z.value - well.log_z) < 2 * half


def test_all_atom_density_against_autograd(cartesian):
    """log q by the Jacobian of the map from all base variables to all 3N coordinates, float64."""
    flow = cartesian.flow
    hydrogens, variables = flow.hydrogens, flow.hydrogens.variables
    n_heavy, n_turns, n_stiff = 30, variables.n_torsions, variables.n_stiff
    rng = torch.Generator().manual_seed(4)
    base = torch.randn(n_heavy, generator=rng, dtype=torch.float64)
    turns = (2 * torch.rand(n_turns, generator=rng, dtype=torch.float64) - 1) * math.pi
    z = torch.randn(n_stiff, generator=rng, dtype=torch.float64)

    def positions_of(u):
        b, t, s = u[None].split([n_heavy, n_turns, n_stiff], dim=1)
        heavy, _ = flow.heavy(b)
        torsions, stiff, _ = hydrogens.flow(t.T, s.T, hydrogens._seen(heavy))
        coordinates, _ = variables.to_coordinates(torsions.T, stiff.T, None)
        return variables.coordinates.place(heavy, hydrogens.folding.torsions(coordinates))[0].flatten()

    u = torch.cat([base, turns, z])
    jacobian = torch.autograd.functional.jacobian(positions_of, u)
    assert jacobian.shape == (66, 66)
    log_base = -0.5 * float(base.square().sum() + z.square().sum()) - 0.5 * (n_heavy + n_stiff) * math.log(2 * math.pi)
    log_base -= n_turns * math.log(2 * math.pi)
    # positions are those of representatives: a random label divides the density by the orders of the groups
    expected = log_base - float(torch.linalg.slogdet(jacobian).logabsdet) - hydrogens.folding.log_order
    with torch.no_grad():
        log_q = float(flow.log_prob(positions_of(u).reshape(1, 22, 3)))
    assert abs(log_q - expected) < 1e-7


def test_log_prob_is_the_density_returned_with_the_sample(cartesian):
    positions, log_q = cartesian.sample_and_log_prob(2000)
    with torch.no_grad():
        assert float((cartesian.log_prob(positions) - log_q).abs().max()) < 1e-8
    assert float(log_q.std()) > 0.1


def test_untrained_samples_lie_next_to_the_reference(dipeptide, potential):
    generator = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, coordinates="cartesian", config=SMALL)
    positions, _ = generator.sample_and_log_prob(500)
    energy = potential(positions.double())
    with torch.no_grad():
        at_reference = potential(generator.flow.projected(positions).double()).min()
    # 66 coordinates in the harmonic approximation hold 33 kT; anharmonic ones add to it
    assert float(energy.median() - at_reference) < 60 * dipeptide.kT
    assert float(generator.alignment.angle(positions).max()) < generator.alignment.max_angle


class Triangle(BatchedPotential):
    """Three atoms on springs, ``U = k/2 sum (r - r0)^2``: its log Z over shapes is an integral over three distances."""

    name = "triangle"

    def __init__(self, stiffness=400.0, rest=0.3):
        super().__init__(3)
        self.stiffness, self.rest = stiffness, rest

    def _evaluate(self, positions, forces):
        x = positions.detach().requires_grad_(forces)
        with torch.set_grad_enabled(forces):
            sides = torch.stack([(x[:, i] - x[:, j]).norm(dim=1) for i, j in ((0, 1), (0, 2), (1, 2))])
            energy = 0.5 * self.stiffness * (sides - self.rest).square().sum(0)
        gradient = torch.autograd.grad(energy.sum(), x)[0] if forces else None
        return RawEvaluation(energy.detach(), None if gradient is None else -gradient)

    def moments(self, n=160):
        """log Z with respect to positions modulo rigid motion, and the mean of the first side, by quadrature at kT = 1.

        The volume element of bonds a, b and the angle between them is a^2 b^2 sin(theta), with c^2 = a^2 + b^2 - 2 a b
        cos(theta), so that sin(theta) d theta = c dc / (a b): a b c da db dc within the triangle inequality.
        """
        width = 9 / math.sqrt(self.stiffness)
        low = max(self.rest - width, 0.0)
        nodes, weights = np.polynomial.legendre.leggauss(n)
        sides = low + (self.rest + width - low) * 0.5 * (nodes + 1)
        weights = weights * 0.5 * (self.rest + width - low)
        one = sides * np.exp(-0.5 * self.stiffness * (sides - self.rest) ** 2) * weights
        a, b, c = np.meshgrid(sides, sides, sides, indexing="ij")
        inside = (a < b + c) & (b < a + c) & (c < a + b)
        density = one[:, None, None] * one[None, :, None] * one[None, None, :] * inside
        return math.log(density.sum()), float((density * a).sum() / density.sum())


@pytest.mark.parametrize("strength", [10.0, 100.0])
def test_penalised_and_unbiased_weights_against_quadrature(strength):
    """Importance sampling of three atoms in space: log Z over shapes comes back, and so does a mean distance."""
    target = Triangle()
    reference = np.array([[0.0, 0, 0], [0.3, 0, 0], [0.15, 0.26, 0]])
    penalty = AlignmentPenalty(reference, strength)
    rng = torch.Generator().manual_seed(7)
    n = 50_000
    shapes, log_q_shapes = _triangles(n, target, rng)
    spread = 1 / math.sqrt(5 * strength)
    rotations, shift = _random_rotations(n, rng), spread * torch.randn(n, 1, 3, generator=rng, dtype=torch.float64)
    positions = (shapes - shapes.mean(1, keepdim=True)) @ rotations.transpose(1, 2) + shift
    positions = positions + torch.as_tensor(reference).mean(0)
    log_q = log_q_shapes - math.log(8 * math.pi**2)
    log_q = log_q - 0.5 * (shift / spread).square().sum((1, 2)) - 1.5 * math.log(2 * math.pi * spread**2)
    flow = torch.nn.Linear(1, 1)
    ensemble = bg.BoltzmannGenerator(flow, target, alignment=penalty).weigh(positions, log_q)
    expected = -target(positions) - penalty(positions) - log_q
    np.testing.assert_allclose(ensemble.log_weights, expected.numpy(), rtol=0, atol=1e-10)
    truth, mean_side = target.moments()
    unbiased = ensemble.unbiased()
    error = (unbiased.log_z.high - unbiased.log_z.value) / 1.96
    assert error < 0.08
    assert abs(unbiased.log_z.value - truth) < 4 * error
    side = np.linalg.norm(ensemble.positions[:, 0] - ensemble.positions[:, 1], axis=1)
    deviation = side - mean_side
    spread = math.sqrt(float((unbiased.weights**2 * deviation**2).sum()))
    assert abs(float(unbiased.weights @ deviation)) < 4 * spread
    # all orientations of a shape have the same G
    g = log_rigid_integral(penalty, positions[:3])
    torch.testing.assert_close(g, log_rigid_integral(penalty, positions[:3] @ rotations[3].T + 1.0))


def _triangles(n, target, rng):
    """Shapes (n, 3, 3) by two sides and the angle between them, and their log-density modulo rigid motion."""
    width = 1 / math.sqrt(target.stiffness)
    sides = (target.rest + width * torch.randn(n, 2, generator=rng, dtype=torch.float64)).clamp(min=1e-3)
    angle = (math.pi * torch.rand(n, generator=rng, dtype=torch.float64)).clamp(1e-6, math.pi - 1e-6)
    log_q = -0.5 * ((sides - target.rest) / width).square().sum(1) - 2 * math.log(width * math.sqrt(2 * math.pi))
    log_q = log_q - math.log(math.pi) - 2 * sides.log().sum(1) - angle.sin().log()
    zero = torch.zeros(n, dtype=torch.float64)
    b = torch.stack([sides[:, 0], zero, zero], dim=1)
    c = torch.stack([sides[:, 1] * angle.cos(), sides[:, 1] * angle.sin(), zero], dim=1)
    return torch.stack([torch.zeros_like(b), b, c], dim=1), log_q


def _random_rotations(n, rng):
    q = torch.nn.functional.normalize(torch.randn(n, 4, generator=rng, dtype=torch.float64), dim=1)
    w, x, y, z = q.unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), 2 * (x * y + z * w)]
    rows += [1 - 2 * (x * x + z * z), 2 * (y * z - x * w), 2 * (x * z - y * w), 2 * (y * z + x * w)]
    return torch.stack([*rows, 1 - 2 * (x * x + y * y)], dim=1).unflatten(1, (3, 3))


def test_rigid_motions_are_drawn_as_the_penalty_has_them(dipeptide):
    """At 1000 nm^-2 nothing lies beyond the cap: <penalty> is that of the density, by the derivative of log G."""
    positions = torch.tensor(dipeptide.positions._value)
    heavy = dipeptide.heavy_atoms
    penalty = AlignmentPenalty(positions[heavy], 1000.0, atoms=heavy)
    rng = torch.Generator().manual_seed(0)
    turned = positions.double() @ _random_rotations(1, rng)[0].T + 5.0
    drawn = draw_rigid_motions(penalty, turned.expand(40_000, -1, -1), rng)
    torch.testing.assert_close(torch.cdist(drawn[0], drawn[0]), torch.cdist(turned, turned), rtol=0, atol=1e-9)
    values = penalty(drawn)
    step = 1e-3
    at = lambda strength: float(
        log_rigid_integral(AlignmentPenalty(positions[heavy], strength, atoms=heavy), turned[None])
    )
    # <lambda D^2> = -d log G / d log lambda
    expected = -(at(1000 * math.exp(step)) - at(1000 * math.exp(-step))) / (2 * step)
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(len(values))


def test_known_log_z_of_a_harmonic_molecule():
    """Six atoms on springs: a Cartesian and an internal generator agree on log Z over shapes, each within its error."""
    rng = np.random.default_rng(2)
    positions = np.array([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.15, 0.03]])
    hydrogens = [[-0.04, -0.1, 0.0], [0.38, 0.05, -0.02]]
    positions = np.concatenate([positions, hydrogens]) + 0.002 * rng.standard_normal((6, 3))
    bonds = [(0, 1), (1, 2), (2, 3), (0, 4), (3, 5)]
    molecule = harmonic_molecule(["C", "C", "C", "C", "H", "H"], bonds, positions)
    potential = CompiledPotential(molecule)
    config = replace(SMALL, fold_symmetry=False)
    # Bonds and angles are independent coordinates here, dihedrals uniform: log Z is a sum of one-dimensional integrals.
    nodes = np.linspace(-1, 1, 20_001)
    kT = molecule.kT
    log_z = 0.0
    for i, j in bonds:
        r0 = np.linalg.norm(positions[i] - positions[j])
        r = r0 + 0.05 * nodes
        log_z += math.log(np.trapezoid(r**2 * np.exp(-0.5 * 3e5 * (r - r0) ** 2 / kT), r))
    for i, j, k in ((0, 1, 2), (1, 2, 3), (4, 0, 1), (2, 3, 5)):
        u, v = positions[i] - positions[j], positions[k] - positions[j]
        a0 = math.atan2(float(np.linalg.norm(np.cross(u, v))), float(u @ v))
        a = np.clip(a0 + 1.0 * nodes, 0, math.pi)
        log_z += math.log(np.trapezoid(np.sin(a) * np.exp(-0.5 * 400 * (a - a0) ** 2 / kT), a))
    truth_all = log_z + 3 * math.log(2 * math.pi)
    internal = bg.BoltzmannGenerator.for_molecule(molecule, potential, config=config, seed=1).sample(20_000).log_z
    assert abs(internal.value - truth_all) < 2 * (internal.high - internal.value)
    # An untrained Cartesian flow is one normal distribution and does not reach all dihedrals of the heavy atoms: the
    # integral is taken over a window of that dihedral.
    generator = bg.BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates="cartesian", config=config, dtype=torch.float64, seed=1
    )
    ensemble = generator.sample(40_000).unbiased()
    phi = _dihedral(ensemble.positions[:, :4])
    centre = _dihedral(positions[None, :4])[0]
    window = np.abs(np.remainder(phi - centre + np.pi, 2 * np.pi) - np.pi) < 0.1
    inside = np.where(window, ensemble.log_weights, -np.inf)
    from boltzgen.free_energy import log_z as estimate

    found = estimate(inside)
    expected = log_z + 2 * math.log(2 * math.pi) + math.log(0.2)
    assert found.high - found.value < 0.5  # 70 effective samples: Student's quantile widens it
    assert abs(found.value - expected) < 2 * (found.high - found.value)


def _dihedral(x):
    b0, b1, b2 = (x[:, i + 1] - x[:, i] for i in range(3))
    n1, n2 = np.cross(b0, b1), np.cross(b1, b2)
    return np.arctan2((np.cross(n1, n2) * b1).sum(1) / np.linalg.norm(b1, axis=1), (n1 * n2).sum(1))


def test_training_follows_the_penalty(dipeptide, potential):
    """The reduced energy that losses see is U/kT plus the penalty, and its gradient is theirs."""
    generator = bg.BoltzmannGenerator.for_molecule(
        dipeptide, potential, coordinates="cartesian", config=SMALL, dtype=torch.float64
    )
    positions, _ = generator.sample_and_log_prob(8)
    positions = positions.requires_grad_(True)
    reduced = generator.reduced_energy(positions, 2 * dipeptide.kT)
    expected = potential(positions.detach()) / (2 * dipeptide.kT) + generator.alignment(positions.detach())
    torch.testing.assert_close(reduced.detach(), expected)
    (gradient,) = torch.autograd.grad(reduced.sum(), positions)
    _, forces = potential.energy_and_forces(positions.detach())
    _, pull = generator.alignment.value_and_gradient(positions.detach())
    torch.testing.assert_close(gradient, pull - forces / (2 * dipeptide.kT))
    before = [p.detach().clone() for p in generator.flow.parameters()]
    history = bg.finetune(generator, budget=192, batch_size=64, on_record=lambda *_: None, record_every=1)
    assert len(history.records) == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, generator.flow.parameters(), strict=True))


def test_strength_can_be_changed_and_taken_away(dipeptide, potential):
    generator = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, coordinates="cartesian", config=SMALL)
    assert generator.alignment.strength == 1000.0
    generator.set_alignment(10.0)
    assert generator.alignment.strength == 10.0
    generator.set_alignment(0.0)
    ensemble = generator.sample(50)
    assert ensemble.log_rigid_integral is None
    assert ensemble.unbiased() is ensemble
    assert ensemble.dimension == 66  # 22 atoms: nothing takes the rigid motions away
    with pytest.raises(StructureError, match="cartesian"):
        bg.BoltzmannGenerator.for_molecule(dipeptide, potential).set_alignment(10.0)


def test_pretraining_is_blind_to_the_orientation_of_the_data(dipeptide, potential):
    source = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, coordinates="cartesian", config=SMALL, seed=1)
    data = source.sample_and_log_prob(300)[0].double()
    turned = (data @ _random_rotations(1, torch.Generator().manual_seed(3))[0].T + 2.0).float()
    generator = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, coordinates="cartesian", config=SMALL, seed=2)
    history = bg.pretrain(generator, turned, n_steps=20, batch_size=64)
    # an untrained flow has the right location; data 2 nm away would have a density of zero
    assert np.isfinite(history.records[0]["held_out"])
    assert history.records[-1]["held_out"] < -150


def test_penalised_weights_are_of_six_coordinates_more(cartesian):
    ensemble = cartesian.sample(100)
    assert (ensemble.dimension, ensemble[::2].dimension, ensemble.unbiased().dimension) == (66, 66, 60)
    assert ensemble.log_z.value == ensemble.unbiased().log_z.value
    assert ensemble.log_z.unit == "nm^60"


def test_slices_and_copies_keep_what_unbiased_needs(cartesian):
    ensemble = cartesian.sample(400)
    part = ensemble[::2]
    np.testing.assert_array_equal(part.log_rigid_integral, ensemble.log_rigid_integral[::2])
    copied = ensemble.resample(50).unbiased()
    assert np.isfinite(copied.log_weights).all()
    assert float(np.ptp(copied.log_weights)) > 0


def test_free_energies_are_those_of_the_unpenalised_distribution(cartesian):
    ensemble = cartesian.sample(400)
    basins = {"left": "phi < -80"}
    inside = np.asarray(bg.parse_basin("phi < -80", ensemble.molecule).contains(ensemble.positions))
    probability = float(ensemble.unbiased().weights[inside].sum())
    found = ensemble.free_energy(basins)["left"].probability
    assert found == pytest.approx(probability, abs=1e-12)
    assert abs(found - float(ensemble.weights[inside].sum())) > 1e-9


@pytest.mark.parametrize(("name", "works"), [("butane", True), ("toluene", True), ("methanol", False)])
def test_other_molecules(name, works):
    molecule = small_molecule(name)
    potential = CompiledPotential(molecule)
    if not works:
        with pytest.raises(StructureError, match="coordinates='internal'"):
            bg.BoltzmannGenerator.for_molecule(molecule, potential, coordinates="cartesian", config=SMALL)
        return
    generator = bg.BoltzmannGenerator.for_molecule(
        molecule, potential, coordinates="cartesian", config=SMALL, dtype=torch.float64
    )
    positions, log_q = generator.sample_and_log_prob(200)
    with torch.no_grad():
        assert float((generator.log_prob(positions) - log_q).abs().max()) < 1e-8
    assert bool(torch.isfinite(potential(positions)).all())
