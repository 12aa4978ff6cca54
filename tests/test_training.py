"""Training: reaches known answers, keeps both modes, stops and resumes to the last bit."""

import copy

import pytest
import torch
from analytic import DoubleWell, GaussianFlow, Harmonic

from boltzgen.errors import CheckpointError
from boltzgen.flows.networks import multilayer_perceptron
from boltzgen.generator import BoltzmannGenerator
from boltzgen.training import Stage, Training, anneal, finetune, soft_cap


def harmonic_generator(seed=0):
    return BoltzmannGenerator(GaussianFlow(mean=0.5, log_scale=0.3), Harmonic(stiffness=4.0), kT=1.0, seed=seed)


@pytest.mark.parametrize("loss", ["l2+", "reverse-kl", "log-variance"])
def test_finetune_finds_a_harmonic_well(loss):
    generator = harmonic_generator()
    stages = [Stage("refinement", loss, 1500, 1.0, 1.0, 1e-2, 1e-4)]
    Training(generator, stages, batch_size=256).run()
    scale = generator.flow.log_scale.exp()
    torch.testing.assert_close(scale, torch.full((3,), 0.5), rtol=0.03, atol=0)
    ensemble = generator.sample(20_000)
    assert ensemble.ess_fraction > 0.98
    assert ensemble.log_z.low - 0.01 < generator.potential.log_z < ensemble.log_z.high + 0.01


class MixtureFlow(GaussianFlow):
    """Two normal components with a trainable share: the smallest density that can lose a mode."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.log_scale = torch.nn.Parameter(torch.tensor([-1.3, -1.3]))
        self.logit = torch.nn.Parameter(torch.tensor(0.0))

    def sample_and_log_prob(self, n_samples, generator=None):
        with torch.no_grad():
            right = (torch.rand(n_samples, generator=generator) < self.logit.sigmoid()).long()
            x = self.mean[right] + torch.randn(n_samples, generator=generator) * self.log_scale.exp()[right]
            positions = torch.cat([x[:, None], torch.randn(n_samples, 2, generator=generator)], dim=1).unsqueeze(1)
        return positions, self.log_prob(positions)

    def log_prob(self, positions):
        x, rest = positions[:, 0, :1], positions[:, 0, 1:]
        share = torch.stack([-torch.nn.functional.softplus(self.logit), -torch.nn.functional.softplus(-self.logit)])
        component = -0.5 * ((x - self.mean) / self.log_scale.exp()).square() - self.log_scale + share
        constant = 1.5 * torch.log(torch.tensor(2 * torch.pi))
        return component.logsumexp(1) - 0.5 * rest.square().sum(1) - constant


def test_l2_plus_keeps_both_wells_and_weights_give_their_proportion():
    generator = BoltzmannGenerator(MixtureFlow(), DoubleWell(), kT=1.0)
    finetune(generator, budget=250_000, batch_size=256)
    ensemble = generator.sample(50_000)
    right = ensemble.positions[:, 0, 0] > 0
    truth = generator.potential.minor_population
    assert 0.5 * truth < right.mean() < 2 * truth  # normal components cannot fit the wells exactly
    assert ensemble.weights[right].sum() == pytest.approx(truth, abs=0.01)
    assert ensemble.log_z.value == pytest.approx(generator.potential.log_z, abs=0.02)


class Overflowing(GaussianFlow):
    """Rounding loses some samples: their latent variables overflow."""

    def log_prob(self, positions):
        z = (positions[:, 0] - self.mean) * torch.exp(-self.log_scale)
        lost = (positions[:, 0] > 0.8).any(1)
        return self._log_normal(z.index_put((lost,), z[lost] * torch.inf))


def test_a_sample_without_a_density_costs_no_step():
    """The gradient of its infinite log q is NaN, and must not reach the others."""
    generator = BoltzmannGenerator(Overflowing(), Harmonic(4.0), kT=1.0, seed=0)
    samples, _ = generator.flow.sample_and_log_prob(256, torch.Generator().manual_seed(0))
    log_q = generator.flow.log_prob(samples.detach())
    assert 0 < int(torch.isinf(log_q).sum()) < 192
    training = Training(generator, [Stage("refinement", "l2+", 5)], batch_size=256)
    before = generator.flow.mean.detach().clone()
    training.run()
    assert training.skipped == 0
    assert not torch.equal(generator.flow.mean, before)


def test_anneal_counts_its_evaluations():
    generator = harmonic_generator()
    history = anneal(generator, t_start=4.0, budget=20_000, batch_size=100, record_every=5)
    counts = generator.potential.counts
    assert counts.energy == 20_000
    assert counts.force == 2_000  # only the hot tenth asks for forces
    table = history.table()
    assert table["temperature"][0] == pytest.approx(4.0)
    assert table["temperature"][-1] == pytest.approx(1.0)
    assert table["energy_evaluations"][-1] == 20_000


def test_stopped_and_resumed_training_equals_an_unbroken_one():
    stages = [Stage("hot", "reverse-kl", 30, 3.0, 3.0), Stage("cooling", "l2+", 40, 3.0, 1.0)]
    whole = harmonic_generator()
    Training(whole, stages, batch_size=64).run()

    first = harmonic_generator()
    training = Training(first, stages, batch_size=64)
    saved = {}
    training.on_checkpoint = lambda t: saved.update(copy.deepcopy(t.state_dict()))
    steps = iter(range(1000))
    history = training.run(stop=lambda: next(steps) >= 37)
    assert history.interrupted
    assert saved["step"] == 37

    second = harmonic_generator(seed=99)
    resumed = Training(second, stages, batch_size=64)
    resumed.load_state_dict(saved)
    resumed.run()
    for a, b in zip(whole.flow.parameters(), second.flow.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.potential.counts.energy == whole.potential.counts.energy
    assert torch.equal(whole.sample_and_log_prob(8)[0], second.sample_and_log_prob(8)[0])


def test_a_checkpoint_of_another_training_is_refused():
    state = Training(harmonic_generator(), [Stage("a", "l2+", 10)], batch_size=64).state_dict()
    other = Training(harmonic_generator(), [Stage("a", "l2+", 10)], batch_size=32)
    with pytest.raises(CheckpointError, match="batch_size"):
        other.load_state_dict(state)


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match="unknown loss 'l2'"):
        Training(harmonic_generator(), [Stage("a", "l2", 10)])


def test_soft_cap_is_exact_below_and_monotonic_above():
    energies = torch.tensor([0.0, 1.0, 2.0, 90.0, 1e3, 1e12])
    capped = soft_cap(energies)
    torch.testing.assert_close(capped[:4], energies[:4])
    assert bool((capped.diff() > 0).all())
    assert float(capped[-1]) < 200


def test_couplings_start_as_the_identity():
    network = multilayer_perceptron(3, 8, 5)
    assert not network(torch.randn(4, 3)).any()
