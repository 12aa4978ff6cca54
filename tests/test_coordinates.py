"""Z-matrix, internal coordinates, bounds and chart, against autograd, mdtraj and OpenMM's own minimum."""

import math

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit

from boltzgen.coordinates.bounded import BoundedCoordinates, bend, unbend
from boltzgen.coordinates.chart import CoordinateChart
from boltzgen.coordinates.internal import InternalCoordinates, dihedral_angle
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.errors import StructureError


@pytest.fixture(scope="module")
def perturbed(dipeptide):
    """(8, N, 3) float64 positions around the structure."""
    positions = torch.as_tensor(dipeptide.positions.value_in_unit(unit.nanometer))
    noise = torch.randn(8, *positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return positions + 0.01 * noise


@pytest.fixture(scope="module")
def internal(dipeptide):
    return InternalCoordinates(ZMatrix.from_bonds(dipeptide.bonds, dipeptide.elements, dipeptide.torsions))


def test_zmatrix_places_heavy_atoms_first_and_references_only_placed_atoms(dipeptide, internal):
    zmatrix = internal.zmatrix
    assert sorted(zmatrix.atoms) == list(range(dipeptide.n_atoms))
    assert set(zmatrix.atoms[: zmatrix.n_heavy]) == set(dipeptide.heavy_atoms)
    bonded = {frozenset(map(int, bond)) for bond in dipeptide.bonds}
    for row in range(3, zmatrix.n_atoms):
        assert set(zmatrix.references[row]) <= set(zmatrix.atoms[:row])
        assert len(set(zmatrix.references[row])) == 3
        assert frozenset((int(zmatrix.atoms[row]), int(zmatrix.references[row, 0]))) in bonded


def test_named_torsions_are_coordinates(dipeptide, internal):
    quads = {
        frozenset((int(a), *map(int, r)))
        for a, r in zip(internal.zmatrix.atoms, internal.zmatrix.references, strict=True)
    }
    assert {frozenset(atoms) for atoms in dipeptide.torsions.values()} <= quads


@pytest.mark.parametrize(
    ("bonds", "elements", "message"),
    [
        ([(0, 1), (1, 2)], ["O", "C", "O"], "at least four"),
        ([(0, 1), (1, 2), (3, 4)], ["C", "C", "C", "C", "C"], "not connected"),
    ],
)
def test_unusable_molecules_are_named(bonds, elements, message):
    with pytest.raises(StructureError, match=message):
        ZMatrix.from_bonds(np.array(bonds), elements)


def test_round_trip_and_log_volume_cancel(internal, perturbed):
    coordinates, log_det = internal.to_internal(perturbed)
    rebuilt, log_det_back = internal.to_cartesian(coordinates)
    again, _ = internal.to_internal(rebuilt)
    torch.testing.assert_close(again, coordinates, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det + log_det_back, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-10)
    pairs = torch.pdist
    for a, b in zip(perturbed, rebuilt, strict=True):
        torch.testing.assert_close(pairs(a), pairs(b), rtol=0, atol=1e-12)


def test_dihedral_has_the_iupac_sign(dipeptide, perturbed):
    quads = np.array(list(dipeptide.torsions.values()))
    ours = torch.stack([dihedral_angle(*(perturbed[:, i] for i in quad)) for quad in quads], dim=1)
    theirs = mdtraj.compute_dihedrals(mdtraj.Trajectory(perturbed.numpy(), dipeptide.mdtraj_topology), quads)
    difference = np.remainder(ours.numpy() - theirs + np.pi, 2 * np.pi) - np.pi
    assert np.abs(difference).max() < 1e-5  # mdtraj computes in float32


def test_log_det_is_that_of_the_autograd_jacobian(internal, perturbed):
    """Internal coordinates and a rigid motion together are all 3N coordinates; the rigid part is known."""
    coordinates, _ = internal.to_internal(perturbed[:1])
    n = internal.n_coordinates

    def place(variables):
        positions, _ = internal.to_cartesian(variables[None, :n])
        x = positions[0]
        alpha, cos_beta, gamma = variables[n : n + 3]
        beta = torch.arccos(cos_beta)
        return (_rotation(alpha, 2) @ _rotation(beta, 1) @ _rotation(gamma, 2) @ x.T).T.flatten() + (
            variables[n + 3 :].repeat(internal.n_atoms)
        )

    # (alpha, cos beta, gamma) has Haar measure with unit density, of total mass 8 pi^2.
    rigid = torch.tensor([0.3, 0.2, -0.4, 0.1, 0.0, 0.2], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(place, torch.cat([coordinates[0], rigid]))
    expected = torch.linalg.slogdet(jacobian).logabsdet
    _, log_det = internal.to_cartesian(coordinates)
    assert abs(float(log_det[0] - expected)) < 1e-8


def _rotation(angle, axis):
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = (
        [[c, -s, zero], [s, c, zero], [zero, zero, one]]
        if axis == 2
        else [[c, zero, s], [zero, one, zero], [-s, zero, c]]
    )
    return torch.stack([torch.stack(row) for row in rows])


def test_angles_keep_their_precision_near_straight():
    chain = InternalCoordinates(ZMatrix.from_bonds(np.array([(0, 1), (1, 2), (2, 3)]), ["C"] * 4))
    bend_angle = 1e-3
    coordinates = torch.tensor([[0.15, 0.15, 0.15, math.pi - bend_angle, 1.9, 0.7]])
    again, _ = chain.to_internal(chain.to_cartesian(coordinates)[0])
    assert abs(float(again[0, 3] - coordinates[0, 3])) < 1e-6  # arccos would be off by 1e-4 in float32


def test_bend_is_identity_inside_bounded_outside_and_invertible():
    limit = torch.tensor(5.0, dtype=torch.float64)
    y = torch.linspace(-12, 12, 401, dtype=torch.float64, requires_grad=True)
    bent, log_derivative = bend(y, limit)
    inner = y.abs() <= 3
    torch.testing.assert_close(bent[inner], y[inner])
    assert bool((bent.abs() < limit).all())
    (slope,) = torch.autograd.grad(bent.sum(), y)
    torch.testing.assert_close(slope.log(), log_derivative, rtol=0, atol=1e-9)
    back, log_inverse = unbend(bent, limit)
    torch.testing.assert_close(back, y, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_inverse, -log_derivative, rtol=0, atol=1e-6)


def test_bounded_coordinates_round_trip_and_log_det():
    n, rng = 5, torch.Generator().manual_seed(1)
    factor = torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(n, n, generator=rng, dtype=torch.float64).tril(-1)
    width = torch.tensor([0.1, 0.2, 0.05, 0.3, 0.1], dtype=torch.float64)
    module = BoundedCoordinates(torch.zeros(n).double(), width, 4 * width, factor, torch.tensor([False] * 4 + [True]))
    z = 2 * torch.randn(20, n, generator=rng, dtype=torch.float64)
    values, log_det = module(z)
    back, log_det_back, inside = module.inverse(values)
    assert bool(inside.all())
    torch.testing.assert_close(back, z, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0][0], z[0])
    assert abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_det[0])) < 1e-9
    # a turn of the periodic coordinate is the same place; a step beyond the bounds is outside
    turned = values + torch.tensor([0, 0, 0, 0, 2 * math.pi], dtype=torch.float64)
    torch.testing.assert_close(module.inverse(turned)[0], z, rtol=0, atol=1e-6)
    assert not bool(module.inverse(values + 100.0 * width)[2].any())


def test_chart_classes_of_the_dipeptide(generator):
    rows = {row.name: row for row in generator.coordinates.rows}
    assert rows["phi"].kind == rows["psi"].kind == "free torsion"
    assert rows["omega[1]"].kind == rows["omega[2]"].kind == "stiff torsion"
    assert abs(rows["omega[1]"].centre) == pytest.approx(math.pi)
    free = [row for row in generator.coordinates.rows if row.kind == "free torsion"]
    assert len(free) == 5  # phi, psi, three methyls
    assert len(generator.coordinates.rows) == 3 * 22 - 6
    assert "phi" in generator.coordinates.table()


def test_widths_are_those_of_the_force_field(generator):
    """A C-H stretch in CHARMM36m: 2 k = 258571 to 269449 kJ/mol/nm^2 (309 and 322 kcal/mol/A^2)."""
    width = next(row.width for row in generator.coordinates.rows if row.name == "ALA2:HB1-ALA2:CB")
    assert width == pytest.approx(math.sqrt(generator.kT / 269_449), rel=0.05)


def test_omega_is_free_when_asked(dipeptide, potential):
    chart = CoordinateChart.for_molecule(dipeptide, potential, omega="free")
    assert {row.name for row in chart.rows if row.kind == "free torsion"} >= {"omega[1]", "omega[2]"}
    with pytest.raises(ValueError, match="omega='cis'"):
        CoordinateChart.for_molecule(dipeptide, potential, omega="cis")


def test_refined_widths_and_couplings_are_those_of_the_data(generator):
    """Data drawn from the chart itself with doubled widths: widths double, correlations stay; the domain stays."""
    chart, rng = generator.coordinates, torch.Generator().manual_seed(0)
    stiff = chart.indices(False, False) + chart.indices(False, True)
    n = 40_000
    z = 2 * torch.randn(n, len(stiff), generator=rng, dtype=torch.float64)
    coordinates = torch.tensor([row.centre for row in chart.rows], dtype=torch.float64).repeat(n, 1)
    coordinates[:, stiff], _ = chart.bounded().double()(z)
    refined = chart.refined(chart.internal.to_cartesian(coordinates)[0].numpy())
    ratio = np.array([refined.rows[i].width / chart.rows[i].width for i in stiff])
    # 550 prior configurations in 40,000: a factor (40,000 x 4 + 550) / 40,550 in the variance; sampling error 0.5 %
    assert ratio == pytest.approx(math.sqrt((4 * n + 550) / (n + 550)), rel=0.03)
    assert np.abs(refined.factor @ refined.factor.T - chart.factor @ chart.factor.T).max() < 0.03
    assert [(row.centre, row.limit) for row in refined.rows] == [(row.centre, row.limit) for row in chart.rows]


def test_refinement_uses_weights_any_labels_and_refuses_what_is_outside(generator):
    chart = generator.coordinates
    positions = generator.sample_and_log_prob(200)[0].numpy().astype(np.float64)
    weights = np.repeat([1.0, 0.0], 100)
    some, weighted = chart.refined(positions[:100]), chart.refined(positions, weights)
    assert [row.width for row in weighted.rows] == pytest.approx([row.width for row in some.rows], rel=1e-12)
    relabelled = positions[:, list(chart.symmetry[0].permutation)]
    same = chart.refined(relabelled)
    assert [row.width for row in same.rows] == pytest.approx([row.width for row in chart.refined(positions).rows])
    with pytest.raises(StructureError, match="200 of 200 configurations lie outside"):
        chart.refined(positions * np.array([1.0, 1.0, -1.0]))
