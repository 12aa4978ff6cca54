"""Maximum likelihood on data with a known answer."""

import numpy as np
import pytest
import torch
from analytic import GaussianFlow, Harmonic

from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.generator import BoltzmannGenerator
from boltzgen.pretraining import pretrain


def test_finds_mean_and_width_of_the_data_without_any_energy():
    data = 0.4 + 0.5 * torch.randn(5000, 1, 3, generator=torch.Generator().manual_seed(0))
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    history = pretrain(generator, data, n_steps=600, learning_rate=1e-2)
    torch.testing.assert_close(generator.flow.mean.detach(), torch.full((3,), 0.4), rtol=0, atol=0.03)
    torch.testing.assert_close(generator.flow.log_scale.exp().detach(), torch.full((3,), 0.5), rtol=0.03, atol=0)
    # the entropy of the normal distribution is the least negative log-likelihood
    entropy = 1.5 * (1 + np.log(2 * np.pi)) + 3 * np.log(0.5)
    assert history.records[-1]["held_out"] == pytest.approx(entropy, abs=0.1)
    assert generator.potential.counts.energy == 0


def test_weights_of_an_ensemble_are_used():
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.normal(-1, 0.2, (2000, 1, 3)), rng.normal(1, 0.2, (2000, 1, 3))])
    log_weights = np.repeat([0.0, -50.0], 2000)
    generator = BoltzmannGenerator(GaussianFlow(), Harmonic(), kT=1.0)
    pretrain(generator, Ensemble(positions, log_weights, 1.0), n_steps=600, learning_rate=1e-2)
    torch.testing.assert_close(generator.flow.mean.detach(), torch.full((3,), -1.0), rtol=0, atol=0.03)


def test_data_outside_the_domain_are_counted(generator, ensemble_of_mirror_images):
    with pytest.raises(StructureError, match="3 of 3 configurations lie outside"):
        pretrain(generator, ensemble_of_mirror_images, n_steps=1)
    with pytest.raises(StructureError, match=r"needs \(n, 22, 3\)"):
        pretrain(generator, np.zeros((4, 5, 3)), n_steps=1)


@pytest.fixture
def ensemble_of_mirror_images(generator):
    positions, _ = generator.sample_and_log_prob(3)
    return positions * torch.tensor([1.0, 1.0, -1.0])
