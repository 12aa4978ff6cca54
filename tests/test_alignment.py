"""The alignment penalty against scipy's alignment, autograd, and brute-force averages over rotations."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special
from scipy.spatial.transform import Rotation

from boltzgen.energy.alignment import AlignmentPenalty
from boltzgen.energy.rotation_average import log_rotation_average
from boltzgen.errors import PotentialError

N_ATOMS = 7
CAP = math.pi / 3


def structure(seed=0, n_atoms=N_ATOMS, size=0.3):
    return size * torch.randn(n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(positions, axis, angle, shift=(0.0, 0.0, 0.0)):
    """Positions (M, 3) turned about their centroid and shifted."""
    axis = np.asarray(axis, dtype=float)
    matrix = torch.as_tensor(Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix())
    centroid = positions.mean(0)
    return (positions - centroid) @ matrix.T + centroid + torch.tensor(shift, dtype=positions.dtype)


def distorted(angle, axis=(1.0, 2.0, -0.5), seed=3):
    """The reference, distorted by about 0.02 nm and turned."""
    return turned(structure() + 0.02 * structure(seed) / 0.3, axis, angle, shift=(0.1, -0.05, 0.02))


def by_scipy(penalty, positions):
    """The definition, written out with scipy's alignment of one conformation."""
    x, y = positions.numpy(), penalty.reference.numpy()
    rotation, _ = Rotation.align_vectors(y - y.mean(0), x - x.mean(0))
    vector = rotation.as_rotvec()
    vector = vector * min(1.0, penalty.max_angle / max(rotation.magnitude(), 1e-300))
    image = Rotation.from_rotvec(vector).apply(x - x.mean(0)) + y.mean(0)
    return penalty.strength * ((x - image) ** 2).sum(), image, rotation.magnitude()


@pytest.mark.parametrize("max_angle", [CAP, math.pi, 0.2])
def test_penalty_is_the_squared_distance_to_the_image(max_angle):
    penalty = AlignmentPenalty(structure(), strength=3.0, max_angle=max_angle)
    x = torch.stack([structure(seed) for seed in range(1, 9)] + [distorted(a) for a in (0.1, 1.0, 1.1, 2.0, 3.1)])
    values, images, angles = zip(*(by_scipy(penalty, one) for one in x), strict=True)
    np.testing.assert_allclose(penalty(x), values, rtol=1e-9)
    np.testing.assert_allclose(penalty.image(x), images, atol=1e-9)
    np.testing.assert_allclose(penalty.angle(x), angles, atol=1e-7)


def test_reference_moved_by_less_than_the_cap_pays_its_displacement():
    reference = structure()
    penalty = AlignmentPenalty(reference, strength=10.0)
    for angle in (0.0, 1e-9, 1e-4, 0.5, CAP - 1e-6):
        moved = turned(reference, (0.3, -1.0, 0.4), angle, shift=(0.05, 0.0, -0.1))
        expected = 10.0 * float((moved - reference).square().sum())
        assert float(penalty(moved[None])) == pytest.approx(expected, rel=1e-9)


def test_beyond_the_cap_the_distance_no_longer_grows():
    reference, axis = structure(), (0.3, -1.0, 0.4)
    penalty = AlignmentPenalty(reference)
    at_cap, *beyond = (float(penalty(turned(reference, axis, angle)[None])) for angle in (CAP, 1.5, 2.5, 3.1))
    np.testing.assert_allclose(beyond, at_cap, rtol=1e-9)
    uncapped = AlignmentPenalty(reference, max_angle=math.pi)
    assert float(uncapped(turned(reference, axis, 2.5)[None])) > 2 * at_cap


def test_translation_costs_strength_times_atoms_times_its_square():
    penalty = AlignmentPenalty(structure(), strength=2.0)
    moved = structure() + torch.tensor([0.1, 0.2, -0.2], dtype=torch.float64)
    assert float(penalty(moved[None])) == pytest.approx(2.0 * N_ATOMS * 0.09, rel=1e-9)
    grid = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    one_axis = torch.trapezoid(torch.exp(-2.0 * N_ATOMS * grid**2), grid)
    assert penalty.log_translation_integral == pytest.approx(3 * math.log(float(one_axis)), abs=1e-10)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, CAP - 0.01, CAP + 0.01, 2.0, math.pi - 1e-3, math.pi])
def test_gradient_by_finite_differences(angle):
    penalty = AlignmentPenalty(structure())
    x = torch.stack([distorted(angle, axis) for axis in ((1.0, 2.0, -0.5), (0.0, 0.0, 1.0))]).requires_grad_(True)
    assert torch.autograd.gradcheck(penalty, x)


def test_gradient_at_the_reference_is_zero_and_in_planar_structures_right():
    reference = structure()
    reference[:, 2] = 0.0
    penalty = AlignmentPenalty(reference)
    assert float(penalty.value_and_gradient(reference[None])[1].abs().max()) < 1e-12
    planar = turned(reference * torch.tensor([1.1, 0.9, 1.0]), (1.0, 1.0, 1.0), 0.4)
    assert torch.autograd.gradcheck(penalty, planar[None].clone().requires_grad_(True))


def test_penalty_ignores_the_order_of_a_batch_and_chosen_atoms_only_are_aligned():
    atoms = [8, 1, 3, 0, 5, 6, 2]
    whole = AlignmentPenalty(structure())
    part = AlignmentPenalty(structure(), atoms=atoms)
    x = 0.3 * torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value, gradient = part.value_and_gradient(x)
    chosen_value, chosen = whole.value_and_gradient(x[:, atoms])
    torch.testing.assert_close(value, chosen_value)
    torch.testing.assert_close(gradient[:, atoms], chosen)
    assert bool((gradient[:, [4, 7]] == 0).all())
    torch.testing.assert_close(part(x.flip(0)), value.flip(0))
    torch.testing.assert_close(part.log_rotation_integral(x), whole.log_rotation_integral(x[:, atoms]))
    assert torch.autograd.gradcheck(part, x[:2].clone().requires_grad_(True))


def test_collinear_and_collapsed_structures_stay_finite():
    penalty = AlignmentPenalty(structure())
    line = torch.linspace(-1, 1, N_ATOMS, dtype=torch.float64)[:, None] * torch.tensor([0.3, 0.1, -0.2])
    point = torch.zeros(N_ATOMS, 3, dtype=torch.float64)
    mirror = structure() * torch.tensor([-1.0, 1.0, 1.0])
    x = torch.stack([line, point, mirror, 1e-160 * structure(), 1e12 * structure(), 1e150 * structure()])
    value, gradient = penalty.value_and_gradient(x)
    assert bool(torch.isfinite(value[:5]).all())
    assert bool(torch.isfinite(gradient).all())
    # Any rotation aligns a point: only the translation counts.
    assert float(value[1]) == pytest.approx(10 * N_ATOMS * float(structure().mean(0).square().sum()))
    assert float(penalty.log_rotation_integral(x)[1]) == pytest.approx(0.0, abs=1e-12)


def test_bad_samples_leave_their_neighbours_alone():
    penalty = AlignmentPenalty(structure())
    x = torch.stack([distorted(0.3), distorted(0.4), distorted(0.5), distorted(1.5)])
    before, before_gradient = penalty.value_and_gradient(x)
    log_g = penalty.log_rotation_integral(x)
    x[1, 2, 0], x[2, 0, 1] = math.nan, math.inf
    x.requires_grad_(True)
    value = penalty(x)
    value.sum().backward()
    assert torch.isnan(value).tolist() == [False, True, True, False]
    torch.testing.assert_close(value[[0, 3]], before[[0, 3]], rtol=0, atol=0)
    torch.testing.assert_close(x.grad[[0, 3]], before_gradient[[0, 3]], rtol=0, atol=0)
    assert bool((x.grad[1:3] == 0).all())
    assert torch.isnan(penalty.log_rotation_integral(x)).tolist() == [False, True, True, False]
    torch.testing.assert_close(penalty.log_rotation_integral(x)[[0, 3]], log_g[[0, 3]], rtol=0, atol=0)


def test_single_precision_and_device(request):
    device = request.config.getoption("--device")
    penalty = AlignmentPenalty(structure())
    x = torch.stack([distorted(a) for a in (0.2, 0.9, 2.0)])
    single = x.float().to(device).requires_grad_(True)
    value = penalty(single)
    value.sum().backward()
    assert value.dtype == single.grad.dtype == torch.float32
    assert value.device == single.device
    # The rounding of the input, 3e-8 nm, times gradients of about 10 per nm; values of about 1.
    exact, gradient = penalty.value_and_gradient(x)
    torch.testing.assert_close(value.detach().cpu().double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.grad.cpu().double(), gradient, rtol=1e-4, atol=1e-5)


def test_a_second_derivative_is_refused():
    x = distorted(0.5)[None].requires_grad_(True)
    (gradient,) = torch.autograd.grad(AlignmentPenalty(structure())(x).sum(), x, create_graph=True)
    with pytest.raises(PotentialError, match="second derivatives"):
        gradient.sum().backward()


# ---------------------------------------------------------------------------------------- integral over rotations


def test_g_is_the_mean_over_random_rotations():
    reference, conformation = structure(), distorted(0.0)
    centred = conformation - conformation.mean(0)
    rotations = torch.as_tensor(Rotation.random(100_000, random_state=np.random.default_rng(5)).as_matrix())
    x = torch.einsum("nab,mb->nma", rotations, centred) + reference.mean(0)
    for strength, max_angle in ((1.0, CAP), (10.0, CAP), (1.0, math.pi), (5.0, 0.3)):
        penalty = AlignmentPenalty(reference, strength, max_angle)
        weight = torch.exp(-penalty(x))
        error = float(weight.std()) / math.sqrt(len(x))
        g = float(penalty.log_rotation_integral(conformation[None]).exp())
        assert abs(float(weight.mean()) - g) < 4 * error
        assert error < 0.04 * g


def test_g_of_a_strong_penalty_by_random_rotations_below_the_cap():
    """Angles drawn uniformly below the cap and weighted by the uniform measure: no sample is wasted on large ones."""
    reference, conformation = structure(), distorted(0.0)
    penalty = AlignmentPenalty(reference, strength=300.0)
    aligned = AlignmentPenalty(reference, max_angle=math.pi).image(conformation[None])[0] - reference.mean(0)
    rng = np.random.default_rng(6)
    axis = rng.normal(size=(100_000, 3))
    theta = CAP * rng.random(len(axis))
    vectors = axis / np.linalg.norm(axis, axis=1)[:, None] * theta[:, None]
    rotations = torch.as_tensor(Rotation.from_rotvec(vectors).as_matrix())
    x = torch.einsum("nab,mb->nma", rotations, aligned) + reference.mean(0)
    measure = torch.as_tensor((1 - np.cos(theta)) / math.pi * CAP)
    weight = torch.exp(-penalty(x)) * measure
    error = float(weight.std()) / math.sqrt(len(x))
    g = float(penalty.log_rotation_integral(conformation[None]).exp())
    assert abs(float(weight.mean()) - g) < 4 * error
    assert error < 0.02 * g


@pytest.mark.parametrize(
    "moments", [(0.5, 1.0, 1.2), (0.0, 4.0, 4.0), (3.0, 3.0, 3.0), (0.1, 20.0, 20.1), (5.0, 5.0, 10.0), (0.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("max_angle", [CAP, math.pi, 0.1])
def test_g_agrees_with_adaptive_quadrature_over_angle_and_axis(moments, max_angle):
    """An independent reduction: angle by adaptive quadrature, axis by a product rule over polar angle and azimuth."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    azimuth = 2 * np.pi * np.arange(160) / 160
    z, phi = np.meshgrid(nodes, azimuth, indexing="ij")
    axes = np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z])
    moment = np.tensordot(moments, axes**2, axes=1)

    def density(theta):
        k = 4 * math.sin(min(theta, max_angle) / 2) ** 2
        return (1 - math.cos(theta)) / math.pi * float(weights @ np.exp(-k * moment).mean(1)) / 2

    g = sum(integrate.quad(density, *ends, epsrel=1e-11)[0] for ends in ((0, max_angle), (max_angle, math.pi)))
    found = log_rotation_average(torch.tensor([moments], dtype=torch.float64), max_angle)
    assert float(found) == pytest.approx(math.log(g), abs=1e-9)


def test_g_of_equal_moments_without_a_cap_is_a_bessel_function():
    # <exp(-2 m (1 - cos theta))> over rotations is exp(-2m) (I_0(2m) - I_1(2m)), for any m.
    for m in (1e-3, 1.0, 30.0, 3000.0):
        exact = special.ive(0, 2 * m) - special.ive(1, 2 * m)
        found = log_rotation_average(torch.full((1, 3), m, dtype=torch.float64), math.pi)
        # The difference of the two Bessel functions loses four digits at the largest m.
        assert float(found) == pytest.approx(math.log(exact), abs=1e-9)


def test_g_is_the_same_for_every_orientation_and_place():
    penalty = AlignmentPenalty(structure())
    base = distorted(0.0)
    moved = [turned(base, axis, angle, shift) for axis, angle, shift in MOVES]
    log_g = penalty.log_rotation_integral(torch.stack([base, *moved]))
    torch.testing.assert_close(log_g, log_g[:1].expand_as(log_g), rtol=0, atol=1e-12)
    other = penalty.log_rotation_integral(1.5 * base[None])
    assert float(other) < float(log_g[0]) - 0.1  # a larger conformation pays more, so g tells conformations apart


MOVES = [((1, 0, 0), 0.5, (0, 0, 0)), ((1, 2, 3), 3.0, (5, -2, 1)), ((0, 1, -1), 1.8, (0, 0, 0.3))]


def test_dividing_by_g_restores_populations():
    """Two rigid conformers in random orientations: weights exp(-penalty)/g make them equal, exp(-penalty) does not."""
    reference = structure()
    conformers = [reference, 1.4 * reference]
    penalty = AlignmentPenalty(reference)
    rotations = torch.as_tensor(Rotation.random(100_000, random_state=np.random.default_rng(8)).as_matrix())
    means, errors = [], []
    raw = []
    for conformer in conformers:
        x = torch.einsum("nab,mb->nma", rotations, conformer - conformer.mean(0)) + reference.mean(0)
        weight = torch.exp(-penalty(x))
        raw.append(float(weight.mean()))
        unbiased = weight / penalty.log_rotation_integral(conformer[None]).exp()
        means.append(float(unbiased.mean()))
        errors.append(float(unbiased.std()) / math.sqrt(len(x)))
    assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
    assert raw[0] > 1.5 * raw[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"reference": torch.zeros(5, 3)},
        {"reference": torch.arange(5.0)[:, None].expand(5, 3)},
        {"reference": torch.randn(2, 3)},
        {"reference": torch.randn(5, 2)},
        {"strength": 0.0},
        {"strength": math.inf},
        {"max_angle": 0.0},
        {"max_angle": 3.2},
        {"atoms": [0, 1]},
        {"atoms": [0, 1, 2, 3, 4, 5, 5]},
        {"atoms": [-1, 1, 2, 3, 4, 5, 6]},
    ],
)
def test_impossible_penalties_are_refused(arguments):
    with pytest.raises(PotentialError):
        AlignmentPenalty(**{"reference": structure(), **arguments})


def test_wrong_positions_are_refused():
    penalty = AlignmentPenalty(structure())
    for wrong in (torch.zeros(2, 6, 3), torch.zeros(2, 21), torch.zeros(2, 7, 3, dtype=torch.int64)):
        with pytest.raises(PotentialError):
            penalty(wrong)
    with pytest.raises(PotentialError, match="at least 9"):
        AlignmentPenalty(structure(), atoms=[8, 1, 3, 0, 5, 6, 2])(torch.zeros(2, 8, 3))
