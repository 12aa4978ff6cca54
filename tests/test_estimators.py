"""Estimators against quadrature and analytic answers, on weighted samples whose law is known."""

import math
from dataclasses import replace

import matplotlib
import mdtraj
import numpy as np
import pytest

from boltzgen import free_energy as fe
from boltzgen.ensemble import Ensemble
from boltzgen.errors import EstimateError
from boltzgen.uncertainty import Sampling, jackknife

matplotlib.use("agg")
KT = 2.494


def gaussian(n, rng, centre=0.3, spread=0.8, log_z=1.5):
    """Samples x of N(0, 1), weighted for exp(log_z) N(centre, spread^2), in the first coordinate of one atom."""
    x = rng.standard_normal(n)
    log_p = -0.5 * ((x - centre) / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi)) + log_z
    log_q = -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
    positions = np.zeros((n, 1, 3))
    positions[:, 0, 0] = x
    return Ensemble(positions, log_p - log_q, KT, energies=-KT * log_p, log_q=log_q)


def first(positions):
    return positions[:, 0, 0]


def within(estimate, truth):
    """Twice the 95 % half-width: a right estimator fails once in ten thousand."""
    return abs(estimate.value - truth) < 2 * estimate.half_width


@pytest.fixture(scope="module")
def ensemble():
    return gaussian(40_000, np.random.default_rng(0))


def test_the_unit_of_z_is_that_of_the_coordinates_or_none(ensemble):
    assert fe.log_z(ensemble).unit == fe.log_z(ensemble.log_weights).unit == ""
    assert "nm" not in str(fe.log_z(ensemble))
    known = replace(ensemble, dimension=3).log_z
    assert known.unit == "nm^3"
    assert "(Z in nm^3)" in str(known)


def test_log_z_is_that_of_the_unbiased_weights(ensemble):
    """Each weight times a G of its own, as a penalty makes it, and six coordinates more: log Z does not change."""
    log_rigid = np.random.default_rng(1).normal(size=len(ensemble))
    penalised = replace(
        ensemble, log_weights=ensemble.log_weights + log_rigid, log_rigid_integral=log_rigid, dimension=9
    )
    assert penalised.log_z.value == pytest.approx(ensemble.log_z.value, abs=1e-12)
    assert penalised.log_z.unit == penalised.unbiased().log_z.unit == "nm^3"


def test_log_z_and_absolute_free_energy(ensemble):
    result = ensemble.log_z
    assert within(result, 1.5)
    assert result.half_width < 0.02
    assert result.free_energy_kJ_per_mol == pytest.approx(-KT * result.value)
    assert within(fe.log_z(ensemble, interval="bootstrap"), 1.5)


def test_expectations_of_functions(ensemble):
    mean = fe.expectation(ensemble, first, unit="nm")
    assert within(mean, 0.3)
    assert mean.unit == "nm"
    inside = fe.expectation(ensemble, lambda x: x[:, 0, 0] > 1.1)
    assert within(inside, 0.5 * math.erfc(1 / math.sqrt(2)))  # one standard deviation above the mean
    with pytest.raises(EstimateError, match="one number for each"):
        fe.expectation(ensemble, lambda x: x[:, 0])
    with pytest.raises(EstimateError, match="not finite"):
        fe.expectation(ensemble, lambda x: np.full(len(x), np.nan))


def test_circular_mean_knows_no_branch_cut():
    """Angles about 180 degrees: the arithmetic mean of their values would be about zero."""
    rng = np.random.default_rng(1)
    angle = (180 + 20 * rng.standard_normal(5000) + 180) % 360 - 180
    ensemble = Ensemble(angle[:, None, None] * np.ones((1, 1, 3)), np.zeros(5000), KT)
    result = fe.expectation(ensemble, first, periodic=True, unit="degrees")
    assert abs((result.value - 180 + 180) % 360 - 180) < 2 * result.half_width < 2
    # Resultant length of a wrapped normal: exp(-sigma^2 / 2).
    assert result.diagnostics["resultant length"] == pytest.approx(math.exp(-0.5 * math.radians(20) ** 2), abs=0.01)


def test_jackknife_of_a_ratio_is_the_delta_method(ensemble):
    """Influence of sample i on a self-normalised mean: w_i (f_i - mean)."""
    weights, values = ensemble.weights, first(ensemble.positions)
    features = weights[:, None] * np.stack([np.ones(len(weights)), values], axis=1)
    mean, contributions = jackknife(features, lambda sums: sums[:, 1] / sums[:, 0], Sampling())
    np.testing.assert_allclose(contributions, weights * (values - mean), rtol=2e-3, atol=1e-9)


def test_profile_is_minus_log_density(ensemble):
    result = fe.profile(ensemble, first, bins=40, range=(-2.0, 2.5))
    x = result.centres[0]
    truth = 0.5 * ((x - 0.3) / 0.8) ** 2 + math.log(0.8 * math.sqrt(2 * math.pi))
    known = np.isfinite(result.half_width) & (result.half_width < 0.3)
    assert known.sum() > 25
    error = result.free_energy + result.offset - truth
    assert (np.abs(error[known]) < 2.5 * result.half_width[known] + 0.01).all()  # 0.01: bins of finite width
    assert np.nanmin(result.free_energy) == 0
    assert result.at(0.3).value == pytest.approx(0, abs=0.1)
    with pytest.raises(EstimateError, match="beyond the profile"):
        result.at(3.0)


def test_profile_in_two_dimensions_sums_to_that_in_one():
    rng = np.random.default_rng(2)
    positions = rng.standard_normal((20_000, 1, 3))
    ensemble = Ensemble(positions, -0.3 * positions[:, 0, 0], KT)
    options = {"bins": 12, "range": (-3.0, 3.0)}
    line = fe.profile(ensemble, first, **options)
    with pytest.raises(EstimateError, match="it needs two at least"):
        fe.profile(ensemble, first, bins=1)
    plane = fe.profile(ensemble, first, lambda x: x[:, 0, 1], bins=12, range=[(-3.0, 3.0), (-9.0, 9.0)])
    np.testing.assert_allclose(plane.probability.sum(axis=1), line.probability, atol=1e-12)
    assert plane.n_samples.sum() == line.n_samples.sum()
    axes = plane.plot()
    assert axes.collections
    assert line.plot(reference=line).get_ylabel() == "free energy / kT"


def test_shares_of_any_labels_and_of_groups_that_are_single_samples(ensemble):
    """Groups of one sample each give what no groups give; rare cells have no finite interval."""
    labels = np.digitize(first(ensemble.positions), [-0.5, 0.5, 1.5])[:3000]
    part = ensemble[:3000]
    plain = fe.populations(part, labels)
    grouped = fe.populations(replace(part, groups=np.arange(3000)), labels)
    assert set(plain) == {"0", "1", "2", "3"}
    assert sum(one.value for one in plain.values()) == pytest.approx(1)
    for name, one in plain.items():
        assert grouped[name].value == pytest.approx(one.value)
        assert grouped[name].half_width == pytest.approx(one.half_width, rel=0.01)
        assert 0 <= one.low <= one.value <= one.high <= 1
    lonely = np.where(np.arange(3000) == 7, "rare", "common")
    assert (fe.populations(part, lonely)["rare"].low, fe.populations(part, lonely)["rare"].high) == (0, 1)


def test_temperature_of_a_harmonic_well():
    """U = k x^2 / 2: at any temperature <U> = kT/2, log Z = log sqrt(2 pi kT / k), entropy from both."""
    rng = np.random.default_rng(3)
    stiffness, kT = 5.0, KT
    spread = 1.2 * math.sqrt(kT / stiffness)
    x = spread * rng.standard_normal(40_000)
    energies = 0.5 * stiffness * x**2
    log_q = -0.5 * (x / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi))
    ensemble = Ensemble(np.zeros((40_000, 1, 3)), -energies / kT - log_q, kT, energies=energies, log_q=log_q)
    warm = fe.at_temperature(ensemble, 330.0)
    assert warm.temperature_before == pytest.approx(KT / 8.31446261815324e-3)
    assert warm.ensemble.kT == pytest.approx(330 * 8.31446261815324e-3)
    assert warm.ess_fraction != warm.ess_fraction_before
    for one in (ensemble, warm.ensemble):
        log_z = 0.5 * math.log(2 * math.pi * one.kT / stiffness)
        assert within(one.log_z, log_z)
        parts = fe.decompose(one)
        assert within(parts.free_energy, -log_z)
        assert within(parts.energy, 0.5)
        assert within(parts.minus_temperature_entropy, -log_z - 0.5)
    region = fe.decompose(ensemble, np.abs(x) < 0.5)
    total = region.energy.value + region.minus_temperature_entropy.value
    assert total == pytest.approx(region.free_energy.value, abs=1e-12)
    with pytest.raises(EstimateError, match="energies"):
        fe.at_temperature(replace(ensemble, energies=None), 310)


def test_expressions_of_a_molecule(generator):
    ensemble = generator.sample(300)
    masses = np.array([atom.element.mass for atom in ensemble.trajectory.topology.atoms])
    share = (masses / masses.sum())[:, None]
    x = ensemble.positions.astype(float)
    gyration = np.sqrt((share * (x - (share * x).sum(1, keepdims=True)) ** 2).sum((1, 2)))
    assert fe.expectation(ensemble, "rg").value == pytest.approx(ensemble.weights @ gyration, abs=1e-5)
    ends = fe.expectation(ensemble, lambda t: mdtraj.compute_distances(t, [[0, 21]]), on="trajectory", unit="nm")
    assert ends.value == pytest.approx(fe.expectation(ensemble, "distance(0, 21)").value, abs=1e-5)
    clusters = fe.cluster_torsions(ensemble, ["phi", "psi"], 3, seed=1)
    labels = clusters(ensemble)
    assert set(labels) == {0, 1, 2}
    assert sum(one.value for one in fe.populations(ensemble, clusters).values()) == pytest.approx(1)
    right, left = ("phi > 0", "phi <= 0")
    between = fe.basin_difference(ensemble, left, right)
    against_all = ensemble.free_energy({"right": right})["right"]
    assert between.value == pytest.approx(against_all.value)
    assert between.half_width == pytest.approx(against_all.half_width, rel=0.05)  # one sample holds most of the weight
    named = fe.populations(ensemble, {"C7ax": "0 < phi < 150"})["C7ax"]
    assert named.value == pytest.approx(ensemble.free_energy({"C7ax": "0 < phi < 150"})["C7ax"].probability)


def test_bootstrap_is_refused_where_samples_hang_together(ensemble):
    part = ensemble[:1000]
    groups = np.arange(1000) % 20
    for kind, remedy in (("chain", "autocorrelation"), ("particles", "repeats")):
        tied = replace(part, kind=kind, groups=groups)
        with pytest.raises(EstimateError, match=remedy):
            fe.expectation(tied, first, interval="bootstrap")
        assert math.isfinite(fe.expectation(tied, first).half_width)
    with pytest.raises(EstimateError, match="n_repeats"):
        fe.expectation(replace(part, kind="particles"), first)
    with pytest.raises(EstimateError, match="bar_log_z"):
        fe.log_z(replace(part, kind="chain"))


def test_one_chain_gets_the_error_of_its_autocorrelation():
    """An autoregressive chain x' = a x + sqrt(1 - a^2) z: its mean has variance (1 + a)/(1 - a)/n."""
    rng = np.random.default_rng(4)
    a, n, hits, widths = 0.9, 4000, 0, []
    for _ in range(100):
        noise = rng.standard_normal(n) * math.sqrt(1 - a**2)
        x = np.empty(n)
        x[0] = rng.standard_normal()
        for i in range(1, n):
            x[i] = a * x[i - 1] + noise[i]
        positions = np.zeros((n, 1, 3))
        positions[:, 0, 0] = x
        result = fe.expectation(Ensemble(positions, np.zeros(n), KT, kind="chain"), first)
        hits += result.low <= 0 <= result.high
        widths.append(result.half_width)
    assert np.mean(widths) == pytest.approx(1.96 * math.sqrt(1.9 / 0.1 / n), rel=0.1)
    assert hits >= 88  # binomial: 95 +- 2.2


def test_estimates_read_well(ensemble):
    text = str(fe.expectation(ensemble, first, unit="nm"))
    assert "95 %" in text
    assert "verdict" in text
    basin = fe.free_energy_of(ensemble, first(ensemble.positions) > 0, "right")
    assert basin.value_in("kJ/mol") == pytest.approx(basin.value * KT)
    assert basin.value_in("kcal/mol") == pytest.approx(basin.value * KT / 4.184)
    with pytest.raises(EstimateError, match="kcal/mol"):
        basin.value_in("eV")
