"""What an explanation names, and that its parts are the energy."""

from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from boltzgen.energy import CompiledPotential
from boltzgen.energy.verify import reference_terms
from boltzgen.errors import PotentialError
from boltzgen.molecule import Molecule

DIPEPTIDE = Path(__file__).resolve().parents[1] / "systems" / "alanine_dipeptide.pdb"
EVERYTHING = 10**9


@pytest.fixture(scope="module")
def molecule():
    return Molecule.from_pdb(DIPEPTIDE, solvent="obc2")


@pytest.fixture(scope="module")
def potential(molecule):
    return CompiledPotential(molecule, compile=False, verify=False)


@pytest.fixture
def positions(molecule):
    return np.array(molecule.positions.value_in_unit(unit.nanometer))


def far_pair(molecule):
    """Names and indices of an oxygen and a methyl hydrogen far apart in the molecule."""
    atoms = list(molecule.topology.atoms())
    first = next(a for a in atoms if a.residue.name == "ACE" and a.name == "O")
    second = next(a for a in atoms if a.residue.name == "NME" and a.element.symbol == "H" and a.name != "H")
    return [(a.index, f"{a.residue.name}{a.residue.id}:{a.name}") for a in (first, second)]


def move_onto(positions, first, second, distance):
    moved = positions.copy()
    moved[second] = moved[first] + np.array([0.0, distance, 0.0])
    return moved


def test_an_overlap_is_named_with_its_distance(molecule, potential, positions):
    (i, first), (j, second) = far_pair(molecule)
    found = potential.explain(move_onto(positions, i, j, 0.04))
    pair = next(c for c in found.worst if c.kind == "pair" and set(c.atoms) == {i, j})
    assert set(pair.names) == {first, second}
    assert pair.distance == pytest.approx(0.04, abs=1e-12)
    assert pair.energy > 1e4
    # Of all pairs it is the worst; the stretches that the move pulled apart may be worse still.
    assert pair == max((c for c in found.worst if c.kind == "pair"), key=lambda c: c.energy)
    text = str(found)
    assert f"{pair.names[0]} and {pair.names[1]} at 0.04 nm" in text
    assert f"Energy: {found.energy:.6g} kJ/mol" in text


def test_terms_are_those_of_openmm(molecule, potential, positions):
    for frame in (positions, positions + np.random.default_rng(0).normal(scale=0.02, size=positions.shape)):
        expected, _ = reference_terms(molecule.system, frame[None])
        found = potential.explain(frame)
        assert set(found.terms) == set(expected) - {"CMMotionRemover"}
        for name, value in found.terms.items():
            assert value == pytest.approx(expected[name][0], rel=1e-10, abs=1e-6), name
        assert found.energy == pytest.approx(sum(value[0] for value in expected.values()), rel=1e-10, abs=1e-6)
        assert found.energy == pytest.approx(sum(found.terms.values()), rel=1e-10, abs=1e-6)


def test_contributions_add_up_to_the_energy(potential, positions):
    frame = positions + np.random.default_rng(1).normal(scale=0.01, size=positions.shape)
    found = potential.explain(frame, n=EVERYTHING)
    energies = [c.energy for c in found.worst]
    assert sum(energies) == pytest.approx(found.energy, rel=1e-12, abs=1e-8)
    assert energies == sorted(energies, reverse=True)
    kinds = {c.kind for c in found.worst}
    assert kinds == {"stretch", "bend", "torsion", "improper", "map (CMAP)", "pair", "implicit solvent"}
    assert len({(c.kind, c.atoms) for c in found.worst if c.kind in ("pair", "torsion", "implicit solvent")}) == sum(
        c.kind in ("pair", "torsion", "implicit solvent") for c in found.worst
    )
    assert len(potential.explain(frame).worst) == 5
    assert potential.explain(frame, n=3).worst == found.worst[:3]
    assert potential.explain(frame, n=0).worst == ()


def test_contributions_of_custom_forces():
    """A stretch, a triple, a coordinate and pairs given by expressions, each with its formula's own value."""
    system = openmm.System()
    bond, compound = openmm.CustomBondForce("100*r"), openmm.CustomCompoundBondForce(3, "7*angle(p1,p2,p3)")
    external, pairs = openmm.CustomExternalForce("10*x"), openmm.CustomNonbondedForce("s1*s2*exp(-r)")
    pairs.addPerParticleParameter("s")
    for index in range(4):
        system.addParticle(1.0)
        pairs.addParticle([1.0 + index])
    bond.addBond(0, 3)
    compound.addBond([0, 1, 2])
    external.addParticle(2)
    pairs.addExclusion(0, 1)
    for force in (bond, compound, external, pairs):
        system.addForce(force)
    x = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    found = CompiledPotential(system, compile=False, verify=False).explain(x, n=EVERYTHING)
    values = {(c.kind, c.atoms): c.energy for c in found.worst}
    assert values["custom term '100*r'", (0, 3)] == pytest.approx(200.0)
    assert values["custom term '7*angle(p1,p2,p3)'", (0, 1, 2)] == pytest.approx(7 * np.pi / 2)
    assert values["custom term '10*x'", (2,)] == pytest.approx(10.0)
    assert values["pair 's1*s2*exp(-r)'", (1, 3)] == pytest.approx(8 * np.exp(-np.sqrt(5)))
    assert ("pair 's1*s2*exp(-r)'", (0, 1)) not in values
    assert len(values) == 1 + 1 + 1 + 5
    assert sum(values.values()) == pytest.approx(found.energy)
    assert found.worst[0].names == ("atom 0", "atom 3")
    assert str(found.worst[0]).startswith("atom 0 and atom 3 at 2 nm")


@pytest.mark.parametrize("distance", [0.0, 1e-12])
def test_a_coincident_pair_comes_first(molecule, potential, positions, distance):
    (i, _), (j, _) = far_pair(molecule)
    found = potential.explain(move_onto(positions, i, j, distance))
    # In float64 the twelfth power of 1e-12 nm is still a number.
    assert found.energy == np.inf if distance == 0 else found.energy > 1e100
    worst = found.worst[0]
    assert (worst.kind, set(worst.atoms)) == ("pair", {i, j})
    assert worst.energy > 1e30
    assert worst.distance == pytest.approx(distance)
    assert not any(np.isnan(c.energy) for c in found.worst)


def test_any_kind_of_array_and_nothing_but_one_configuration(potential, positions):
    expected = potential.explain(positions)
    for same in (positions[None], torch.from_numpy(positions), positions.tolist(), positions * unit.nanometer):
        assert potential.explain(same) == expected
    single = potential.explain(torch.from_numpy(positions).float().requires_grad_())
    assert single.energy == pytest.approx(expected.energy, abs=1e-2)
    for wrong in (
        positions[:-1],
        np.stack([positions] * 2),
        positions.ravel(),
        positions[:, :2],
        positions[None, None],
    ):
        with pytest.raises(PotentialError, match=r"one configuration \(22, 3\)"):
            potential.explain(wrong)


def test_coordinates_that_are_not_numbers(potential, positions):
    positions[3, 1] = np.nan
    found = potential.explain(positions)
    assert np.isnan(found.energy)
    assert all(3 in c.atoms or c.kind == "implicit solvent" for c in found.worst)
