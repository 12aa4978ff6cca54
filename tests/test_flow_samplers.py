"""Annealed importance and flow chains: known log Z and populations, moves that leave the target alone, honest costs."""

import itertools
import math
import os
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
import torch
from analytic import DoubleWell, GaussianFlow, Harmonic
from signals import interrupted_when_asked

from boltzgen import free_energy as fe
from boltzgen.errors import EstimateError, PotentialError
from boltzgen.generator import BoltzmannGenerator
from boltzgen.sampling import annealed_importance, flow_chains
from boltzgen.sampling.hybrid_moves import HamiltonianMoves, TargetPath
from boltzgen.sampling.run import generator as seeded


def poor_generator():
    """A normal density on a double well: ESS 0.2."""
    return BoltzmannGenerator(GaussianFlow(log_scale=0.3), DoubleWell(), kT=1.0)


def in_minor_well(positions):
    return positions[:, 0, 0] > DoubleWell().barrier


def test_path_gradients_against_finite_differences():
    path = TargetPath(poor_generator())
    x = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.0, 0.3, 1.0):
        state = path.state(x, t)
        for k in range(3):
            shift = torch.zeros_like(x)
            shift[:, 0, k] = 1e-3
            up, down = (path.state(x + sign * shift, t).log_density(t) for sign in (1, -1))
            # 1e-3: the density of the flow is evaluated in single precision.
            np.testing.assert_allclose(((up - down) / 2e-3).numpy(), state.gradient(t)[:, 0, k].numpy(), atol=1e-3)


def test_moves_leave_a_normal_density_alone():
    """Ten thousand exact samples stay exact samples, with a step long enough to be rejected at times."""
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(4.0), kT=1.0)
    rng = seeded(1)
    x = torch.randn(10_000, 1, 3, generator=rng, dtype=torch.float64) / 2
    path = TargetPath(generator)
    mover = HamiltonianMoves(path, np.array([2.0]), 0.6, 3, rng)
    state = path.state(x, 1.0)
    for _ in range(5):
        state = mover(state, 1.0)
    assert 0.5 < mover.acceptance < 0.95
    assert not torch.equal(state.positions, x)
    # The mean square of 30,000 values of variance 1/4 has a standard error of 0.8 %.
    assert float(state.positions.square().mean()) == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(
    "options", [{}, {"moves": "langevin", "n_moves": 4}, {"resample_below": 0.0}, {"schedule": [0.2, 0.5, 0.8, 1.0]}]
)
def test_log_z_and_populations_of_a_double_well(options):
    generator = poor_generator()
    before = generator.potential.counts.energy
    ensemble = annealed_importance(generator, 200, 20, seed=3, **options)
    assert ensemble.evaluations == generator.potential.counts.energy - before
    assert ensemble.ess_fraction > 0.25 > generator.sample(4000).ess_fraction
    log_z = ensemble.log_z
    assert abs(log_z.value - generator.potential.log_z) < 2 * log_z.half_width < 0.2
    minor = fe.expectation(ensemble, in_minor_well)
    assert abs(minor.value - generator.potential.minor_population) < 2 * minor.half_width < 0.1
    independent = options.get("resample_below") == 0.0
    assert ensemble.kind == ("independent" if independent else "particles")
    if not independent:
        with pytest.raises(EstimateError, match="repeats"):
            fe.log_z(ensemble, interval="bootstrap")


def test_mean_of_z_is_unbiased():
    """Few particles, few places, resampling: the mean of Z over 4,000 repeats is Z within its error."""
    generator = poor_generator()
    ensemble = annealed_importance(generator, 8, 4000, schedule=[0.3, 0.7, 1.0], n_leapfrog=2, seed=5)
    z = np.exp(ensemble.log_weights - generator.potential.log_z).reshape(4000, 8).mean(axis=1)
    assert abs(z.mean() - 1) < 3.5 * z.std() / math.sqrt(4000) < 0.1
    assert 0 < max(ensemble.record["resampled"]) <= 1


def test_repeats_that_have_arrived_outlive_an_early_end():
    """40 repeats of 100 in four batches of ten along two places, ended in the third: the first two batches are kept."""
    options = {"n_particles": 100, "n_repeats": 40, "schedule": [0.5, 1.0], "n_leapfrog": 2, "seed": 4}
    whole = annealed_importance(poor_generator(), **options)
    kept = annealed_importance(poor_generator(), **options, progress=lambda steps: itertools.islice(steps, 5))
    assert (whole.sampling.n_groups, kept.sampling.n_groups, len(kept)) == (40, 20, 2000)
    assert (whole.record["ended_early"], kept.record["ended_early"]) == (False, True)
    np.testing.assert_array_equal(kept.log_weights, whole.log_weights[:2000])
    assert kept.evaluations < whole.evaluations
    assert abs(kept.log_z.value - DoubleWell().log_z) < 2 * kept.log_z.half_width < 0.5
    np.testing.assert_allclose(kept.record["ess"][-1], kept.ess_fraction)
    with pytest.raises(PotentialError, match="ended before"):
        annealed_importance(poor_generator(), **options, progress=lambda steps: itertools.islice(steps, 1))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("resample_below", "kept"), [(0.5, 1200), (0.0, 1000)])
def test_ctrl_c_keeps_the_particles_that_have_arrived(resample_below, kept, monkeypatch):
    """Before the fourth step; two take the first repeat of 1,200, or 1,000 independent particles, to the end."""
    monkeypatch.setattr("boltzgen.progress.Interrupts", interrupted_when_asked(4))
    options = {"schedule": [0.5, 1.0], "n_leapfrog": 2, "resample_below": resample_below, "progress": True}
    ensemble = annealed_importance(poor_generator(), 1200, 5, **options)
    assert (len(ensemble), ensemble.record["ended_early"]) == (kept, True)
    np.testing.assert_allclose(ensemble.record["ess"][-1], ensemble.ess_fraction)


def test_resampling_copies_in_proportion_to_weights():
    from boltzgen.sampling.annealed_importance import _resample

    path = TargetPath(poor_generator())
    n = 1000
    state = path.state(torch.arange(2 * n, dtype=torch.float64)[:, None, None].expand(-1, 1, 3), 0.0)
    weights = torch.stack([torch.linspace(-8, 0, n), torch.zeros(n)]).double()
    picked, levelled, share = _resample(state, weights, 0.5, seeded(0))
    assert share == 0.5  # the second repeat has equal weights and is left alone
    assert torch.equal(picked.positions[n:], state.positions[n:])
    copies = np.bincount(picked.positions[:n, 0, 0].long().numpy(), minlength=n)
    expected = n * torch.softmax(weights[0], 0).numpy()
    assert np.abs(copies - expected).max() <= 1  # systematic resampling
    assert levelled.logsumexp(1) == pytest.approx(weights.logsumexp(1))


@pytest.mark.parametrize("n_local", [0, 1])
def test_chains_have_the_populations_of_the_target(n_local):
    generator = poor_generator()
    ensemble = flow_chains(generator, 40, 200, n_local=n_local, n_leapfrog=3, seed=2)
    assert (ensemble.kind, ensemble.sampling.n_groups, len(ensemble)) == ("chain", 40, 40 * 160)
    assert ensemble.evaluations == generator.potential.counts.energy
    minor = fe.expectation(ensemble, in_minor_well)
    assert abs(minor.value - generator.potential.minor_population) < 2 * minor.half_width < 0.15
    assert 0 < ensemble.record["accepted"]["independent"] < 1
    with pytest.raises(EstimateError, match="does not know log Z"):
        _ = ensemble.log_z


def test_molecules_stay_in_their_domain(generator):
    """An untrained generator of alanine dipeptide: weights are finite and energies those of the positions."""
    ensemble = annealed_importance(generator, 8, 4, schedule=[0.5, 1.0], n_leapfrog=2, seed=1)
    assert generator.contains(ensemble.positions).all()
    np.testing.assert_allclose(ensemble.energies, generator.energies(ensemble.positions), rtol=1e-9)
    assert np.isfinite(ensemble.log_weights).all()
    assert ensemble.molecule is generator.molecule


def test_settings_that_make_no_sense_are_refused():
    generator = poor_generator()
    for options in ({"schedule": [0.5]}, {"moves": "gibbs"}, {"n_particles": 1}, {"conditional_ess": 1.0}):
        with pytest.raises(PotentialError):
            annealed_importance(generator, **options)
    with pytest.raises(PotentialError):
        flow_chains(generator, burn_in=1.0)
    with pytest.raises(PotentialError, match="hydrogens='flow'"):
        TargetPath(SimpleNamespace(other_target="exp(-U(h(x_C))/kT) of the heavy atoms"))
    system = openmm.System()
    for mass in (12.0, 1.0):
        system.addParticle(mass)
    system.addConstraint(0, 1, 0.109)
    with pytest.raises(PotentialError, match="without constraints"):
        TargetPath(SimpleNamespace(other_target="", molecule=SimpleNamespace(system=system)))
