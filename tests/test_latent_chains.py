"""Chains in latent space: detailed balance, known populations on lines and circles, honest costs."""

import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from analytic import DoubleWell, GaussianFlow
from scipy.special import ive

from boltzgen import free_energy as fe
from boltzgen.energy import FunctionPotential
from boltzgen.errors import EstimateError, PotentialError
from boltzgen.flows.base import Base
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.sampling import flow_chains, latent_chains
from boltzgen.sampling.latent_moves import KINDS, LatentSpace, LatentState
from boltzgen.sampling.run import generator as seeded


def curved_flow():
    """Couplings with weights drawn at random: a smooth map whose volume changes by factors, and no good generator."""
    torch.manual_seed(3)
    flow = CartesianFlow((1, 3), factor=1.0, n_rounds=2, n_hidden=16).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return flow


def poor_generator():
    return BoltzmannGenerator(curved_flow(), DoubleWell(), kT=1.0)


class Circle(torch.nn.Module):
    """An angle with density (1 + a cos u)/(2 pi), on the first column of positions (B, 1, 3)."""

    def __init__(self, a=0.5):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=torch.float64), requires_grad=False)

    def draw(self, n, generator=None):
        nothing = torch.empty(0, n, dtype=torch.float64)
        uniform = torch.rand(1, n, generator=generator, dtype=torch.float64)
        return Base((2 * uniform - 1) * math.pi, nothing, nothing, nothing, nothing.long())

    def place(self, base):
        # The cumulative distribution of that density, inverted by Newton's method with a derivative that is exact.
        u = base.torsions[0]
        with torch.no_grad():
            x = u.clone()
            for _ in range(60):
                x = x - (x + self.a * x.sin() - u) / (1 + self.a * x.cos())
        x = x - (x + self.a * x.sin() - u) / (1 + self.a * x.cos()).detach()
        return torch.nn.functional.pad(x[:, None, None], (0, 2)), torch.log1p(self.a * x.cos()) - math.log(2 * math.pi)

    def sample_and_log_prob(self, n, generator=None):
        return self.place(self.draw(n, generator))

    def log_prob(self, positions):
        return torch.log1p(self.a * positions[:, 0, 0].cos()) - math.log(2 * math.pi)


def in_minor_well(positions):
    return positions[:, 0, 0] > DoubleWell().barrier


def test_slopes_against_finite_differences():
    space = LatentSpace(poor_generator())
    drawn = space.draw(6, seeded(0), slopes=True)
    for k in range(3):
        shift = torch.zeros_like(drawn.normals)
        shift[:, k] = 1e-5
        up, down = (
            space.state(drawn.angles, drawn.normals + sign * shift, drawn.labels, slopes=False) for sign in (1, -1)
        )
        expected = (up.log_ratio - down.log_ratio) / 2e-5
        np.testing.assert_allclose(drawn.slope_normals[:, k].numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def at_exact_samples(generator, n, rng, slopes):
    """States of a latent space whose positions are exact samples of the target."""
    space = LatentSpace(generator)
    space.draw(1, rng, False)
    with torch.no_grad():
        normals, _ = generator.flow.inverse(generator.potential.sample(n, rng))
    nothing = torch.empty(n, 0, dtype=torch.float64)
    return space, space.state(nothing, normals, nothing.long(), slopes)


def test_trajectories_are_reversible():
    space, start = at_exact_samples(poor_generator(), 50, seeded(2), slopes=True)
    mover = KINDS["hmc"](space, 0.2, seeded(1), 5)
    momenta = (torch.zeros_like(start.angles), torch.randn(start.normals.shape, dtype=torch.float64))
    there, after = mover.trajectory(start, momenta, 0.05)
    assert float((there.normals - start.normals).abs().max()) > 0.1
    back, reversed_ = mover.trajectory(there, tuple(-p for p in after), 0.05)
    np.testing.assert_allclose(back.normals.numpy(), start.normals.numpy(), atol=1e-9)
    np.testing.assert_allclose(-reversed_[1].numpy(), momenta[1].numpy(), atol=1e-9)


def largest_flux_imbalance(moves):
    """In standard deviations: transitions there less transitions back, between slices of exact samples of the target.

    Each chain starts from an exact sample and makes one move. With detailed balance the numbers of transitions from
    one slice to another and back are equal but for chance.
    """
    rng = seeded(5)
    space, state = at_exact_samples(poor_generator(), 40_000, rng, KINDS[moves] is not KINDS["autoregressive"])
    mover = KINDS[moves](space, 0.25, rng, 3)
    moved = mover(state)
    assert 0.1 < mover.acceptance < 0.97
    edges = torch.tensor([-1.2, -1.0, -0.8, 0.0, 0.8, 1.0, 1.2], dtype=torch.float64)
    before, after = (torch.bucketize(x.positions[:, 0, 0].contiguous(), edges).numpy() for x in (state, moved))
    flux = np.zeros((8, 8))
    np.add.at(flux, (before, after), 1)
    there, back = flux[np.triu_indices(8, 1)], flux.T[np.triu_indices(8, 1)]
    counted = there + back >= 20
    assert counted.sum() >= 6
    return float((np.abs(there - back) / np.sqrt(np.maximum(there + back, 1)))[counted].max())


@pytest.mark.parametrize("moves", KINDS)
def test_detailed_balance_between_slices(moves):
    """Of up to 28 pairs the largest imbalance stays below 4 standard deviations."""
    assert largest_flux_imbalance(moves) < 4


@pytest.mark.parametrize("moves", KINDS)
def test_the_check_of_balance_sees_a_missing_jacobian(moves, monkeypatch):
    space_of = LatentSpace._evaluate

    def without_density(self, *arguments):
        state = space_of(self, *arguments)
        state.log_ratio = -state.reduced
        return state

    monkeypatch.setattr(LatentSpace, "_evaluate", without_density)
    assert largest_flux_imbalance(moves) > 6


@pytest.mark.parametrize(
    "options", [{"n_local": 0}, {}, {"moves": "langevin", "n_local": 2}, {"moves": "autoregressive"}]
)
def test_populations_of_a_double_well(options):
    generator = poor_generator()
    ensemble = latent_chains(generator, 60, 100, seed=2, **options)
    assert (ensemble.kind, ensemble.sampling.n_groups, len(ensemble)) == ("chain", 60, 60 * 80)
    assert ensemble.evaluations == generator.potential.counts.energy
    assert ensemble.record["force_evaluations"] == generator.potential.counts.force
    minor = fe.expectation(ensemble, in_minor_well)
    assert abs(minor.value - generator.potential.minor_population) < 2 * minor.half_width < 0.2
    assert 0 < ensemble.record["accepted"]["independent"] < 1
    np.testing.assert_allclose(ensemble.energies, generator.energies(ensemble.positions), rtol=1e-12)
    with pytest.raises(EstimateError, match="does not know log Z"):
        _ = ensemble.log_z


def test_local_moves_alone_go_round_the_circle(monkeypatch):
    """Without independent proposals, on exp(-2 cos x): <cos x> is a ratio of Bessel functions."""
    monkeypatch.setattr(
        sys.modules["boltzgen.sampling.latent_chains"],
        "_independent",
        lambda space, state, rng, slopes: (state, math.nan),
    )
    target = FunctionPotential(lambda x: 2 * torch.cos(x[:, 0, 0]), 1)
    for moves in KINDS:
        ensemble = latent_chains(BoltzmannGenerator(Circle(), target, kT=1.0), 200, 80, moves=moves, seed=4)
        found = fe.expectation(ensemble, lambda x: np.cos(x[:, 0, 0]))
        assert abs(found.value + ive(1, 2) / ive(0, 2)) < 2 * found.half_width < 0.1
        assert np.abs(ensemble.positions).max() <= math.pi + 1e-9


def test_the_cost_of_each_kind():
    """A round is one independent proposal, and as many evaluations as the local move takes."""
    for moves, each in (("hmc", 4), ("langevin", 1), ("autoregressive", 1)):
        generator = poor_generator()
        ensemble = latent_chains(generator, 7, 10, moves=moves, n_local=2, n_leapfrog=4)
        assert ensemble.evaluations == 7 * (1 + 10 * (1 + 2 * each))
        assert ensemble.record["force_evaluations"] == (0 if moves == "autoregressive" else ensemble.evaluations)


def test_molecules_stay_in_their_domain(generator):
    """An untrained generator of alanine dipeptide: energies are those of the positions, and lower than before."""
    ensemble = latent_chains(generator, 32, 12, n_leapfrog=2, seed=1)
    assert generator.contains(ensemble.positions).all()
    np.testing.assert_allclose(ensemble.energies, generator.energies(ensemble.positions), rtol=1e-9)
    assert ensemble.molecule is generator.molecule
    assert ensemble.record["accepted"]["local"] > 0.1
    assert np.median(ensemble.energies) < np.median(generator.energies(generator.sample(500).positions)) - 10


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("sampler", [latent_chains, flow_chains])
def test_ctrl_c_ends_chains_with_what_they_have(sampler):
    """A signal in the middle of an evaluation: the round is finished, and what was kept is an ensemble."""
    well, calls = DoubleWell(), []

    def energy(x):
        calls.append(len(x))
        if len(calls) == 60:
            os.kill(os.getpid(), signal.SIGINT)
        return well(x)

    before = signal.getsignal(signal.SIGINT)
    generator = BoltzmannGenerator(curved_flow(), FunctionPotential(energy, 1, dimension=3), kT=1.0)
    ensemble = sampler(generator, 20, 100, n_local=0, progress=True, seed=3)
    assert signal.getsignal(signal.SIGINT) is before
    assert ensemble.record["ended_early"]
    assert 30 * 20 < len(ensemble) < 45 * 20  # about 60 rounds, of which twenty are burn-in
    assert ensemble.sampling.n_groups == 20
    assert 0 < ensemble.record["accepted"]["independent"] < 1
    calls[:] = [0] * 50  # ten evaluations before the signal: still in the burn-in
    with pytest.raises(PotentialError, match="burn_in leaves out"):
        sampler(generator, 20, 100, n_local=0, progress=True, seed=3)


def test_states_are_picked_whole():
    space = LatentSpace(poor_generator())
    first, second = (space.draw(4, seeded(seed), True) for seed in (0, 1))
    chosen = torch.tensor([True, False, False, True])
    mixed = first.where(chosen, second)
    for name in LatentState.__annotations__:
        assert torch.equal(getattr(mixed, name)[0], getattr(first, name)[0])
        assert torch.equal(getattr(mixed, name)[1], getattr(second, name)[1])


def test_settings_that_make_no_sense_are_refused():
    for options in ({"moves": "gibbs"}, {"burn_in": 1.0}, {"n_chains": 0}, {"step_size": 0.0}, {"step_size": 2.0}):
        with pytest.raises(PotentialError):
            latent_chains(poor_generator(), **options)
    with pytest.raises(PotentialError, match="GaussianFlow does not give its base variables: use flow_chains"):
        latent_chains(BoltzmannGenerator(GaussianFlow(), DoubleWell(), kT=1.0))
