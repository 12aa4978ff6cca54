"""Compiled densities and samples are the eager ones, or are not used."""

import contextlib

import pytest
import torch
from analytic import GaussianFlow
from test_local_hydrogens import SMALL, roughened
from test_training_parts import harmonic_generator
from torch._dynamo.utils import counters

from boltzgen.energy import CompiledPotential
from boltzgen.flows.compilation import CompiledFlow
from boltzgen.generator import BoltzmannGenerator
from boltzgen.training import Stage, Training


@pytest.fixture
def flow():
    return GaussianFlow(mean=0.5, log_scale=0.3)


def test_the_compiled_density_has_the_values_and_gradients_of_the_eager_one(flow):
    compiled = CompiledFlow(flow, 16)
    assert compiled.reason == ""
    positions, _ = flow.sample_and_log_prob(16)
    positions = positions.detach()
    gradients = []
    for density in (compiled.log_prob, flow.log_prob):
        flow.zero_grad()
        density(positions).square().mean().backward()
        gradients.append(flow.log_scale.grad.clone())
    torch.testing.assert_close(compiled.log_prob(positions), flow.log_prob(positions))
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_a_molecular_flow_is_compiled_whole(dipeptide):
    """Samples from the same random numbers, and the density, without a graph break."""
    flow = roughened(BoltzmannGenerator.for_molecule(dipeptide, CompiledPotential(dipeptide), config=SMALL)).flow
    compiled = CompiledFlow(flow, 16)
    assert compiled.reason == ""
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    positions = compiled.sample(16, streams[0])
    with torch.no_grad():
        expected, log_q = flow.sample_and_log_prob(16, streams[1])
    torch.testing.assert_close(positions, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled.log_prob(expected), log_q, rtol=0, atol=1e-2)
    assert torch.equal(streams[0].get_state(), streams[1].get_state())


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("loss", ["l2+", "reverse-kl-path"])
def test_a_training_uses_what_it_compiles_and_compiles_it_once(two_threads, loss):
    """Once, it compiled without gradients, which failed, and again for another number of threads."""
    training = Training(harmonic_generator(), [Stage("a", loss, 3)], batch_size=64, compile=True)
    counters.clear()
    training.run()
    assert training._drawing._compiled.reason == ""
    assert counters["stats"]["unique_graphs"] == 1


def test_small_compiled_flows_run_on_one_thread(flow, two_threads):
    with CompiledFlow(flow, 16).suited_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_without_a_compiler_everything_is_eager(flow, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    compiled = CompiledFlow(flow, 16)
    assert "no C++ compiler" in compiled.reason
    positions, log_q = flow.sample_and_log_prob(16)
    torch.testing.assert_close(compiled.log_prob(positions), log_q)
    same = flow.sample_and_log_prob(16, torch.Generator().manual_seed(1))[0]
    torch.testing.assert_close(compiled.sample(16, torch.Generator().manual_seed(1)), same.detach())


@pytest.mark.parametrize(
    "wrong", [lambda log_q: log_q + 1, lambda log_q: log_q.detach() + 0.5 * (log_q - log_q.detach())]
)
def test_a_wrong_density_or_gradient_is_not_used(flow, monkeypatch, wrong):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: wrong(function(x)))
    compiled = CompiledFlow(flow, 16)
    assert "differs from the eager one" in compiled.reason
    positions, log_q = flow.sample_and_log_prob(16)
    torch.testing.assert_close(compiled.log_prob(positions), log_q)


def test_batch_sizes_that_come_out_wrong_stay_eager(flow, monkeypatch):
    """As of a compiler that gets batches of 8 wrong, and only those."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: function(x) + (len(x) == 8))
    compiled = CompiledFlow(flow, 16)
    assert compiled.reason == ""
    for n in (16, 8, 16):
        positions, log_q = flow.sample_and_log_prob(n)
        torch.testing.assert_close(compiled.log_prob(positions), log_q)
    assert "differs from the eager one" in compiled.reason
    assert compiled._density.of_size(16) is not None
    assert compiled._density.of_size(8) is None


def test_a_batch_with_undefined_rows_does_not_end_the_compiled_density(flow, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled = CompiledFlow(flow, 16)
    positions, _ = flow.sample_and_log_prob(8)
    positions = positions.detach()
    positions[3] = torch.inf
    assert bool(torch.isfinite(compiled.log_prob(positions)).sum() == 7)
    assert compiled.reason == ""


def test_wrong_samples_are_not_used(dipeptide, monkeypatch):
    flow = BoltzmannGenerator.for_molecule(dipeptide, CompiledPotential(dipeptide), config=SMALL).flow
    wrong = lambda function: (lambda x: function(x) + 0.01) if function.__name__ == "place" else function
    monkeypatch.setattr(torch, "compile", lambda function, **_: wrong(function))
    compiled = CompiledFlow(flow, 16)
    assert "samples differs from the eager one" in compiled.reason
    expected = flow.sample_and_log_prob(16, torch.Generator().manual_seed(1))[0]
    torch.testing.assert_close(compiled.sample(16, torch.Generator().manual_seed(1)), expected.detach())


def test_a_density_that_rounding_makes_nan_is_found_eagerly(flow, monkeypatch):
    broken = []

    def compiles(function, **_):
        return lambda x: function(x) * (torch.nan if broken else 1)

    monkeypatch.setattr(torch, "compile", compiles)
    compiled = CompiledFlow(flow, 16)
    broken.append(True)
    positions, log_q = flow.sample_and_log_prob(16)
    torch.testing.assert_close(compiled.log_prob(positions), log_q)


def test_a_training_compiles_when_told_to_and_when_it_is_long(monkeypatch):
    made = []

    class Eager:
        def __init__(self, flow, n):
            made.append(n)
            self.log_prob = flow.log_prob
            self.sample = lambda n, stream: flow.sample_and_log_prob(n, stream)[0]
            self.suited_threads = contextlib.nullcontext

    monkeypatch.setattr("boltzgen.training.drawing.CompiledFlow", Eager)
    short, long = [Stage("a", "l2+", 3)], [Stage("a", "l2+", 10**6)]
    Training(harmonic_generator(), short, batch_size=64).run()
    assert made == []
    Training(harmonic_generator(), short, batch_size=64, compile=True).run()
    assert made == [64]
    Training(harmonic_generator(), long, batch_size=64).run(stop=lambda: len(made) > 1)
    assert made == [64, 64]
    Training(harmonic_generator(), long, batch_size=64, compile=False, seconds=0.1).run()
    assert made == [64, 64]
