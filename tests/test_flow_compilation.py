"""A compiled density is the eager one, or is not used."""

import pytest
import torch
from analytic import GaussianFlow
from test_training_parts import harmonic_generator

from boltzgen.flows.compilation import compiled_log_prob
from boltzgen.training import Stage, Training


@pytest.fixture
def flow():
    return GaussianFlow(mean=0.5, log_scale=0.3)


def test_the_compiled_density_has_the_values_and_gradients_of_the_eager_one(flow):
    log_prob, reason = compiled_log_prob(flow, 16)
    assert reason == ""
    positions, _ = flow.sample_and_log_prob(16)
    positions = positions.detach()
    gradients = []
    for density in (log_prob, flow.log_prob):
        flow.zero_grad()
        density(positions).square().mean().backward()
        gradients.append(flow.log_scale.grad.clone())
    torch.testing.assert_close(log_prob(positions), flow.log_prob(positions))
    torch.testing.assert_close(*gradients)


def test_without_a_compiler_the_density_is_eager(flow, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    log_prob, reason = compiled_log_prob(flow, 16)
    assert "no C++ compiler" in reason
    positions, log_q = flow.sample_and_log_prob(16)
    torch.testing.assert_close(log_prob(positions), log_q)


@pytest.mark.parametrize(
    "wrong", [lambda log_q: log_q + 1, lambda log_q: log_q.detach() + 0.5 * (log_q - log_q.detach())]
)
def test_a_wrong_density_or_gradient_is_not_used(flow, monkeypatch, wrong):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: wrong(function(x)))
    log_prob, reason = compiled_log_prob(flow, 16)
    assert "differs from the eager one" in reason
    positions, log_q = flow.sample_and_log_prob(16)
    torch.testing.assert_close(log_prob(positions), log_q)


def test_a_training_compiles_when_told_to_and_when_it_is_long(monkeypatch):
    made = []
    monkeypatch.setattr(
        "boltzgen.training.loop.compiled_log_prob", lambda flow, n: (made.append(n), (flow.log_prob, ""))[1]
    )
    short, long = [Stage("a", "l2+", 3)], [Stage("a", "l2+", 10**6)]
    Training(harmonic_generator(), short, batch_size=64).run()
    assert made == []
    Training(harmonic_generator(), short, batch_size=64, compile=True).run()
    assert made == [64]
    Training(harmonic_generator(), long, batch_size=64).run(stop=lambda: len(made) > 1)
    assert made == [64, 64]
    Training(harmonic_generator(), long, batch_size=64, compile=False, seconds=0.1).run()
    assert made == [64, 64]
