"""Atom and bond records of PDB and mmCIF text, before any choice is made among them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader

from boltzgen.errors import StructureError

__all__ = ["AtomRecord", "BondRecord", "FileRecords", "read_cif_records", "read_pdb_records"]

_TWO_LETTER_ELEMENTS = ("CL", "BR", "NA", "MG", "ZN", "SE")


@dataclass(frozen=True)
class AtomRecord:
    """One atom line; coordinates `xyz` in ångström, everything else as written."""

    name: str
    residue_name: str
    chain: str
    residue_id: str
    insertion_code: str
    altloc: str
    element: str
    serial: str
    model: str
    xyz: tuple[float, float, float]

    @property
    def residue_key(self) -> tuple[str, str, str]:
        return (self.chain, self.residue_id, self.insertion_code)

    @property
    def residue_label(self) -> str:
        return f"{self.residue_name}{self.residue_id}{self.insertion_code}"

    @property
    def label(self) -> str:
        return f"{self.residue_label}:{self.name}"


# A bond names its two atoms by serial number (PDB) or by (chain, residue id, insertion code, atom name) (mmCIF).
BondRecord = tuple[str, str] | tuple[tuple[str, str, str, str], tuple[str, str, str, str]]


@dataclass(frozen=True)
class FileRecords:
    """All atoms of all models, explicit bonds, and whether a real unit cell was written."""

    atoms: tuple[AtomRecord, ...]
    bonds: tuple[BondRecord, ...]
    has_box: bool


def read_pdb_records(text: str, source: str) -> FileRecords:
    """Parse the ATOM, HETATM, MODEL, CONECT and CRYST1 records of PDB text.

    Raises
    ------
    StructureError
        If there is no atom record, or an atom record does not follow the PDB columns.
    """
    atoms: list[AtomRecord] = []
    bonds: list[BondRecord] = []
    model = "1"
    has_box = False
    for number, line in enumerate(text.splitlines(), 1):
        record = line[:6].strip()
        if record == "MODEL":
            model = line[6:].strip() or str(number)
        elif record in ("ATOM", "HETATM"):
            atoms.append(_pdb_atom(line, number, model, source))
        elif record == "CONECT":
            serials = [line[i : i + 5].strip() for i in range(6, min(len(line.rstrip()), 31), 5)]
            bonds.extend((serials[0], other) for other in serials[1:] if other)
        elif record == "CRYST1":
            # 1 x 1 x 1 ångström is the placeholder of structures without a crystal.
            has_box = line[6:33].split() != ["1.000"] * 3
    if not atoms:
        raise StructureError(
            f"{source}: no ATOM or HETATM record: not a PDB file (mmCIF files must end in .cif or .mmcif)"
        )
    return FileRecords(tuple(atoms), tuple(bonds), has_box)


def _pdb_atom(line: str, number: int, model: str, source: str) -> AtomRecord:
    try:
        xyz = (float(line[30:38]), float(line[38:46]), float(line[46:54]))
    except ValueError as error:
        raise StructureError(f"{source}, line {number}: no coordinates in columns 31-54: {line.strip()!r}") from error
    name = line[12:16].strip()
    residue_id = line[22:26].strip()
    if not name or not residue_id:
        raise StructureError(f"{source}, line {number}: atom name or residue number missing: {line.strip()!r}")
    return AtomRecord(
        name=name,
        residue_name=line[17:21].strip(),
        chain=line[21:22].strip(),
        residue_id=residue_id,
        insertion_code=line[26:27].strip(),
        altloc=line[16:17].strip(),
        element=line[76:78].strip() or _guess_element(name, line[12:14]),
        serial=line[6:11].strip(),
        model=model,
        xyz=xyz,
    )


def _guess_element(name: str, columns: str) -> str:
    """Element from the atom name, for files that leave columns 77-78 blank."""
    letters = name.lstrip("0123456789").upper()
    # A two-letter element starts in column 13; " CA " is an alpha carbon, "CA  " calcium.
    if columns[:1].strip() and letters[:2] in _TWO_LETTER_ELEMENTS:
        return letters[:2].capitalize()
    return letters[:1]


def read_cif_records(text: str, source: str) -> FileRecords:
    """Parse the atom_site, struct_conn and cell categories of mmCIF text.

    Raises
    ------
    StructureError
        If the text is not mmCIF, or has no atom_site category with coordinates.
    """
    blocks: list = []
    try:
        PdbxReader(io.StringIO(text)).read(blocks)
        rows = _cif_rows(blocks[0], "atom_site")
    except Exception as error:
        raise StructureError(f"{source}: not an mmCIF file: {str(error).strip() or type(error).__name__}") from error
    if not rows:
        raise StructureError(f"{source}: no atoms: the file has no atom_site category")
    try:
        atoms = tuple(_cif_atom(row) for row in rows)
    except (KeyError, ValueError) as error:
        raise StructureError(f"{source}: an atom_site row lacks a name, a residue or coordinates: {error}") from error
    bonds = []
    for row in _cif_rows(blocks[0], "struct_conn"):
        if row.get("conn_type_id", "")[:6] in ("covale", "disulf", "modres"):
            bonds.append((_cif_partner(row, "ptnr1"), _cif_partner(row, "ptnr2")))
    return FileRecords(atoms, tuple(bonds), has_box=bool(_cif_rows(blocks[0], "cell")))


def _cif_rows(block: object, category: str) -> list[dict[str, str]]:
    table = block.getObj(category)  # type: ignore[attr-defined]
    if table is None:
        return []
    names = table.getAttributeList()
    return [
        {name: value for name, value in zip(names, row, strict=True) if value not in (".", "?")}
        for row in table.getRowList()
    ]


def _first(row: dict[str, str], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(names[0])


def _cif_atom(row: dict[str, str]) -> AtomRecord:
    name = _first(row, ("auth_atom_id", "label_atom_id"))
    return AtomRecord(
        name=name,
        residue_name=_first(row, ("auth_comp_id", "label_comp_id")),
        chain=row.get("auth_asym_id") or row.get("label_asym_id", ""),
        residue_id=_first(row, ("auth_seq_id", "label_seq_id")),
        insertion_code=row.get("pdbx_PDB_ins_code", ""),
        altloc=row.get("label_alt_id", ""),
        element=row["type_symbol"].capitalize() if "type_symbol" in row else _guess_element(name, "  "),
        serial=row.get("id", ""),
        model=row.get("pdbx_PDB_model_num", "1"),
        xyz=(float(row["Cartn_x"]), float(row["Cartn_y"]), float(row["Cartn_z"])),
    )


def _cif_partner(row: dict[str, str], partner: str) -> tuple[str, str, str, str]:
    chain = row.get(f"{partner}_auth_asym_id") or row.get(f"{partner}_label_asym_id", "")
    residue = row.get(f"{partner}_auth_seq_id") or row.get(f"{partner}_label_seq_id", "")
    name = row.get(f"{partner}_auth_atom_id") or row.get(f"{partner}_label_atom_id", "")
    return (chain, residue, row.get(f"pdbx_{partner}_PDB_ins_code", ""), name)
