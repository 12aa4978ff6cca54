"""Flows: every density against the autograd Jacobian, round trips, chirality, seeds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzgen.energy import CompiledPotential
from boltzgen.flows.couplings import StiffFlow, TorsionFlow
from boltzgen.flows.splines import circular_spline, circular_spline_inverse, n_spline_parameters
from boltzgen.generator import BoltzmannGenerator
from boltzgen.molecule import Molecule

DATA = Path(__file__).resolve().parent / "data"
SIZES = {"n_layers": 4, "n_hidden": 16}


def roughened(module, scale=0.3, seed=0):
    """The module in float64 with random weights, far from the identity."""
    rng = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return module


def test_spline_with_zero_parameters_is_the_identity():
    angle = torch.linspace(-3.1, 3.1, 50).unsqueeze(0)
    value, log_derivative = circular_spline(angle, torch.zeros(1, n_spline_parameters(8), 50))
    torch.testing.assert_close(value, angle)
    torch.testing.assert_close(log_derivative, torch.zeros_like(angle), rtol=0, atol=1e-6)


def test_spline_is_a_smooth_bijection_of_the_circle():
    rng = torch.Generator().manual_seed(3)
    parameters = torch.randn(1, n_spline_parameters(8), 1, generator=rng, dtype=torch.float64)
    angle = (torch.arange(4000, dtype=torch.float64).unsqueeze(0) + 0.5) / 4000 * 2 * math.pi - math.pi
    angle.requires_grad_(True)
    value, log_derivative = circular_spline(angle, parameters.expand(1, -1, 4000))
    (slope,) = torch.autograd.grad(value.sum(), angle)
    torch.testing.assert_close(slope.log(), log_derivative)
    # it covers the circle once: the mean slope is one; and the slope is continuous through the seam
    assert float(slope.mean()) == pytest.approx(1, abs=1e-4)
    assert float((slope[0, 0] - slope[0, -1]).abs()) < 0.01
    back, log_inverse = circular_spline_inverse(value, parameters.expand(1, -1, 4000))
    turned = torch.remainder(back - angle + math.pi, 2 * math.pi) - math.pi
    assert turned.abs().max().item() < 1e-9
    torch.testing.assert_close(log_inverse, -log_derivative, rtol=0, atol=1e-8)


def test_slope_is_free_at_the_seam_and_equal_on_both_sides():
    """The slope there is a parameter; a spline of zuko alone would have one."""
    parameters = torch.zeros(1, n_spline_parameters(6), 2, dtype=torch.float64)
    parameters[0, 12] = 0.8
    edge = math.pi - 1e-9
    _, log_derivative = circular_spline(torch.tensor([[-edge, edge]], dtype=torch.float64), parameters)
    assert float(log_derivative[0, 0]) > 0.5
    assert float(log_derivative[0, 0]) == pytest.approx(float(log_derivative[0, 1]), abs=1e-7)


def test_the_seam_itself_lies_in_a_bin():
    """At exactly -pi the slope is that of its neighbours, not one."""
    parameters = torch.randn(
        5, n_spline_parameters(12), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    seam = torch.full((5, 1), -math.pi, dtype=torch.float64)
    slope = circular_spline(seam, parameters)[1]
    assert float(slope.abs().min()) > 0.01
    torch.testing.assert_close(slope, circular_spline(seam + 1e-9, parameters)[1], atol=1e-6, rtol=0)
    image = parameters[:, -1] - math.pi
    torch.testing.assert_close(circular_spline_inverse(image, parameters)[1], -slope, atol=1e-6, rtol=0)


def test_uneven_splines_have_a_finite_inverse_in_single_precision():
    """At such parameters the discriminant of the inverse is below zero by rounding in some of 400,000 bins."""
    rng = torch.Generator().manual_seed(0)
    parameters = (10 * torch.randn(20, n_spline_parameters(12), 20_000, generator=rng)).requires_grad_(True)
    angle = (2 * torch.rand(20, 20_000, generator=rng) - 1) * math.pi
    with torch.no_grad():
        moved, _ = circular_spline(angle, parameters)
    back, log_derivative = circular_spline_inverse(moved, parameters)
    assert back.dtype == torch.float32
    assert bool(torch.isfinite(back).all() & torch.isfinite(log_derivative).all())
    (gradient,) = torch.autograd.grad(log_derivative.sum(), parameters)
    assert bool(torch.isfinite(gradient).all())


def build(kind, n, n_context):
    if kind is TorsionFlow:
        return TorsionFlow(n, n_context, **SIZES, n_bins=6, n_harmonics=2)
    return StiffFlow(n, torch.tril_indices(n, n, -1), n_context, **SIZES)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("n_context", [0, 3])
@pytest.mark.parametrize("kind", [TorsionFlow, StiffFlow])
def test_conditional_flow_against_autograd(kind, n, n_context):
    flow = roughened(build(kind, n, n_context))
    rng = torch.Generator().manual_seed(0)
    base = flow.sample_base(6, torch.zeros((), dtype=torch.float64), rng)
    context = torch.randn(n_context, 6, generator=rng, dtype=torch.float64)
    value, log_det = flow(base, context)
    back, log_det_back = flow.inverse(value, context)
    torch.testing.assert_close(back, base, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, row=row: flow(z[:, None], context[:, row : row + 1])[0][:, 0], base[:, row]
        )
        assert abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_det[row].detach())) < 1e-8
    if len(flow.layers):
        assert float(log_det.abs().max()) > 0.01  # the test would be empty for the identity


def test_no_torsions_is_a_working_special_case():
    flow = TorsionFlow(0, 2, **SIZES, n_bins=6, n_harmonics=2)
    value, log_det = flow(torch.empty(0, 4), torch.zeros(2, 4))
    assert value.shape == (0, 4)
    assert not log_det.any()


@pytest.fixture(scope="module")
def rough_generator(dipeptide, potential):
    generator = BoltzmannGenerator.for_molecule(dipeptide, potential, seed=5)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return generator


def test_log_prob_is_the_density_returned_with_the_sample(rough_generator):
    positions, log_q = rough_generator.sample_and_log_prob(10_000)
    with torch.no_grad():
        again = rough_generator.log_prob(positions)
    assert float((log_q - again).abs().max()) < 1e-3


def test_log_prob_in_float64(rough_generator, dipeptide, potential):
    generator = BoltzmannGenerator.for_molecule(dipeptide, potential, dtype=torch.float64)
    generator.flow.load_state_dict(rough_generator.flow.state_dict())
    positions, log_q = generator.sample_and_log_prob(10_000)
    with torch.no_grad():
        again = generator.log_prob(positions)
    assert float((log_q - again).abs().max()) < 1e-9


def test_all_atom_log_det_against_autograd(rough_generator):
    """log q of internal coordinates by the Jacobian of the whole map from base variables, float64."""
    flow = rough_generator.flow.double()
    try:
        assert _replayed(flow, torch.Generator().manual_seed(2)) < 1e-8
    finally:
        flow.float()


def _replayed(flow, rng):
    n = flow.internal.n_coordinates
    shapes = [(flow._n_torsions[0],), (flow._n_stiff[0],), (flow._n_torsions[1],), (flow._n_stiff[1],)]
    sizes = [shape[0] for shape in shapes]
    draws = [(torch.randn if k % 2 else torch.rand)(size, generator=rng).double() for k, size in enumerate(sizes)]

    def internal_of(base):
        """`sample_internal` with its random numbers, in the order in which they are drawn, given."""
        given = iter(base.unsqueeze(1).split(sizes))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("rand", "randn"):
                patch.setattr(torch, name, lambda *shape, **options: next(given))
            return flow.sample_internal(1)[0][0]

    base = torch.cat(draws)
    jacobian = torch.autograd.functional.jacobian(internal_of, base)
    assert jacobian.shape == (n, n)
    log_base = -0.5 * sum(float((p.square() + math.log(2 * math.pi)).sum()) for p in (draws[1], draws[3]))
    expected = log_base - float(torch.linalg.slogdet(jacobian).logabsdet)
    with torch.no_grad():
        log_q = float(flow.log_prob_internal(internal_of(base)[None]))
    return abs(log_q - expected)


def test_sparse_triangular_solver_against_a_dense_one():
    """Value and gradients of `ConditionalGaussian`'s forward substitution, some rows without entries."""
    from boltzgen.flows.gaussian import _levels, _SolveLower

    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.tensor([[2, 2, 4, 4, 5], [0, 1, 2, 3, 0]])
    diagonal = torch.rand(6, 3, generator=rng, dtype=torch.float64) + 0.5
    below, right = (torch.randn(k, 3, generator=rng, dtype=torch.float64) for k in (5, 6))
    inputs = tuple(x.requires_grad_(True) for x in (diagonal, below, right))
    levels = [(torch.tensor(k), rows[k], columns[k]) for k in _levels(6, rows.tolist(), columns.tolist())]
    solution = _SolveLower.apply(*inputs, rows, columns, levels)
    dense = torch.diag_embed(diagonal.T).index_put((torch.arange(3)[:, None], rows, columns), below.T)
    torch.testing.assert_close(solution, torch.linalg.solve(dense, right.T.unsqueeze(-1)).squeeze(-1).T)
    assert torch.autograd.gradcheck(lambda *x: _SolveLower.apply(*x, rows, columns, levels), inputs)


def test_chirality_and_amides_never_change(rough_generator, dipeptide):
    positions, _ = rough_generator.sample_and_log_prob(2000)
    index = {dipeptide.atom_names[i]: i for i in range(6, 16)}
    n, ca, c, cb = (positions[:, index[name]] for name in ("N", "CA", "C", "CB"))
    volume = (torch.linalg.cross(n - ca, c - ca, dim=-1) * (cb - ca)).sum(-1)
    assert bool((volume > 0).all())  # L-alanine
    from boltzgen.collective_variables import parse_basin

    for omega in ("omega[1]", "omega[2]"):
        assert not np.asarray(parse_basin(f"-90 < {omega} < 90", dipeptide).contains(positions.numpy())).any()


def test_positions_outside_the_domain_have_no_density(rough_generator):
    positions, _ = rough_generator.sample_and_log_prob(4)
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0])
    with torch.no_grad():
        assert bool((rough_generator.log_prob(mirrored) == -torch.inf).all())
    assert not bool(rough_generator.flow.contains(mirrored).any())
    assert bool(rough_generator.flow.contains(positions).all())


def test_seed_decides_weights_and_samples(dipeptide, potential):
    first, second, other = (BoltzmannGenerator.for_molecule(dipeptide, potential, seed=s) for s in (7, 7, 8))
    a, b, c = (g.sample_and_log_prob(16)[0] for g in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("name", ["met_enkephalin", "ace_ala3_nme"])
def test_reversible_in_single_precision(name):
    """Positions to base variables and back, all layers rough, within 1e-5 nm without any superposition."""
    molecule = Molecule.from_pdb(DATA / f"{name}.pdb")
    generator = BoltzmannGenerator.for_molecule(molecule, CompiledPotential(molecule, compile=False))
    flow, rng = generator.flow, torch.Generator().manual_seed(1)
    nothing = torch.empty(0, 200)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=rng))
        coordinates, _ = flow.sample_internal(200, rng)
        positions, _ = flow.internal.to_cartesian(coordinates)
        variables = flow.folding.variables(flow.internal.to_internal(positions)[0])[:, flow._gather]
        free, stiff = variables.tensor_split([sum(flow._n_torsions)], dim=1)
        stiff, _, inside = flow.bounded.inverse(stiff)
        assert bool(inside.all())
        (torsions, more), (z, more_z) = free.T.split(flow._n_torsions), stiff.T.split(flow._n_stiff)
        features, given = flow.heavy._given(torsions, nothing), flow._given_to_hydrogens(torsions, z, nothing)
        base = [
            flow.heavy.torsions.inverse(torsions, nothing)[0],
            flow.heavy.stiff.inverse(z, features)[0],
            *flow.hydrogens.inverse(more, more_z, given)[:2],
        ]
        torsions, _ = flow.heavy.torsions(base[0], nothing)
        z, _ = flow.heavy.stiff(base[1], flow.heavy._given(torsions, nothing))
        more, more_z, _ = flow.hydrogens(*base[2:], flow._given_to_hydrogens(torsions, z, nothing))
        stiff, _ = flow.bounded(torch.cat([z, more_z]).T)
        again = torch.cat([torch.cat([torsions, more]).T, stiff], dim=1)[:, flow._scatter]
        back, _ = flow.internal.to_cartesian(flow.folding.torsions(again))
    assert float(torch.linalg.vector_norm(back - positions, dim=-1).max()) < 1e-5
    assert float(base[1].std()) != pytest.approx(float(z.std()), abs=1e-3)  # the layers are no identities
