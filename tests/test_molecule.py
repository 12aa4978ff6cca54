"""Set-up: what comes out of a file is the user's molecule with every term of the force field."""

import copy
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from boltzgen.errors import ForceFieldError, StructureError
from boltzgen.forcefields import _load
from boltzgen.molecule import Molecule
from boltzgen.preparation.caps import merge_caps
from boltzgen.preparation.particle_types import number_types_by_first_use
from boltzgen.preparation.structure import read_structure
from boltzgen.preparation.term_audit import audit_terms

DATA = Path(__file__).parent / "data"
AMINO_ACIDS = sorted(path.stem for path in (DATA / "capped").glob("*.pdb"))


@pytest.fixture(scope="module")
def dipeptide(alanine_dipeptide_pdb: Path) -> Molecule:
    return Molecule.from_pdb(alanine_dipeptide_pdb)


@pytest.fixture(scope="module")
def dipeptide_text(alanine_dipeptide_pdb: Path) -> str:
    return alanine_dipeptide_pdb.read_text()


def term_energies(system: openmm.System, positions: np.ndarray) -> dict[str, float]:
    """Energy by force class in kJ/mol."""
    system = copy.deepcopy(system)
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    energies: Counter[str] = Counter()
    for group, force in enumerate(system.getForces()):
        energy = context.getState(energy=True, groups={group}).getPotentialEnergy()
        energies[force.getName()] += energy.value_in_unit(unit.kilojoule_per_mole)
    return dict(energies)


def impropers(molecule: Molecule) -> int:
    return sum(row.impropers_present for row in molecule.setup.audit.residues)


def cmaps(molecule: Molecule) -> int:
    return sum(row.cmaps_present for row in molecule.setup.audit.residues)


def test_order_names_and_residues_are_the_files(dipeptide: Molecule, dipeptide_text: str) -> None:
    lines = [line for line in dipeptide_text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    assert dipeptide.atom_names == [line[12:16].strip() for line in lines]
    assert [a.residue.name for a in dipeptide.topology.atoms()] == [line[17:20] for line in lines]
    xyz = [[float(line[i : i + 8]) / 10 for i in (30, 38, 46)] for line in lines]
    assert np.allclose(dipeptide.positions.value_in_unit(unit.nanometer), xyz, atol=1e-12)
    assert dipeptide.bonds.shape == (21, 2)
    assert len(dipeptide.heavy_atoms) == 10
    assert len(dipeptide.hydrogens) == 12
    assert dipeptide.torsions == {
        "phi": (4, 6, 8, 14),
        "psi": (6, 8, 14, 16),
        "omega[1]": (1, 4, 6, 8),
        "omega[2]": (8, 14, 16, 18),
    }
    assert dipeptide.atom_label(8) == "ALA2:CA"
    assert [atom.name for atom in dipeptide.mdtraj_topology.atoms] == dipeptide.atom_names


def test_energy_terms_equal_those_of_the_whole_residue_alad(dipeptide: Molecule) -> None:
    """ALAD is the force field's own alanine dipeptide, one residue without any patch."""
    topology = app.Topology()
    residue = topology.addResidue("ALAD", topology.addChain())
    atoms = [topology.addAtom(f"X{a.index}", a.element, residue) for a in dipeptide.topology.atoms()]
    for i, j in dipeptide.bonds:
        topology.addBond(atoms[i], atoms[j])
    alad = _load(("charmm36_2024.xml",)).createSystem(topology, removeCMMotion=False)
    start = dipeptide.positions.value_in_unit(unit.nanometer)
    for seed in range(3):
        positions = start + np.random.default_rng(seed).normal(scale=0.01, size=start.shape)
        ours, theirs = term_energies(dipeptide.system, positions), term_energies(alad, positions)
        assert ours.keys() == theirs.keys()
        for term, energy in theirs.items():
            assert ours[term] == pytest.approx(energy, abs=1e-9), term
    assert term_energies(alad, start)["CustomTorsionForce"] > 0


def test_audit_sees_what_openmm_loses_when_caps_stay_apart(dipeptide: Molecule) -> None:
    forcefield = copy.copy(_load(("charmm36_2024.xml",)))
    forcefield._templatePatches = {}  # the three residues match ALAD as a whole; trying every patch is slow
    system = forcefield.createSystem(dipeptide.topology, removeCMMotion=False)
    audit = audit_terms(dipeptide.topology, system, charmm=True)
    assert len([line for line in audit.missing if line.startswith("improper")]) == 4
    with pytest.raises(ForceFieldError, match="ACE1:C"):
        audit.raise_if_incomplete("charmm36m")


@pytest.mark.parametrize(
    ("kind", "setter", "found"),
    [
        (
            openmm.CustomTorsionForce,
            lambda f: f.setTorsionParameters(0, *f.getTorsionParameters(0)[:4], [0, 0]),
            "improper",
        ),
        (openmm.CMAPTorsionForce, lambda f: f.setTorsionParameters(0, 0, 0, 1, 2, 3, 0, 1, 2, 3), "CMAP of ALA2"),
        (openmm.HarmonicBondForce, lambda f: f.setBondParameters(0, 0, 21, 0.1, 1), "bond"),
        (openmm.HarmonicAngleForce, lambda f: f.setAngleParameters(0, 0, 21, 9, 1, 1), "angle"),
    ],
)
def test_audit_names_a_term_that_was_taken_away(dipeptide: Molecule, kind: type, setter: object, found: str) -> None:
    system = copy.deepcopy(dipeptide.system)
    setter(next(force for force in system.getForces() if isinstance(force, kind)))
    with pytest.raises(ForceFieldError, match=found):
        audit_terms(dipeptide.topology, system, charmm=True).raise_if_incomplete("charmm36m")


@pytest.mark.parametrize("name", AMINO_ACIDS)
def test_capped_amino_acid_from_heavy_atoms(name: str) -> None:
    """IMPR entries of top_all36_prot.rtf with a force constant, without those of the backbone: written out by hand."""
    side_chain = {"ARG": 1, "ASN": 4, "ASP": 1, "GLN": 4, "GLU": 1, "HIS": 6}
    molecule = Molecule.from_pdb(DATA / "capped" / f"{name}.pdb")
    backbone = 3 if name == "PRO" else 4
    assert impropers(molecule) == backbone + side_chain.get(name, 0)
    assert cmaps(molecule) == 1
    assert set(molecule.setup.added_hydrogens) == {"ACE1", f"{name}2", "NME3"}
    i, j = molecule.bonds.T
    x = molecule.positions.value_in_unit(unit.nanometer)
    to_hydrogen = np.isin(i, molecule.hydrogens) | np.isin(j, molecule.hydrogens)
    lengths = np.linalg.norm(x[i] - x[j], axis=1)[to_hydrogen]
    assert lengths.min() > 0.09  # nm; O-H is the shortest bond, 0.096
    assert lengths.max() < 0.15  # nm; S-H is the longest, 0.1325


@pytest.mark.parametrize(
    ("file", "n_atoms", "n_impropers", "n_cmaps"),
    [
        ("ace_ala3_nme", 42, 8, 3),
        ("ace_ala5_nme", 62, 12, 5),
        ("ace_ala_nh2", 19, 6, 0),  # ACE C, ALA N, twice ALA C and NH2 N; no map ends at an NH2 nitrogen
        ("met_enkephalin", 75, 9, 3),  # 4 amides, 1 carboxylate
        ("chignolin", 138, 20, 8),  # 9 amides less PRO's N, 1 carboxylate, ASP, GLU
    ],
)
def test_peptides_have_all_terms(file: str, n_atoms: int, n_impropers: int, n_cmaps: int) -> None:
    molecule = Molecule.from_pdb(DATA / f"{file}.pdb")
    assert (molecule.n_atoms, impropers(molecule), cmaps(molecule)) == (n_atoms, n_impropers, n_cmaps)
    kinds = Counter(name.partition("[")[0] for name in molecule.torsions)
    residues = [r for r in molecule.topology.residues() if r.name not in ("ACE", "NME", "NH2")]
    n_phi = len(residues) - (0 if "ace" in file else 1)
    assert kinds["phi"] == n_phi


@pytest.mark.slow
def test_leaving_out_other_molecules_changes_nothing() -> None:
    """Met-enkephalin has no caps, so the force field as OpenMM loads it must give the same System."""
    molecule = Molecule.from_pdb(DATA / "met_enkephalin.pdb")
    system = _load(("charmm36_2024.xml",)).createSystem(molecule.topology, removeCMMotion=False)
    number_types_by_first_use(system)
    assert openmm.XmlSerializer.serialize(system) == openmm.XmlSerializer.serialize(molecule.system)


def test_hydrogens_get_their_standard_names_in_their_residue(
    dipeptide: Molecule, dipeptide_text: str, tmp_path: Path
) -> None:
    heavy = tmp_path / "heavy.pdb"
    heavy.write_text("".join(line for line in dipeptide_text.splitlines(True) if line[76:78].strip() != "H"))
    random.seed(5)
    expected = random.random()
    random.seed(5)
    molecule = Molecule.from_pdb(heavy)
    assert random.random() == expected  # Python's global generator is left alone
    names = [(a.residue.name, a.name) for a in molecule.topology.atoms()]
    assert sorted(names) == sorted((a.residue.name, a.name) for a in dipeptide.topology.atoms())
    assert [r.name for r in molecule.topology.residues()] == ["ACE", "ALA", "NME"]
    again = Molecule.from_pdb(heavy)
    assert np.array_equal(molecule.positions._value, again.positions._value)
    assert sum(map(len, molecule.setup.added_hydrogens.values())) == 12
    x, y = molecule.positions._value, dipeptide.positions._value
    assert np.allclose(x[molecule.heavy_atoms], y[dipeptide.heavy_atoms], atol=1e-12)
    # Placed at their own minimum: no worse than the minimised structure by more than methyl rotations, 3 x 12 kJ/mol.
    energies = [sum(term_energies(m.system, m.positions._value).values()) for m in (molecule, dipeptide)]
    assert energies[0] < energies[1] + 36


def test_mmcif_gives_the_same_molecule(dipeptide: Molecule, tmp_path: Path) -> None:
    path = tmp_path / "a.cif"
    with path.open("w") as handle:
        app.PDBxFile.writeFile(dipeptide.topology, dipeptide.positions, handle, keepIds=True)
    molecule = Molecule.from_pdb(path)
    assert molecule.system_hash == dipeptide.system_hash
    assert molecule.atom_names == dipeptide.atom_names
    assert np.allclose(molecule.positions._value, dipeptide.positions._value, atol=1e-5)


def test_first_model_and_first_altloc_are_taken_and_said(dipeptide_text: str, tmp_path: Path) -> None:
    lines = [line for line in dipeptide_text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    first = [line[:16] + "A" + line[17:] if line[12:16].strip() == "CB" else line for line in lines]
    cb = next(line for line in first if line[12:16].strip() == "CB")
    second = cb[:16] + "B" + cb[17:30] + f"{float(cb[30:38]) + 0.7:8.3f}" + cb[38:]
    other = [line[:30] + f"{float(line[30:38]) + 50:8.3f}" + line[38:] for line in lines]
    text = ["CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1", "MODEL        1", *first, second, "ENDMDL"]
    path = tmp_path / "a.pdb"
    path.write_text("\n".join([*text, "MODEL        2", *other, "ENDMDL", "END"]))
    molecule = Molecule.from_pdb(path)
    assert molecule.n_atoms == 22
    assert molecule.positions._value[10, 0] == pytest.approx(float(cb[30:38]) / 10)
    report = molecule.report()
    for said in ("2 models", "alternate locations of 1 atoms"):
        assert said in " ".join(report.split())


def test_a_periodic_box_is_refused(dipeptide_text: str, tmp_path: Path) -> None:
    path = tmp_path / "boxed.pdb"
    path.write_text("CRYST1   30.000   30.000   30.000  90.00  90.00  90.00 P 1           1\n" + dipeptide_text)
    with pytest.raises(StructureError, match=r"periodic box.*remove the CRYST1 line"):
        Molecule.from_pdb(path)


def test_charmm_names_are_understood_and_kept(dipeptide: Molecule, dipeptide_text: str, tmp_path: Path) -> None:
    text = (
        dipeptide_text.replace(" H   ALA", " HN  ALA").replace(" CH3 ACE", " CAY ACE").replace(" H   NME", " HN  NME")
    )
    path = tmp_path / "charmm.pdb"
    path.write_text(text)
    molecule = Molecule.from_pdb(path)
    assert molecule.system_hash == dipeptide.system_hash
    assert molecule.atom_names[7] == "HN"
    assert molecule.atom_names[1] == "CAY"


@pytest.mark.parametrize(
    ("name", "options", "state", "n_atoms"),
    [
        ("HIS", {"variants": {"HIS2": "HID"}}, "HID (as asked)", 29),
        ("HIS", {"variants": {"HIS2": "HSE"}}, "HIE (as asked)", 29),
        ("HIS", {"ph": 5.0}, "HIP (chosen by pH 5)", 30),
        ("ASP", {"ph": 3.0}, "ASH (chosen by pH 3)", 25),
        ("GLU", {"variants": {"GLU2": "GLH"}}, "GLH (as asked)", 28),
        ("LYS", {"ph": 11.0}, "LYN (chosen by pH 11)", 33),
    ],
)
def test_protonation_states(name: str, options: dict, state: str, n_atoms: int) -> None:
    molecule = Molecule.from_pdb(DATA / "capped" / f"{name}.pdb", **options)
    assert molecule.n_atoms == n_atoms
    assert state in molecule.report()


def test_protonation_in_the_file_is_kept_and_can_be_overridden(tmp_path: Path) -> None:
    molecule = Molecule.from_pdb(DATA / "capped" / "HIS.pdb", variants={"HIS2": "HIE"})
    path = tmp_path / "his.pdb"
    with path.open("w") as handle:
        app.PDBFile.writeFile(molecule.topology, molecule.positions, handle, keepIds=True)
    kept = Molecule.from_pdb(path)
    assert kept.system_hash == molecule.system_hash
    assert "HIE (by the file's hydrogens)" in kept.report()
    changed = Molecule.from_pdb(path, variants={"HIS2": "HID"})
    assert changed.setup.removed_hydrogens == ("HIS2:HE2",)
    assert changed.setup.added_hydrogens == {"HIS2": ("HD1",)}


def test_neutral_termini() -> None:
    molecule = Molecule.from_pdb(DATA / "met_enkephalin.pdb", variants={"N-terminus": "NH2", "C-terminus": "COOH"})
    charge = sum(
        force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
        for force in molecule.system.getForces()
        if isinstance(force, openmm.NonbondedForce)
        for i in range(molecule.n_atoms)
    )
    assert charge == pytest.approx(0, abs=1e-9)
    assert molecule.n_atoms == 75
    assert {"H", "H2"} <= set(molecule.setup.added_hydrogens["TYR1"])
    assert "HXT" in molecule.setup.added_hydrogens["MET5"]


def test_disulfide_bond_is_found_and_parametrised() -> None:
    molecule = Molecule.from_pdb(DATA / "ace_cys_gly_gly_cys_nme.pdb")
    names = [molecule.atom_label(i) for i in range(molecule.n_atoms)]
    bond = sorted((names.index("CYS2:SG"), names.index("CYS5:SG")))
    assert bond in molecule.bonds.tolist()
    assert "disulfide bond to CYS5" in molecule.report()
    assert (impropers(molecule), cmaps(molecule)) == (10, 4)


@pytest.mark.parametrize("forcefield", ["charmm36", "amber14", "amber19", "amber99sbildn", "amber96"])
def test_other_force_fields(forcefield: str, alanine_dipeptide_pdb: Path) -> None:
    molecule = Molecule.from_pdb(alanine_dipeptide_pdb, forcefield=forcefield)
    assert molecule.provenance.force_field == forcefield
    assert len(molecule.provenance.sha256) == len(molecule.provenance.files) > 0
    assert not molecule.system.usesPeriodicBoundaryConditions()
    assert molecule.system.getNumConstraints() == 0


def test_the_2015_file_is_not_charmm36m_and_its_gaps_are_said() -> None:
    molecule = Molecule.from_pdb(DATA / "capped" / "ASN.pdb", forcefield="charmm36")
    assert "par_all36m_prot.prm" not in molecule.provenance.parameter_sources
    assert any("lacks the improper at ASN2:CG" in note for note in molecule.provenance.notes)


def test_solvent_adds_one_force_and_a_note(dipeptide: Molecule, alanine_dipeptide_pdb: Path) -> None:
    molecule = Molecule.from_pdb(alanine_dipeptide_pdb, solvent="obc2")
    assert molecule.system.getNumForces() == dipeptide.system.getNumForces() + 1
    assert "not fitted for CHARMM" in molecule.report()
    x = dipeptide.positions._value
    ours, vacuum = term_energies(molecule.system, x), term_energies(dipeptide.system, x)
    # Born's formula for 22 atoms of these charges: some tens of kJ/mol, never positive beyond the surface term.
    assert -150 < sum(ours.values()) - sum(vacuum.values()) < -10


def test_provenance_and_report(dipeptide: Molecule) -> None:
    assert dipeptide.provenance.parameter_sources[0] == "par_all36m_prot.prm"
    report = dipeptide.report()
    for said in (
        "charmm36_2024.xml",
        "par_all36m_prot.prm",
        dipeptide.provenance.sha256[0],
        "300 K",
        "2/2 impropers 1/1 CMAP",
    ):
        assert said in report
    assert len(report.splitlines()) < 20


def test_temperature(dipeptide: Molecule) -> None:
    assert dipeptide.kT == pytest.approx(0.00831446261815324 * 300, rel=1e-12)
    assert dipeptide.beta * dipeptide.kT == pytest.approx(1)
    hot = dipeptide.with_temperature(600)
    assert hot.kT == pytest.approx(2 * dipeptide.kT)
    assert hot.system_hash == dipeptide.system_hash
    for bad in (0, -300 * unit.kelvin, float("nan"), "warm", 3 * unit.nanometer):
        with pytest.raises(StructureError, match="temperature"):
            dipeptide.with_temperature(bad)


def test_caps_are_merged_without_touching_the_order(dipeptide: Molecule) -> None:
    merged = merge_caps(read_structure(DATA / "ace_ala3_nme.pdb").topology)
    assert [r.name for r in merged.residues()] == ["ALA", "ALA", "ALA"]
    original = read_structure(DATA / "ace_ala3_nme.pdb").topology
    assert [a.element for a in merged.atoms()] == [a.element for a in original.atoms()]


class TestFromOpenmm:
    def test_same_as_from_pdb(self, dipeptide: Molecule) -> None:
        molecule = Molecule.from_openmm(dipeptide.topology, dipeptide.system, dipeptide.positions, 350)
        assert molecule.system_hash == dipeptide.system_hash
        assert molecule.torsions == dipeptide.torsions
        assert molecule.temperature == 350 * unit.kelvin
        assert "not audited" in molecule.report()

    def test_molecule_without_names(self) -> None:
        topology = app.Topology()
        residue = topology.addResidue("XXX", topology.addChain())
        carbons = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(4)]
        for pair in itertools.pairwise(carbons):
            topology.addBond(*pair)
        system = openmm.System()
        for _ in carbons:
            system.addParticle(12)
        molecule = Molecule.from_openmm(topology, system, np.arange(12).reshape(4, 3) * 0.1)
        assert molecule.torsions == {}
        assert molecule.bonds.tolist() == [[0, 1], [1, 2], [2, 3]]
        assert "none by name" in molecule.report()

    def test_refuses_what_a_generator_cannot_draw(self, dipeptide: Molecule) -> None:
        constrained = copy.deepcopy(dipeptide.system)
        constrained.addConstraint(0, 21, 1.0)
        periodic = copy.deepcopy(dipeptide.system)
        next(f for f in periodic.getForces() if isinstance(f, openmm.NonbondedForce)).setNonbondedMethod(2)
        too_many = copy.deepcopy(dipeptide.system)
        too_many.addParticle(1)
        topology, positions = dipeptide.topology, dipeptide.positions
        for system, match in (
            (constrained, "no bond between them"),
            (periodic, "periodic"),
            (too_many, "23 particles"),
        ):
            with pytest.raises(StructureError, match=match):
                Molecule.from_openmm(topology, system, positions)
        with pytest.raises(StructureError, match="shape"):
            Molecule.from_openmm(topology, dipeptide.system, positions[:5])
        nan = positions._value.copy()
        nan[3, 0] = np.nan
        with pytest.raises(StructureError, match="not finite"):
            Molecule.from_openmm(topology, dipeptide.system, nan)
        unbonded = app.Topology()
        residue = unbonded.addResidue("ALA", unbonded.addChain())
        for atom in topology.atoms():
            unbonded.addAtom(atom.name, atom.element, residue)
        with pytest.raises(StructureError, match="not connected"):
            Molecule.from_openmm(unbonded, dipeptide.system, positions)


def test_equal_molecules_hash_equal_in_every_process(dipeptide, alanine_dipeptide_pdb):
    """OpenMM numbers Lennard-Jones types in the order of a set of strings, which PYTHONHASHSEED changes."""
    code = (
        "import sys; from boltzgen.molecule import Molecule; "
        f"sys.stdout.write(Molecule.from_pdb({str(alanine_dipeptide_pdb)!r}).system_hash)"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout == dipeptide.system_hash


def test_impossible_temperature_and_ph_are_refused(alanine_dipeptide_pdb: Path) -> None:
    for options, says in (({"temperature": 1e-9}, "outside 1 to 10,000 K"), ({"ph": 99.0}, "outside 0 to 14")):
        with pytest.raises(StructureError, match=says):
            Molecule.from_pdb(alanine_dipeptide_pdb, **options)
