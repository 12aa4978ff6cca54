"""Simplified Systems have the energies and forces of the originals, or they are the originals."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app
from openmm.app.internal.customgbforces import GBSAGBn2Force, GBSAOBC1Force, GBSAOBC2Force

import boltzgen as bg
from boltzgen.energy import simplification as module
from boltzgen.energy.native_forces import Rewriting
from boltzgen.energy.simplification import lattice_frames, simplification, simplify
from boltzgen.energy.verify import perturbed_frames, reference_terms
from boltzgen.errors import PotentialError

DATA = Path(__file__).parent / "data"
ALANINE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide.pdb"


@pytest.fixture(scope="module")
def salt_bridge(tmp_path_factory: pytest.TempPathFactory) -> bg.Molecule:
    """ACE-ARG with a charged end: CHARMM36m has a pair of its own (NBFIX) for guanidinium N and carboxylate O."""
    lines = []
    for line in (DATA / "capped" / "ARG.pdb").read_text().splitlines():
        if "N   NME" in line:  # the nitrogen of the cap lies where the second oxygen belongs
            line = line.replace("HETATM", "ATOM  ").replace("N   NME A   3", "OXT ARG A   2")[:77] + "O"
        if "NME" not in line:
            lines.append(line)
    path = tmp_path_factory.mktemp("nbfix") / "ace_arg.pdb"
    path.write_text("\n".join(lines))
    return bg.Molecule.from_pdb(path)


def _totals(system: openmm.System, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    terms, forces = reference_terms(system, frames)
    return np.sum(list(terms.values()), axis=0), forces


def _assert_equal(one: openmm.System, other: openmm.System, frames: np.ndarray) -> None:
    """To the rounding of sums in double precision, on frames that were not used for the verification."""
    expected, expected_forces = _totals(one, frames)
    found, found_forces = _totals(other, frames)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-7)
    scale = np.abs(expected_forces).max(axis=(1, 2), keepdims=True)
    assert np.max(np.abs(found_forces - expected_forces) / scale) < 1e-9


def _kinds(system: openmm.System) -> list[str]:
    return [type(force).__name__ for force in system.getForces()]


def _force(system: openmm.System, kind: str) -> openmm.Force:
    return system.getForce(_kinds(system).index(kind))


@pytest.mark.parametrize(
    ("path", "forcefield", "solvent", "n_changes", "custom_left"),
    [
        (ALANINE, "charmm36m", None, 2, {"CustomTorsionForce"}),
        (ALANINE, "charmm36m", "obc2", 3, {"CustomTorsionForce"}),
        (DATA / "met_enkephalin.pdb", "charmm36m", "obc2", 3, {"CustomTorsionForce"}),
        (ALANINE, "amber14", None, 0, set()),
        (ALANINE, "amber14", "obc2", 1, set()),
        (ALANINE, "amber14", "obc1", 0, {"CustomGBForce"}),
        (ALANINE, "amber14", "gbn2", 0, {"CustomGBForce"}),
    ],
)
def test_molecules(path: Path, forcefield: str, solvent: str | None, n_changes: int, custom_left: set[str]) -> None:
    molecule = bg.Molecule.from_pdb(path, forcefield=forcefield, solvent=solvent)
    before = openmm.XmlSerializer.serialize(molecule.system)
    result = simplification(molecule.system, molecule.positions)
    assert openmm.XmlSerializer.serialize(molecule.system) == before
    assert len(result.changes) == n_changes
    assert {kind for kind in _kinds(result.system) if kind.startswith("Custom")} == custom_left
    assert result.difference < 1e-9
    _assert_equal(molecule.system, result.system, perturbed_frames(molecule.positions, 12, seed=7))
    if n_changes == 0:
        assert openmm.XmlSerializer.serialize(result.system) == before


def test_nbfix_pairs_become_exceptions(salt_bridge: bg.Molecule) -> None:
    atoms = list(salt_bridge.topology.atoms())
    pairs = {
        (a.index, b.index)
        for a in atoms
        for b in atoms
        if {a.name, b.name} & {"NE", "NH1", "NH2"} and {a.name, b.name} & {"OXT", "O"} and a.index < b.index
    }
    pairs = {(i, j) for i, j in pairs if "ACE" not in (atoms[i].residue.name, atoms[j].residue.name)}
    result = simplification(salt_bridge.system, salt_bridge.positions)
    native = _force(result.system, "NonbondedForce")
    own = {}
    for index in range(native.getNumExceptions()):
        i, j, product, sigma, epsilon = native.getExceptionParameters(index)
        own[min(i, j), max(i, j)] = (product._value, sigma._value, epsilon._value)
    assert len(pairs) == 6
    for i, j in pairs:
        charges = [native.getParticleParameters(atom)[0]._value for atom in (i, j)]
        # NC2-OC of charmm36_2024.xml
        np.testing.assert_allclose(own[i, j], (charges[0] * charges[1], 0.3240198637876414, 0.6481810960000001))
    assert any("6 pairs" in change for change in result.changes)
    _assert_equal(salt_bridge.system, result.system, perturbed_frames(salt_bridge.positions, 12, seed=7))


def _random_system(seed: int) -> tuple[openmm.System, np.ndarray]:
    """A table with pairs of its own, exclusions and exceptions that differ, and bonds on top of each other."""
    random = np.random.default_rng(seed)
    n, n_types = 14, 5
    sigma, epsilon = random.uniform(0.2, 0.35, n_types), random.uniform(0.1, 1.0, n_types)
    epsilon[0] = 0.0
    pair_sigma, pair_epsilon = (sigma[:, None] + sigma) / 2, np.sqrt(epsilon[:, None] * epsilon)
    for s, t in ((1, 2), (3, 3), (0, 4)):  # an unequal pair, a type with itself, and one with a type without any
        pair_sigma[s, t] = pair_sigma[t, s] = random.uniform(0.2, 0.35)
        pair_epsilon[s, t] = pair_epsilon[t, s] = random.uniform(0.1, 1.0)
    c12, c6 = 4 * pair_epsilon * pair_sigma**12, 4 * pair_epsilon * pair_sigma**6
    table = openmm.CustomNonbondedForce("acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;")
    table.addTabulatedFunction("acoef", openmm.Discrete2DFunction(n_types, n_types, c12.ravel()))
    table.addTabulatedFunction("bcoef", openmm.Discrete2DFunction(n_types, n_types, c6.ravel()))
    table.addPerParticleParameter("type")
    native, bonds = openmm.NonbondedForce(), openmm.CustomBondForce("4*epsilon*((sigma/r)^12-(sigma/r)^6)")
    bonds.addPerBondParameter("epsilon")
    bonds.addPerBondParameter("sigma")
    system = openmm.System()
    for _ in range(n):
        system.addParticle(12.0)
        table.addParticle([random.integers(n_types)])
        native.addParticle(random.normal(), 1.0, 0.0)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    for i, j in (pairs[k] for k in random.choice(len(pairs), 20, replace=False)):
        table.addExclusion(i, j)
    for i, j in (pairs[k] for k in random.choice(len(pairs), 20, replace=False)):
        native.addException(i, j, random.choice([0.0, 0.3]), random.uniform(0.2, 0.3), random.choice([0.0, 0.5]))
    for i, j in (pairs[k] for k in random.choice(len(pairs), 20, replace=True)):
        bonds.addBond(i, j, [random.uniform(0.1, 1.0), random.uniform(0.2, 0.3)])
    for force in (bonds, native, table):
        system.addForce(force)
    return system, lattice_frames(n, 6, seed)


@pytest.mark.parametrize("seed", range(12))
def test_random_tables_exclusions_and_exceptions(seed: int) -> None:
    system, frames = _random_system(seed)
    result = simplification(system, frames[0])
    assert _kinds(result.system) == ["NonbondedForce"]
    _assert_equal(system, result.system, frames)
    assert openmm.XmlSerializer.serialize(simplify(system)) == openmm.XmlSerializer.serialize(result.system)


def _cut(system: openmm.System) -> None:
    _force(system, "CustomNonbondedForce").setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)


def _cut_charges(system: openmm.System) -> None:
    _force(system, "NonbondedForce").setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)


def _regroup(system: openmm.System) -> None:
    _force(system, "CustomNonbondedForce").setForceGroup(3)


def _own_well(system: openmm.System) -> None:
    _force(system, "NonbondedForce").setParticleParameters(2, 0.1, 0.3, 0.2)


def _offsets(system: openmm.System) -> None:
    force = _force(system, "NonbondedForce")
    force.addGlobalParameter("scale", 1.0)
    force.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0)


def _asymmetric(system: openmm.System) -> None:
    table = _force(system, "CustomNonbondedForce").getTabulatedFunction(0)
    width, height, values = table.getFunctionParameters()
    table.setFunctionParameters(width, height, [*values[:7], values[7] * 1.1, *values[8:]])


def _attraction_only(system: openmm.System) -> None:
    table = _force(system, "CustomNonbondedForce").getTabulatedFunction(0)
    width, height, values = table.getFunctionParameters()
    table.setFunctionParameters(width, height, [0.0] * len(values))


def _interaction_group(system: openmm.System) -> None:
    _force(system, "CustomNonbondedForce").addInteractionGroup([0, 1, 2], [3, 4, 5])


@pytest.mark.parametrize(
    "change",
    [_cut, _cut_charges, _regroup, _own_well, _offsets, _asymmetric, _attraction_only, _interaction_group],
)
def test_what_is_not_understood_stays(change) -> None:
    system, _ = _random_system(0)
    change(system)
    result = simplification(system)
    assert openmm.XmlSerializer.serialize(result.system) == openmm.XmlSerializer.serialize(system)
    assert result.changes == ()
    assert len(result.kept) == 1
    assert result.kept[0].startswith("Lennard-Jones")


def test_bonds_in_another_group_stay_apart() -> None:
    system, frames = _random_system(1)
    _force(system, "CustomBondForce").setForceGroup(5)
    result = simplify(system)
    assert _kinds(result) == ["CustomBondForce", "NonbondedForce"]
    assert _force(result, "CustomBondForce").getForceGroup() == 5
    _assert_equal(system, result, frames)


def _born(kind: type, n: int = 10, **options: object) -> tuple[openmm.System, np.ndarray]:
    random = np.random.default_rng(3)
    force = kind(**options)
    system = openmm.System()
    for _ in range(n):
        system.addParticle(12.0)
        radius = random.choice([0.12, 0.17, 0.155])
        # Screening of nitrogen and carbon; GBn2 has parameters of its own for each atom.
        extra = [1.0, 0.8, 4.85] if kind is GBSAGBn2Force else []
        force.addParticle([random.normal(), radius, random.choice([0.72, 0.79]), *extra])
    force.finalize()
    system.addForce(force)
    return system, lattice_frames(n, 6)


@pytest.mark.parametrize("surface", [None, "ACE"])
@pytest.mark.parametrize("dielectrics", [(78.5, 1.0), (40.0, 2.5)])
def test_obc2_as_native_force(surface: str | None, dielectrics: tuple[float, float]) -> None:
    solvent, solute = dielectrics
    system, frames = _born(GBSAOBC2Force, SA=surface, solventDielectric=solvent, soluteDielectric=solute)
    result = simplification(system)
    assert _kinds(result.system) == ["GBSAOBCForce"]
    # The Coulomb constant of the custom force, 2e-7 off that of the native one, is kept: rounding is all that is left.
    _assert_equal(system, result.system, frames)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(GBSAOBC2Force, {"kappa": 0.5}), (GBSAOBC2Force, {"cutoff": 1.0}), (GBSAOBC1Force, {}), (GBSAGBn2Force, {})],
)
def test_other_models_stay(kind: type, options: dict[str, object]) -> None:
    system, _ = _born(kind, **options)
    result = simplify(system)
    assert openmm.XmlSerializer.serialize(result) == openmm.XmlSerializer.serialize(system)


def test_native_born_is_refused_where_an_atom_can_lie_inside_another() -> None:
    system, _ = _born(GBSAOBC2Force)
    force = system.getForce(0)
    charge, radius, _ = force.getParticleParameters(0)
    force.setParticleParameters(0, [charge, radius, 0.2])
    result = simplification(system)
    assert _kinds(result.system) == ["CustomGBForce"]
    assert "closer than" in result.kept[0]


def test_a_wrong_rewriting_is_undone(
    dipeptide: bg.Molecule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slightly_wrong(system: openmm.System) -> Rewriting | None:
        right = module.lennard_jones_in_nonbonded(system)
        assert right is not None
        force = copy.deepcopy(right.force)
        charge, sigma, epsilon = force.getParticleParameters(4)
        force.setParticleParameters(4, charge, sigma * (1 + 1e-6), epsilon)
        return Rewriting(right.description, right.replaced, force)

    monkeypatch.setattr(module, "_PLANS", (module._used_maps, slightly_wrong))
    with caplog.at_level(logging.WARNING):
        result = simplification(dipeptide.system, dipeptide.positions)
    assert len(result.changes) == 1
    assert "CustomNonbondedForce" in _kinds(result.system)
    assert "energies differ" in result.kept[0]
    assert "Lennard-Jones" in caplog.text
    _assert_equal(dipeptide.system, result.system, perturbed_frames(dipeptide.positions, 4, seed=7))


def test_positions_are_checked_and_may_be_absent(dipeptide: bg.Molecule) -> None:
    with pytest.raises(PotentialError, match="22 particles, but positions are given for 21"):
        simplify(dipeptide.system, dipeptide.positions[:21])
    unverified = simplification(dipeptide.system, verify=False)
    assert np.isnan(unverified.difference)
    without = simplification(dipeptide.system)
    assert without.changes == unverified.changes
    _assert_equal(dipeptide.system, without.system, perturbed_frames(dipeptide.positions, 4, seed=7))


def test_constraints_masses_and_periodic_systems_are_kept() -> None:
    modeller = app.Modeller(app.Topology(), [])
    modeller.addSolvent(app.ForceField("tip3p.xml"), boxSize=openmm.Vec3(2, 2, 2))
    system = app.ForceField("tip3p.xml").createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9, constraints=app.HBonds
    )
    assert openmm.XmlSerializer.serialize(simplify(system)) == openmm.XmlSerializer.serialize(system)
