"""Losses: one conformance test over all, gradients with analytic answers, known failures and stability."""

import pytest
import torch

from boltzgen.losses import (
    LOSSES,
    masked_log_variance,
)

DATA_FREE = [name for name, loss in LOSSES.items() if loss.needs != "data"]
# Their values move by as much as log p does (or not at all); their gradients must not.
VALUE_KNOWS_ZERO_OF_ENERGY = {"reverse-kl", "reverse-kl-path"}


class Batch:
    """Detached points with log p and, by one parameter for each, log q: derivatives are those by log q."""

    def __init__(self, dtype=torch.float64, shift=0.0):
        rng = torch.Generator().manual_seed(3)
        self.log_p = (torch.randn(96, generator=rng, dtype=torch.float64) + shift).to(dtype)
        off = 0.5 * torch.randn(96, generator=rng, dtype=torch.float64)
        self.log_q = torch.nn.Parameter((self.log_p.double() - shift + off).to(dtype))

    def value_and_gradient(self, name):
        objective = LOSSES[name].start([self.log_q])
        loss = objective(self.log_p, 1.0 * self.log_q)
        return loss.detach(), torch.autograd.grad(loss, self.log_q)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_finite_scalar_of_the_same_arguments(name, dtype):
    value, gradient = Batch(dtype).value_and_gradient(name)
    assert value.shape == ()
    assert value.dtype == gradient.dtype == dtype
    assert bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
    assert bool(gradient.any())
    exact_value, exact_gradient = Batch().value_and_gradient(name)
    # 96 terms of size 1 in float32: 1e-6 of the largest.
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_zero_of_energy_does_not_matter(name):
    value, gradient = Batch().value_and_gradient(name)
    # Beyond the range of exp in float64: unnormalised weights would overflow.
    shifted, same_gradient = Batch(shift=2000.0).value_and_gradient(name)
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-9, atol=1e-12)
    expected = value - 2000.0 if name in VALUE_KNOWS_ZERO_OF_ENERGY else value
    torch.testing.assert_close(shifted, expected, rtol=1e-9, atol=1e-9)


def test_l2_plus_pulls_up_only_what_is_above_the_mean():
    log_q = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    loss = masked_log_variance(torch.tensor([0.0, 1.0, -4.0]), log_q)
    # ratios 0, 1, -4 have mean -1: excesses 1, 2, 0
    assert float(loss.detach()) == pytest.approx(5 / 3)
    (gradient,) = torch.autograd.grad(loss, log_q)
    torch.testing.assert_close(gradient, torch.tensor([-2 / 3, -4 / 3, 0.0]))  # descent raises log q there
