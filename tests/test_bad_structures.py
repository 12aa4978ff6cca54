"""Structure files that cannot be used: each an error in one line that names the thing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from boltzgen.errors import BoltzgenError, ForceFieldError, StructureError
from boltzgen.molecule import Molecule

DATA = Path(__file__).parent / "data"
WATER = "HETATM   23  O   HOH A   4       9.000   9.000   9.000  1.00  0.00           O"
SODIUM = "HETATM   23 NA    NA A   4       9.000   9.000   9.000  1.00  0.00          NA"
LIGAND = (
    "HETATM   23  C1  LIG A   4       9.000   9.000   9.000  1.00  0.00           C\n"
    "HETATM   24  C2  LIG A   4      10.500   9.000   9.000  1.00  0.00           C"
)


def without(*names: str) -> Callable[[str], str]:
    return lambda text: "".join(line for line in text.splitlines(True) if line[12:16].strip() not in names)


def plus(lines: str) -> Callable[[str], str]:
    return lambda text: text.replace("TER ", lines + "\nTER ")


def moved(name: str, x: str) -> Callable[[str], str]:
    return lambda text: "".join(
        line[:30] + x + line[54:] if line[12:16].strip() == name else line for line in text.splitlines(True)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "", "empty"),
        (lambda text: "dear diary\n", "not a PDB file"),
        (moved("CH3", "    1.0     2,0     3.0 "), "line 3: no coordinates"),
        (plus(WATER), "1 water molecule.*implicit solvent"),
        (plus(SODIUM), "ion NA"),
        (plus(LIGAND), "LIG4 is not a known residue"),
        (plus(LIGAND + "\nCONECT   23   24"), "LIG4"),
        (plus(WATER.replace("HOH A", "ALA B")), "2 chains"),
        (plus(WATER.replace("HOH", "GLY")), "GLY4 lacks heavy atoms C, CA, N"),
        (without("CB"), "ALA2 lacks heavy atoms CB"),
        (lambda text: text.replace("ALA", "SER"), "SER2 lacks heavy atoms OG"),
        (lambda text: text.replace("ALA", "XYZ"), "XYZ2 is not a known residue"),
        (lambda text: text.replace(" HB3 ALA", " QQ  ALA"), "QQ of residue ALA2 is bonded to nothing"),
        (lambda text: text.replace(" HB3 ALA", " HB2 ALA"), "ALA2:HB2: the atom occurs twice"),
        (moved("HA", "     nan     nan     nan"), "ALA2:HA are not finite"),
        (
            lambda text: "".join(line for line in text.splitlines(True) if line[17:20] != "NME"),
            "lacks heavy atoms OXT; add it",
        ),
    ],
)
def test_one_line_that_names_the_thing(
    change: Callable[[str], str], says: str, alanine_dipeptide_pdb: Path, tmp_path: Path
) -> None:
    text = change(alanine_dipeptide_pdb.read_text())
    assert text != alanine_dipeptide_pdb.read_text()
    path = tmp_path / "bad.pdb"
    path.write_text(text)
    with pytest.raises(StructureError, match=says) as caught:
        Molecule.from_pdb(path)
    assert "\n" not in str(caught.value)


def test_overlapping_atoms(alanine_dipeptide_pdb: Path, tmp_path: Path) -> None:
    text = alanine_dipeptide_pdb.read_text()
    first, second = (next(line for line in text.splitlines() if f" {n} ALA" in line) for n in ("HB1", "HB2"))
    path = tmp_path / "bad.pdb"
    path.write_text(text.replace(second[30:54], first[30:54]))
    with pytest.raises(StructureError, match="ALA2:HB1 and ALA2:HB2 overlap"):
        Molecule.from_pdb(path)


def test_mirror_image_is_refused_where_the_backbone_map_is_for_l_residues(
    alanine_dipeptide_pdb: Path, tmp_path: Path
) -> None:
    lines = alanine_dipeptide_pdb.read_text().splitlines(True)
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    path = tmp_path / "d.pdb"
    path.write_text("".join(line[:30] + f"{-float(line[30:38]):8.3f}" + line[38:] for line in atoms))
    with pytest.raises(ForceFieldError, match="ALA2 have D chirality"):
        Molecule.from_pdb(path)
    assert Molecule.from_pdb(path, forcefield="amber14").n_atoms == 22


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"nothing\.pdb: cannot be read: No such file"):
        Molecule.from_pdb(tmp_path / "nothing.pdb")
    with pytest.raises(StructureError, match="cannot be read"):
        Molecule.from_pdb(tmp_path)
    binary = tmp_path / "b.pdb"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(StructureError, match="not a text file"):
        Molecule.from_pdb(binary)
    for text, says in (("data_x\n_cell.length_a 3\n", "no atom_site"), ("loop_ 1 2 'a", "not an mmCIF file")):
        cif = tmp_path / "c.cif"
        cif.write_text(text)
        with pytest.raises(StructureError, match=says):
            Molecule.from_pdb(cif)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"forcefield": "charm36m"}, "did you mean 'charmm36m'"),
        ({"forcefield": "nope.xml"}, "'nope.xml' does not exist"),
        ({"solvent": "tip3p"}, "unknown solvent 'tip3p'"),
        ({"temperature": -1}, "temperature must be positive"),
        ({"variants": {"HIS9": "HID"}}, "HIS9"),
        ({"forcefield": "tip3p.xml"}, r"ACE1 \(C2H3O1\) is unknown to tip3p.xml"),
    ],
)
def test_options(options: dict, says: str, alanine_dipeptide_pdb: Path) -> None:
    with pytest.raises(BoltzgenError, match=says) as caught:
        Molecule.from_pdb(alanine_dipeptide_pdb, **options)
    assert "\n" not in str(caught.value)


def test_states_that_do_not_exist() -> None:
    for name, options, says in (
        ("HIS", {"variants": {"HIS2": "FOO"}}, "HIS2 cannot be 'FOO': known states: HID, HIE, HIP"),
        ("CYS", {"ph": 9.0}, "no deprotonated CYS"),
    ):
        with pytest.raises(StructureError, match=says):
            Molecule.from_pdb(DATA / "capped" / f"{name}.pdb", **options)
