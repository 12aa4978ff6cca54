"""Losses: gradients with analytic answers, and the failure that the mask is for."""

import math

import pytest
import torch

from boltzgen.losses import LOSSES, log_variance, masked_log_variance, reverse_kl


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_least_where_densities_agree(name):
    loss = LOSSES[name].function
    log_p = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = log_p + 0.5 * torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert loss(log_p, log_p).ndim == 0
    if LOSSES[name].detached:
        assert float(loss(log_p, log_p - 3.0)) == pytest.approx(0, abs=1e-20)  # any constant: log Z is unknown
        assert float(loss(log_p, off)) > 0


def test_l2_plus_pulls_up_only_what_is_above_the_mean():
    log_q = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    loss = masked_log_variance(torch.tensor([0.0, 1.0, -4.0]), log_q)
    # ratios 0, 1, -4 have mean -1: excesses 1, 2, 0
    assert float(loss.detach()) == pytest.approx(5 / 3)
    (gradient,) = torch.autograd.grad(loss, log_q)
    torch.testing.assert_close(gradient, torch.tensor([-2 / 3, -4 / 3, 0.0]))  # descent raises log q there


def test_log_variance_on_policy_has_twice_the_gradient_of_reverse_kl():
    """Richter et al. (2020), proposition 1, for a normal q in a harmonic well: both gradients by large samples."""
    mean = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, generator=rng, dtype=torch.float64)
    stiffness = 2.0

    def log_q(x):
        return -0.5 * (x - mean) ** 2 - 0.5 * math.log(2 * math.pi)

    x = mean + z
    (of_kl,) = torch.autograd.grad(reverse_kl(-0.5 * stiffness * x**2, log_q(x)), mean)
    fixed = x.detach()
    (of_variance,) = torch.autograd.grad(log_variance(-0.5 * stiffness * fixed**2, log_q(fixed)), mean)
    assert of_kl.item() == pytest.approx(stiffness * 0.7, rel=0.01)  # d/dm of k m^2 / 2
    assert float(of_variance) == pytest.approx(2 * of_kl.item(), rel=0.03)
