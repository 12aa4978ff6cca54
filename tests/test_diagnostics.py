"""Diagnostics against distributions for which the answer is known."""

import math

import numpy as np
import pytest

from boltzgen.diagnostics import (
    clipped_ess,
    coverage,
    effective_sample_fraction,
    forward_ess_fraction,
    halving_deviation,
    normalized_weights,
    pareto_k,
    pareto_limit,
    verdict,
)
from boltzgen.free_energy.acceptance_ratio import log_z_bar


def gaussian_log_weights(n, sigma, rng, log_z=0.0):
    """log p~ - log q for q = N(0, 1) and p = N(0, sigma^2), with p~ = Z p."""
    x = rng.standard_normal(n)
    return x, log_z - 0.5 * x**2 / sigma**2 - math.log(sigma) + 0.5 * x**2


def test_ess_of_a_narrower_target_is_the_analytic_one():
    _, log_weights = gaussian_log_weights(400_000, 0.8, np.random.default_rng(0))
    # E[w^2] = 1 / (s sqrt(2 - s^2)) for s < sqrt(2)
    assert effective_sample_fraction(log_weights) == pytest.approx(0.8 * math.sqrt(2 - 0.64), rel=0.01)


def test_weights_of_zero_count_and_all_zero_is_an_error():
    weights = normalized_weights(np.array([0.0, -np.inf, 0.0]))
    np.testing.assert_allclose(weights, [0.5, 0, 0.5])
    assert effective_sample_fraction(np.array([0.0, -np.inf, 0.0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="infinite energy"):
        normalized_weights(np.array([-np.inf, -np.inf]))


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_finds_the_shape_of_a_pareto_tail(shape):
    rng = np.random.default_rng(1)
    values = [pareto_k(shape * rng.standard_exponential(50_000)) for _ in range(10)]  # w = u^-k is Pareto
    assert np.mean(values) == pytest.approx(shape, abs=0.06)


def test_pareto_k_of_weights_that_have_no_tail_to_fit():
    assert pareto_k(np.zeros(1000)) == -math.inf
    assert pareto_k(np.r_[np.zeros(900), np.ones(100)]) == -math.inf
    assert pareto_k(np.r_[np.zeros(906), np.ones(94)]) == -math.inf  # the tail, and nothing else
    assert pareto_k(np.r_[np.zeros(999), 5.0]) == math.inf  # one weight above the others
    assert "too much alike" in verdict(np.r_[np.zeros(999), 2.0]).reason
    assert pareto_k(np.r_[np.zeros(999), np.inf]) == math.inf
    assert pareto_k(np.r_[np.arange(999), np.nan]) == math.inf
    assert pareto_k(np.zeros(24)) == math.inf
    assert pareto_k(np.full(100, -np.inf)) == math.inf


def test_weights_of_zero_are_no_part_of_the_tail():
    values = np.random.default_rng(2).normal(size=2000)
    assert pareto_k(np.r_[np.full(20_000, -np.inf), values]) == pareto_k(values)


def test_clipping_shows_both_values():
    """Of four weights 1, 1, 1, 9 the largest is lowered to 1: ESS 144/84/4 before, 1 after."""
    both = clipped_ess(np.log([1.0, 1.0, 1.0, 9.0]), 0.01)
    assert both.ess_fraction == pytest.approx(144 / 84 / 4)
    assert both.clipped_ess_fraction == pytest.approx(1)
    assert "clipped" in str(both)
    assert "%" in str(both)


def test_few_reference_samples_accuse_where_chance_cannot_explain_them():
    """Twelve samples without any coverage are a chance of 0.7^12 = 1.4 % at the limit, sixteen of 0.3 %."""
    missed = lambda n: coverage(np.full(n, -9.0), np.ones(n, bool), np.ones(n)).is_missed
    assert not missed(12)
    assert missed(16)


def test_halves_that_tell_different_things():
    """Weights of mean e in one half and one in the other, each with a standard error of its mean of about 0.03."""
    rng = np.random.default_rng(6)
    noise = rng.standard_normal(2000) - 0.5
    assert halving_deviation(noise) < 4
    shifted = halving_deviation(noise + (np.arange(2000) < 1000))
    assert shifted == pytest.approx(1 / math.hypot(*2 * [math.sqrt((math.e - 1) / 1000)]), rel=0.2)
    assert halving_deviation(np.zeros(100)) == 0
    assert "halves" in verdict(noise + 2 * (np.arange(2000) < 1000)).reason


def test_limits_of_pareto_k_fall_with_the_number_of_samples():
    assert pareto_limit(100) == pytest.approx(0.5)
    assert pareto_limit(10**6) == 0.7


def test_chains_and_particles_are_judged_by_their_own_kind():
    rng = np.random.default_rng(5)
    groups, zeros = np.arange(2000) % 4, np.zeros(2000)
    mixed = verdict(zeros, kind="chain", groups=groups, energies=rng.standard_normal(2000))
    assert mixed.verdict == "consistent; missing modes not checked"
    apart = verdict(zeros, kind="chain", groups=groups, energies=rng.standard_normal(2000) + 3 * (groups == 0))
    assert "not mixed" in apart.reason
    slow = np.cumsum(rng.standard_normal(2000))
    assert verdict(zeros, kind="chain", energies=slow).verdict == "do not use"
    assert verdict(zeros, kind="particles", groups=groups).verdict.startswith("consistent")
    slightly = 0.01 * rng.standard_normal(2000)
    assert verdict(slightly, kind="particles", groups=groups).verdict.startswith("consistent")
    assert "too few independent repeats" in verdict(slightly, kind="particles", groups=groups % 3).reason
    assert "repeats" in verdict(zeros, kind="particles").reason
    assert "outweighs" in verdict(np.where(groups == 0, 9.0, 0.0), kind="particles", groups=groups).reason


def test_bar_log_z_from_biased_generator():
    rng = np.random.default_rng(2)
    sigma, log_z = 0.7, 5.0
    _, generated = gaussian_log_weights(20_000, sigma, rng, log_z)
    x = sigma * rng.standard_normal(5_000)
    reference = log_z - 0.5 * x**2 / sigma**2 - math.log(sigma) + 0.5 * x**2
    ones = np.ones(5_000)
    assert log_z_bar(generated, reference, ones) == pytest.approx(log_z, abs=0.02)
    assert forward_ess_fraction(reference, ones, log_z) == pytest.approx(sigma * math.sqrt(2 - sigma**2), abs=0.02)


def test_coverage_shows_a_half_missed_basin_that_the_mean_ratio_hides():
    """q is twice p on half of the basin and zero on the other half: Q(A)/P(A) = 1, coverage 1/2."""
    log_ratio = np.where(np.arange(1000) < 500, math.log(2), -np.inf)
    result = coverage(log_ratio, np.ones(1000, bool), np.ones(1000))
    assert result.population_ratio == pytest.approx(1)
    assert result.coverage == pytest.approx(0.5)
    assert math.isnan(coverage(log_ratio, np.zeros(1000, bool), np.ones(1000)).coverage)


def test_verdicts():
    rng = np.random.default_rng(3)
    _, good = gaussian_log_weights(20_000, 0.9, rng)
    assert verdict(good).verdict == "consistent; missing modes not checked"
    assert verdict(good, n_defects=1).verdict == "do not use"
    heavy = 1.2 * rng.standard_exponential(20_000)
    assert verdict(heavy).verdict == "do not use"
    covered = coverage(np.zeros(100), np.ones(100, bool), np.ones(100))
    missed = coverage(np.full(100, -9.0), np.ones(100, bool), np.ones(100))
    assert verdict(good, coverages={"A": covered}).verdict == "usable"
    assert verdict(good, coverages={"A": covered, "B": missed}).verdict == "do not use"
    rare = coverage(np.full(4, -9.0), np.ones(4, bool), np.ones(4))  # four samples can neither accuse nor acquit
    assert verdict(good, coverages={"A": covered, "B": rare}).verdict == "consistent; missing modes not checked"
    assert verdict(np.zeros(1000)).verdict == "consistent; missing modes not checked"  # equal weights
    assert verdict(good, coverages={"A": covered}, disagreement="ΔF differs").verdict == "do not use"
