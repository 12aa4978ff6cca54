"""The pieces of benchmarks/maximum_likelihood.py where the answer is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import boltzgen as bg
from boltzgen.energy import FunctionPotential

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import maximum_likelihood

        yield maximum_likelihood
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_generator_of_its_own_target_has_no_divergence(benchmark_script, dipeptide, potential):
    """With U = -kT log q + constant every weight is the same: NLL is the entropy, KL zero, every ESS one."""
    source = bg.BoltzmannGenerator.for_molecule(dipeptide, potential, seed=1)
    kT = dipeptide.kT

    def energy(x):
        with torch.no_grad():
            return -kT * source.log_prob(x.float()).to(x) + 7.0

    generator = bg.BoltzmannGenerator(source.flow, FunctionPotential(energy, 22), molecule=dipeptide, seed=2)
    positions, log_q = source.sample_and_log_prob(600)
    test = bg.Ensemble(positions.numpy(), np.zeros(600), kT, molecule=dipeptide, groups=np.arange(600) // 50)
    found = benchmark_script.tested(generator, test, 800)
    # log q of the same positions differs by roundings in float32, of 200 nats
    assert found["nll"] == pytest.approx(-float(log_q.double().mean()), abs=2e-3)
    assert found["divergence"] == pytest.approx(0, abs=2e-3)
    for name in ("forward_ess", "forward_ess_without_worst", "reverse_ess", "reverse_ess_clipped"):
        assert found[name] == pytest.approx(1, abs=1e-3)
    assert found["basin"]["probability"] == pytest.approx(found["raw_population"], rel=1e-2)
    assert (found["test_frames"], found["test_groups"], found["samples"]) == (600, 12, 800)


def test_standard_error_of_a_mean_over_groups(benchmark_script):
    """With groups of equal weight the jackknife is the textbook error of the mean of the group means."""
    values = np.random.default_rng(0).normal(size=(20, 30)) + np.random.default_rng(1).normal(size=(20, 1))
    mean, error = benchmark_script.weighted_mean(values.ravel(), np.full(600, 1 / 600), np.repeat(np.arange(20), 30))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.mean(1).std(ddof=1) / np.sqrt(20))


def test_light_frames_are_thinned_without_bias(benchmark_script, dipeptide, tmp_path):
    """Nine frames of ten hold a fortieth of the weight: half of them go, and what is left still holds a fortieth."""
    n = 40_000
    light = np.arange(n) % 10 > 0
    weights = np.where(light, 1 / 40 / 0.9, 39 / 40 / 0.1)
    positions = np.zeros((n, 22, 3), dtype=np.float32)
    positions[:, 0, 0] = light
    np.savez(tmp_path / "run.npz", positions=positions, log_weights=np.log(weights) + 5, groups=np.arange(n) % 32)
    frames = benchmark_script.run_frames(dipeptide, [tmp_path / "run.npz"] * 2, seed=0)
    kept = frames.positions[:, 0, 0] > 0
    # chance of a light frame to stay: its weight in units of a twentieth of the mean, 0.56
    assert kept.sum() == pytest.approx(2 * 0.9 * n * 20 / 40 / 0.9, rel=0.03)
    assert (~kept).sum() == 2 * 0.1 * n
    # 40,000 are left: their number, and with it their weight, is off by 0.3 %
    assert frames.weights[kept].sum() == pytest.approx(1 / 40, rel=0.02)
    assert len(np.unique(frames.groups)) == 64


def test_training_never_sees_the_groups_of_the_test(benchmark_script, generator):
    frames = benchmark_script.shipped_frames(generator.molecule)
    train, test, outside = benchmark_script.split(generator, frames)
    assert not set(train.groups) & set(test.groups)
    assert len(train) + len(test) == len(frames)
    assert outside == 0
    assert 0.05 < test.weights.sum() * len(test) / len(frames) < 0.25


def test_parts_are_made_once_and_tables_are_written(benchmark_script, tmp_path):
    study = benchmark_script.Study(tmp_path, benchmark_script.TOY)
    calls = []
    basin = {"probability": 0.01, "delta_f_kT": 4.6, "delta_f_kT_low": 4.5, "delta_f_kT_high": 4.7}

    def make():
        calls.append(1)
        names = ("nll", "nll_standard_error", "divergence", "divergence_standard_error", "forward_ess", "pareto_k")
        more = ("forward_ess_without_worst", "reverse_ess", "reverse_ess_clipped", "raw_population")
        numbers = dict.fromkeys((*names, *more), 0.5)
        whole = {"training_frames": 9, "test_frames": 3, "samples": 5, "training_seconds": 1}
        return {**numbers, **whole, "training": "ended", "basin": basin}

    first, again = study.result("flow", make), study.result("flow", make)
    assert first == again
    assert len(calls) == 1
    assert json.loads((tmp_path / "flow.json").read_text()) == first
    reference = {"name": "r", "evaluations": 100, "seconds": 2, "share_outside_domain": 0.0, "basin": basin}
    rows = {"flow, a": first, "network, b": first}
    placed = {**reference, "name": "s", "target": "exp(-U(h(x_C))/kT)"}
    lines = benchmark_script.agreement_table(rows, [reference, placed]).rows
    assert [(line[0], line[6]) for line in lines] == [("r", "flow, a"), ("s", "network, b")]
    assert [line[5] for line in lines] == ["4.60 ± 0.10"] * 2
    assert "flow, a" in benchmark_script.likelihood_table(rows).markdown()
