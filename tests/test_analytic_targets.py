"""Analytic targets: log Z, samples, forces and populations against independent quadrature and sampling."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from boltzgen.energy.analytic import MIDGLEY_2023, DoubleWell, GaussianMixture, ManyWell
from boltzgen.energy.base import Potential, Status
from boltzgen.errors import PotentialError
from boltzgen.generator import BoltzmannGenerator

N_SAMPLES = 50_000


def small_mixture(kT=1.0):
    means, scales = [[-1.0, 0.5, 0.0], [2.0, -0.5, 1.0]], [[0.5, 1.0, 2.0], [1.5, 0.7, 0.3]]
    return GaussianMixture(means, scales, weights=[3.0, 1.0], kT=kT)


TARGETS = {
    "double well": DoubleWell,
    "many-well": ManyWell,
    "forty modes": GaussianMixture.forty_modes,
    "mixture": small_mixture,
}


@pytest.fixture(params=TARGETS)
def target(request):
    return TARGETS[request.param](kT=2.5)


def exact(target, n=N_SAMPLES, seed=1):
    return target.sample(n, torch.Generator().manual_seed(seed))


def quad(function, low, high):
    value, _ = integrate.quad(function, low, high, epsabs=0, epsrel=1e-13, limit=400)
    return value


@pytest.mark.parametrize("a", [1.0, -0.5, 0.0])
def test_log_z_of_the_double_well_is_that_of_adaptive_quadrature(a):
    target = DoubleWell(coefficients=(a, -6.0, 1.0))
    density = lambda x: math.exp(-(a * x + x**4 - 6 * x**2) - 9)
    low, middle, high = -5.0, target.barrier, 5.0
    left, right = quad(density, low, middle), quad(density, middle, high)
    normal = 11 * math.log(10 * math.sqrt(2 * math.pi))
    assert target.log_z == pytest.approx(math.log(left + right) + 9 + normal, abs=1e-11)
    assert target.minor_population == pytest.approx(min(left, right) / (left + right), abs=1e-12)
    # The barrier is where the density is lowest between the wells.
    assert density(middle) <= min(density(middle - 1e-3), density(middle + 1e-3))


def test_log_z_of_the_many_well_is_the_published_one():
    # Normaliser of exp(-x^4 + 6 x^2 + x/2), given with ten digits in the code of Midgley et al. (2023).
    published = 16 * (math.log(11784.50927) + 0.5 * math.log(2 * math.pi))
    target = ManyWell()
    assert (target.dimension, target.n_modes) == (32, 65536)
    assert target.log_z == pytest.approx(published, abs=16 * 1e-9)


def test_mixture_is_a_normalised_density():
    target = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [[0.3, 0.5], [0.6, 0.2]], weights=[1.0, 2.0], kT=3.0)
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(x, x).unsqueeze(1)
    # Trapezoid rule of an analytic density that vanishes at the ends: exact to rounding at this spacing.
    assert float(torch.exp(-target(grid) / target.kT).sum() * 0.01**2) == pytest.approx(1.0, abs=1e-12)
    assert target.log_z == 0.0


def test_mixture_agrees_with_scipy():
    target = small_mixture(kT=2.0)
    x = exact(target, 200)
    density = sum(
        share * stats.multivariate_normal(mean, np.diag(np.square(scale))).pdf(x[:, 0].numpy())
        for share, mean, scale in zip([0.75, 0.25], target.means.numpy(), target.scales.numpy(), strict=True)
    )
    np.testing.assert_allclose(target(x).numpy(), -2.0 * np.log(density), rtol=1e-12)


def test_forty_modes_are_spread_over_the_square_and_reproducible():
    target = GaussianMixture.forty_modes()
    assert target.means.shape == (40, 2)
    assert float(target.means.abs().max()) <= 40
    assert float(target.scales[0, 0]) == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(1.0)).double()))
    with torch.random.fork_rng():  # how the published means are drawn
        torch.manual_seed(0)
        published = (torch.rand((40, 2)) - 0.5) * 2 * 40
    torch.testing.assert_close(target.means.float(), published, rtol=0, atol=0)
    assert not torch.equal(GaussianMixture.forty_modes(seed=1).means, target.means)
    # Every mode is drawn with its weight: the chi-square of 40 counts has 39 degrees of freedom.
    counts = torch.bincount(target.component(exact(target)), minlength=40).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4


def log_normal(x, centre, width):
    """Log-density of independent normals, (B,)."""
    return -0.5 * (((x - centre) / width) ** 2 + math.log(2 * math.pi)).sum(1) - width.log().sum()


@pytest.mark.parametrize("build", [GaussianMixture.forty_modes, small_mixture])
def test_importance_weights_of_a_broad_normal_give_log_z(build):
    target = build(kT=2.5)
    samples = exact(target, 5000)[:, 0]
    mean, spread = samples.mean(0), 1.3 * samples.std(0)
    z = torch.randn(200_000, target.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = mean + spread * z
    ratio = torch.exp(-target(x.unsqueeze(1)) / target.kT - log_normal(x, mean, spread) - target.log_z)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize(
    ("build", "width"),
    [
        (DoubleWell, [0.2] + 11 * [8.0]),
        (lambda: ManyWell(6), 3 * [0.2, 0.8]),
        (GaussianMixture.forty_modes, [1.0, 1.0]),
        (small_mixture, [0.4, 0.6, 0.25]),
    ],
)
def test_exact_samples_and_the_energy_agree_on_log_z(build, width):
    """``E_p[q / p~] = 1/Z`` for any density q inside p; here a normal on one mode, narrow enough to bound the ratio."""
    target = build()
    x = exact(target)[:, 0]
    others = exact(target, 1000, seed=2)
    centre = others[target(others).argmin(), 0]
    log_q = log_normal(x, centre, torch.tensor(width, dtype=torch.float64))
    ratio = torch.exp(log_q + target(x.unsqueeze(1)) / target.kT + target.log_z)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert error < 0.1


def test_samples_of_wells_have_the_moments_of_quadrature():
    for target, columns in ((DoubleWell(), [0]), (ManyWell(), list(range(0, 32, 2)))):
        a, b, c = target.well.linear, target.well.quadratic, target.well.quartic
        density = lambda x, a=a, b=b, c=c: math.exp(-(a * x + b * x**2 + c * x**4) - 9)
        norm = quad(density, -5, 0) + quad(density, 0, 5)
        x = exact(target)[:, 0]
        for power in (1, 2, 4):
            integrand = lambda t, p=power, density=density: t**p * density(t)
            moment = (quad(integrand, -5, 0) + quad(integrand, 0, 5)) / norm
            values = x[:, columns] ** power
            error = float(values.std()) / math.sqrt(values.numel())
            assert abs(float(values.mean()) - moment) < 4 * error
        minor = (x[:, columns] > target.barrier).double().mean()
        right = quad(density, target.barrier, 5) / norm
        assert abs(float(minor) - right) < 4 * math.sqrt(right * (1 - right) / (len(x) * len(columns)))
        assert min(right, 1 - right) == pytest.approx(target.minor_population, abs=1e-10)


def test_samples_of_a_well_pass_a_kolmogorov_smirnov_test():
    target = DoubleWell(dimension=1)
    grid = np.linspace(-4, 4, 8001)
    density = np.exp(-(grid + grid**4 - 6 * grid**2) - 9)
    cumulative = integrate.cumulative_simpson(density, x=grid, initial=0)
    x = exact(target, 20_000).flatten().numpy()
    assert stats.kstest(x, lambda t: np.interp(t, grid, cumulative / cumulative[-1])).pvalue > 1e-3


def test_normal_coordinates_have_their_scale():
    x = exact(DoubleWell())[:, 0, 1:]
    assert x.shape == (N_SAMPLES, 11)
    torch.testing.assert_close(x.std(0), torch.full((11,), 10.0).double(), rtol=0.015, atol=0)  # 4 standard errors
    y = exact(ManyWell())[:, 0, 1::2]
    torch.testing.assert_close(y.std(0), torch.ones(16).double(), rtol=0.015, atol=0)


def test_mixture_samples_have_its_moments():
    target = small_mixture()
    x = exact(target)[:, 0]
    mean = target.weights @ target.means
    second = target.weights @ (target.scales**2 + target.means**2)
    assert bool(((x.mean(0) - mean).abs() < 4 * x.std(0) / math.sqrt(N_SAMPLES)).all())
    assert bool((((x**2).mean(0) - second).abs() < 4 * (x**2).std(0) / math.sqrt(N_SAMPLES)).all())


def test_minor_well_is_recognised():
    for coefficients, sign in (((1.0, -6.0, 1.0), 1), (MIDGLEY_2023, -1)):
        target = DoubleWell(3, coefficients)
        x = torch.tensor([[[1.7, 0, 0]], [[-1.7, 0, 0]]], dtype=torch.float64) * sign
        assert target.in_minor_well(x).tolist() == [True, False]
        assert target(x)[0] > target(x)[1]
        share = target.in_minor_well(exact(target)).double().mean()
        error = math.sqrt(target.minor_population * (1 - target.minor_population) / N_SAMPLES)
        assert abs(float(share) - target.minor_population) < 4 * error


def test_forces_are_those_of_autograd(target):
    x = exact(target, 20).requires_grad_(True)
    energy, forces = target.energy_and_forces(x)
    reduced = target.kT * target._reduced(x.squeeze(1), False)[0]
    torch.testing.assert_close(energy, reduced.detach())
    torch.testing.assert_close(forces, -torch.autograd.grad(reduced.sum(), x)[0], rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(target, exact(target, 3).requires_grad_(True))


@pytest.mark.parametrize("name", TARGETS)
def test_kT_scales_the_energy_and_leaves_the_density(name):
    reduced, scaled = TARGETS[name](), TARGETS[name](kT=2.5)
    x = exact(reduced, 10)
    torch.testing.assert_close(scaled(x), 2.5 * reduced(x))
    torch.testing.assert_close(scaled.log_prob(x), reduced.log_prob(x))
    assert scaled.log_z == reduced.log_z


def test_bad_samples_are_told_apart(target):
    x = exact(target, 4).float()
    before = target(x)
    x[1] = 1e30
    x[2] = float("nan")
    energy = target(x)
    assert target.status(x).tolist() == [Status.OK, Status.INFINITE, Status.DEFECT, Status.OK]
    assert torch.isinf(energy[1])
    assert torch.isnan(energy[2])
    torch.testing.assert_close(energy[[0, 3]], before[[0, 3]], rtol=0, atol=0)
    assert bool((target.energy_and_forces(x)[1][1:3] == 0).all())


def test_shape_protocol_and_report(target):
    assert isinstance(target, Potential)
    assert target.sample(7).shape == (7, 1, target.dimension)
    with pytest.raises(PotentialError, match=rf"\(B, 1, {target.dimension}\)"):
        target(torch.zeros(2, target.dimension))
    (terms,) = target.terms(exact(target, 3)).values()
    torch.testing.assert_close(terms, target(exact(target, 3)))
    assert target.name in target.report()


class PerfectFlow(torch.nn.Module):
    """Draws exact samples of a target."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def sample_and_log_prob(self, n_samples, generator=None):
        x = self.target.sample(n_samples, generator)
        return x, self.target.log_prob(x)


def test_generator_of_a_target_in_any_dimension_finds_its_log_z(target):
    ensemble = BoltzmannGenerator(PerfectFlow(target), target, kT=target.kT).sample(100)
    assert ensemble.positions.shape == (100, 1, target.dimension)
    np.testing.assert_allclose(ensemble.log_weights, target.log_z, atol=1e-9)


@pytest.mark.parametrize(
    "build",
    [
        lambda: DoubleWell(coefficients=(0.0, 1.0, 1.0)),
        lambda: DoubleWell(coefficients=(50.0, -6.0, 1.0)),
        lambda: DoubleWell(coefficients=(0.0, -6.0, -1.0)),
        lambda: DoubleWell(scale=0.0),
        lambda: DoubleWell(kT=-1.0),
        lambda: ManyWell(7),
        lambda: GaussianMixture([1.0, 2.0]),
        lambda: GaussianMixture([[1.0, 2.0]], scales=[[1.0, -1.0]]),
        lambda: GaussianMixture([[1.0], [2.0]], weights=[-1.0, -1.0]),
        lambda: GaussianMixture([[1.0], [2.0]], weights=[1.0]),
    ],
)
def test_impossible_targets_are_refused(build):
    with pytest.raises(PotentialError):
        build()
