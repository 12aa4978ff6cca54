"""Basins and collective variables: values against mdtraj, regions against plain arithmetic, errors with a place."""

import pickle
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boltzgen.collective_variables import (
    parse_basin,
    parse_named_basin,
    parse_variable,
    radius_of_gyration,
    torsion,
)
from boltzgen.errors import SelectionError
from boltzgen.molecule import Molecule

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def molecule(alanine_dipeptide_pdb: Path) -> Molecule:
    return Molecule.from_pdb(alanine_dipeptide_pdb)


@pytest.fixture(scope="module")
def positions(molecule: Molecule) -> np.ndarray:
    """(2000, 22, 3) nm, shaken so that torsions take every value."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2000, 22, 3))
    return molecule.positions._value + noise


def chain(degrees: np.ndarray) -> np.ndarray:
    """Four atoms whose torsion has the given values; (B, 4, 3)."""
    t = np.radians(degrees)
    ends = np.stack([np.cos(t), np.sin(t), np.ones_like(t)], axis=-1)
    fixed = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1]])
    return np.concatenate([np.broadcast_to(fixed, (len(t), 3, 3)), ends[:, None]], axis=1)


class FourAtoms:
    """Stands in for a Molecule that has one torsion, phi, over atoms 0 to 3."""

    n_atoms = 4
    torsions = {"phi": (0, 1, 2, 3)}  # noqa: RUF012

    def atom_label(self, index: int) -> str:
        return f"X1:A{index}"


def test_torsions_against_mdtraj(molecule: Molecule, positions: np.ndarray) -> None:
    trajectory = mdtraj.Trajectory(positions, molecule.mdtraj_topology)
    for name, reference in (("phi", mdtraj.compute_phi(trajectory)[1]), ("psi", mdtraj.compute_psi(trajectory)[1])):
        ours = parse_variable(name, molecule)(positions)
        error = (ours - np.rad2deg(reference[:, 0]) + 180) % 360 - 180
        assert np.abs(error).max() < 2e-3  # degrees; mdtraj works in float32
        assert parse_variable(name, molecule).unit == "degrees"


@given(st.floats(-179.999, 180))
@settings(max_examples=50, deadline=None)
def test_torsion_comes_back(degrees: float) -> None:
    value = parse_variable("phi", FourAtoms())(chain(np.array([degrees])))
    assert value[0] == pytest.approx(degrees, abs=1e-9)


def test_branch_is_open_below_and_closed_above() -> None:
    x = torch.from_numpy(chain(np.array([180.0])))
    for sign in (1.0, -1.0):
        planar = x.clone()
        planar[:, 3, 1] = sign * 0.0
        assert torsion(planar, (0, 1, 2, 3)).item() == pytest.approx(np.pi)


def test_distance_is_in_nm(molecule: Molecule, positions: np.ndarray) -> None:
    expected = np.linalg.norm(positions[:, 6] - positions[:, 15], axis=1)
    for text in ("distance(6, 15)", "distance(ALA2:N, ALA2:O)"):
        variable = parse_variable(text, molecule)
        assert variable.unit == "nm"
        assert np.allclose(variable(positions), expected, atol=1e-14)


def test_angles_rmsd_and_radius_of_gyration_against_mdtraj(molecule: Molecule, positions: np.ndarray) -> None:
    x = positions[:200].astype(np.float32)
    trajectory = mdtraj.Trajectory(x, molecule.mdtraj_topology)
    angle = parse_variable("angle(ALA2:N, ALA2:CA, ALA2:C)", molecule)
    names = [molecule.atom_label(i) for i in range(22)]
    atoms = [names.index(f"ALA2:{name}") for name in ("N", "CA", "C")]
    assert np.allclose(angle(x), np.rad2deg(mdtraj.compute_angles(trajectory, [atoms])[:, 0]), atol=2e-3)
    structure = mdtraj.Trajectory(molecule.positions._value, molecule.mdtraj_topology)
    expected = mdtraj.rmsd(trajectory, structure, atom_indices=molecule.heavy_atoms, precentered=False)
    assert np.allclose(parse_variable("rmsd", molecule)(x), expected, atol=1e-5)
    mirrored = -molecule.positions._value[None]
    assert parse_variable("rmsd", molecule)(mirrored)[0] > 0.01  # a mirror image is another molecule
    equal = radius_of_gyration(torch.from_numpy(x), torch.ones(22))
    assert np.allclose(equal.numpy(), mdtraj.compute_rg(trajectory), atol=1e-6)
    assert [parse_variable(text, molecule).unit for text in ("angle(0, 1, 2)", "rmsd", "rg")] == ["degrees", "nm", "nm"]


def test_angles_and_rmsd_in_regions(molecule: Molecule, positions: np.ndarray) -> None:
    bend = parse_variable("angle(4, 6, 8)", molecule)(positions)
    spread = parse_variable("rmsd", molecule)(positions)
    inside = parse_basin("100 < angle(4, 6, 8) < 120 and rmsd < 0.15", molecule).contains(positions)
    assert np.array_equal(inside, (bend > 100) & (bend < 120) & (spread < 0.15))
    for text in ("angle(4, 6, 8) > 181", "rg < 0", "rmsd < 0.1 and rmsd > 0.2"):
        with pytest.raises(SelectionError, match="selects nothing"):
            parse_basin(text, molecule)


def test_kind_and_precision_come_back(molecule: Molecule, positions: np.ndarray) -> None:
    variable, basin = parse_variable("phi", molecule), parse_basin("phi > 0", molecule)
    single = torch.from_numpy(positions).float().requires_grad_()
    assert variable(positions).dtype == np.float64
    assert variable(single).dtype == torch.float32
    assert isinstance(basin.contains(positions), np.ndarray)
    assert basin.contains(single).dtype == torch.bool
    variable(single).sum().backward()
    assert torch.isfinite(single.grad).all()
    assert np.array_equal(basin.contains(positions), variable(positions) > 0)
    assert np.array_equal(pickle.loads(pickle.dumps(basin)).contains(positions), basin.contains(positions))
    with pytest.raises(SelectionError, match="shape"):
        variable(positions[:, :5])


@given(st.integers(-180, 360), st.integers(1, 359), st.booleans())
@settings(max_examples=100, deadline=None)
def test_arc_goes_upward_from_low_to_high(low: int, width: int, wrapped: bool) -> None:
    """All ways to write one arc select the same half-degree grid points, counted by walking along it."""
    high = low + width
    if wrapped and high > 180:
        high -= 360
    if abs(high) > 360:
        return
    grid = np.arange(-179.5, 180, 1.0)
    walked = {(low + 0.5 + step + 180) % 360 - 180 for step in range(width)}
    expected = np.isin(grid, list(walked))
    basin = parse_basin(f"{low} < phi < {high}", FourAtoms())
    assert np.array_equal(basin.contains(chain(grid)), expected)
    reverse = parse_basin(f"{high} >= phi >= {low}", FourAtoms())
    assert np.array_equal(reverse.contains(chain(grid)), expected)


def test_single_comparison_is_on_the_branch() -> None:
    grid = np.arange(-179.5, 180, 1.0)
    for text, expected in (("phi > 0", grid > 0), ("phi <= -90", grid <= -90), ("-90 > phi", grid < -90)):
        assert np.array_equal(parse_basin(text, FourAtoms()).contains(chain(grid)), expected)


def test_logic_and_precedence(molecule: Molecule, positions: np.ndarray) -> None:
    phi, psi = (parse_variable(name, molecule)(positions) for name in ("phi", "psi"))
    near = np.linalg.norm(positions[:, 6] - positions[:, 15], axis=1) < 0.35
    cases = {
        "phi > 0 or psi > 0 and distance(6, 15) < 0.35": (phi > 0) | ((psi > 0) & near),
        "(phi > 0 or psi > 0) and distance(6, 15) < 0.35": ((phi > 0) | (psi > 0)) & near,
        "not phi > 0 and psi > 0": ~(phi > 0) & (psi > 0),
        "not (phi > 0 and psi > 0)": ~((phi > 0) & (psi > 0)),
        "150<phi<-150": (phi > 150) | (phi < -150),
        "phi[1] > 0": phi > 0,
        "torsion(ACE1:C, ALA2:N, 8, 14) > 0": phi > 0,
    }
    for text, expected in cases.items():
        basin = parse_basin(text, molecule)
        assert np.array_equal(basin.contains(positions), expected), text
    names = [v.name for v in parse_basin("phi > 0 and psi > 0 or phi < -9", molecule).variables]
    assert names == ["phi", "psi"]


def test_nan_lies_in_no_basin(molecule: Molecule, positions: np.ndarray) -> None:
    broken = positions[:3].copy()
    broken[1, 0, 0] = np.nan
    both = [parse_basin(text, molecule).contains(broken) for text in ("phi > 0", "not phi > 0")]
    assert (both[0] | both[1]).tolist() == [True, False, True]


def test_several_torsions_are_numbered_along_the_chain() -> None:
    molecule = Molecule.from_pdb(DATA / "ace_ala3_nme.pdb")
    x = molecule.positions._value[None]
    trajectory = mdtraj.Trajectory(x, molecule.mdtraj_topology)
    for number, reference in enumerate(np.rad2deg(mdtraj.compute_phi(trajectory)[1][0]), 1):
        assert parse_variable(f"phi[{number}]", molecule)(x)[0] == pytest.approx(reference, abs=1e-2)
    with pytest.raises(SelectionError, match=r"3 torsions phi: write phi\[1\] to phi\[3\]"):
        parse_basin("phi > 0", molecule)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", 0, "found the end"),
        ("phi", 3, "expected <"),
        ("phi >", 5, "expected a number"),
        ("phi == 3", 4, "write < or <="),
        ("phi[2] > 0", 0, "numbers 1 to 1"),
        ("phi[0] > 0", 4, "start at 1"),
        ("ph > 0", 0, "known: phi, psi"),
        ("psi > 0 and chi1 > 0", 12, "unknown name 'chi1'"),
        ("0 < phi > 3", 8, "same way"),
        ("1 < phi < 2 < 3", 12, "did not expect"),
        ("(phi > 0", 8, r"expected '\)'"),
        ("phi > 0)", 7, "did not expect"),
        ("phi > 0 and and psi > 0", 12, "cannot stand here"),
        ("distance(1, 2, 3) > 1", 13, "needs 2 atoms"),
        ("distance(1, 1) > 1", 0, "named twice"),
        ("distance(1, 22) > 1", 12, "from 0 to 21"),
        ("distance(ALA2:X, 3) < 1", 9, "known: ALA2:N"),
        ("distance(FOO7:X, 3) < 1", 9, "residues ACE1, ALA2, NME3"),
        ("distance(1, 2) < -1", 0, "selects nothing"),
        ("0.3 < distance(1, 2) < 0.2", 0, "selects nothing"),
        ("phi > 200", 0, "selects nothing"),
        ("30 < phi < 30", 0, "selects nothing"),
        ("-200 < phi < 200", 0, "whole circle"),
        ("0 < phi < 1000", 10, "degrees"),
        ("__import__('os').system('true')", 0, "cannot read"),
    ],
)
def test_errors_point_at_the_place(text: str, column: int, says: str, molecule: Molecule) -> None:
    with pytest.raises(SelectionError, match=says) as caught:
        parse_basin(text, molecule)
    caret = str(caught.value).splitlines()[-1]
    assert caret.index("^") - 2 == column


def test_named_basin() -> None:
    assert parse_named_basin("C7ax: 0 < phi < 150") == ("C7ax", "0 < phi < 150")
    assert parse_named_basin("near: distance(ALA2:N, ALA2:O) < 0.3")[1] == "distance(ALA2:N, ALA2:O) < 0.3"
    for bad in ("0 < phi < 150", "C7ax:", ": phi > 0", "distance(A2:N, 3) < 1"):
        with pytest.raises(SelectionError, match="write a name and an expression"):
            parse_named_basin(bad)


@pytest.mark.parametrize(
    "expression",
    [
        "phi > 10 and phi < 5",
        "not (phi > -180)",
        "0 < phi < 90 and 100 < phi < 170",
        "distance(0, 5) < 1 and not distance(0, 5) < 2",
    ],
)
def test_contradictions_select_nothing(dipeptide, expression):
    with pytest.raises(SelectionError, match="selects nothing"):
        parse_basin(expression, dipeptide)


@pytest.mark.parametrize(
    "expression",
    [
        "phi > 10 or phi < 5",
        "150 < phi < 210 and phi < -160",
        "phi < -150 or phi > 170",
        "0 < phi < 90 and not psi > 0",
        "phi < 5 and 4 < phi < 100",
    ],
)
def test_what_can_hold_is_accepted(dipeptide, expression):
    assert parse_basin(expression, dipeptide).expression == expression
