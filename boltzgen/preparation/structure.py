"""Structure files: PDB and mmCIF records into an OpenMM Topology, with every choice made on the way written down."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openmm import unit
from openmm.app import PDBFile, Topology, element
from openmm.app.topology import Atom
from scipy.spatial import cKDTree

from boltzgen.errors import StructureError
from boltzgen.preparation.structure_records import (
    AtomRecord,
    BondRecord,
    FileRecords,
    read_cif_records,
    read_pdb_records,
)

__all__ = ["PROTONATION_NAMES", "Structure", "check_connected", "d_residues", "read_structure"]

_log = logging.getLogger(__name__)

# Names that name a residue and its protonation at once, as (residue, variant of OpenMM's hydrogens.xml).
PROTONATION_NAMES = {
    **dict.fromkeys(("HID", "HSD"), ("HIS", "HID")),
    **dict.fromkeys(("HIE", "HSE"), ("HIS", "HIE")),
    **dict.fromkeys(("HIP", "HSP"), ("HIS", "HIP")),
    "ASH": ("ASP", "ASH"),
    "GLH": ("GLU", "GLH"),
    "LYN": ("LYS", "LYN"),
    "CYX": ("CYS", "CYX"),
}
_WATER = {"HOH", "H2O", "WAT", "SOL", "TIP", "TIP3", "TP3", "T4P", "TIP4", "TIP5", "SPC", "DOD"}
_IONS = {
    "NA",
    "CL",
    "K",
    "MG",
    "CA",
    "ZN",
    "LI",
    "RB",
    "CS",
    "BR",
    "IOD",
    "SOD",
    "CLA",
    "POT",
    "CES",
    "CAL",
    "MN",
    "FE",
}
# Two atoms nearer than this are one atom written twice: the shortest bond of a peptide (O-H) is 0.096 nm.
_OVERLAP_NM = 0.05


@dataclass(frozen=True)
class Structure:
    """One molecule as read from a file.

    Attributes
    ----------
    topology : openmm.app.Topology
        Standard residue and atom names, with bonds.
    positions : (N, 3) float64 array
        Nanometres.
    atom_names, residue_names : tuples of str
        As the file writes them: one per atom, one per residue.
    notes : tuple of str
        Choices made while reading, for the report.
    """

    topology: Topology
    positions: np.ndarray
    atom_names: tuple[str, ...]
    residue_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_structure(path: str | Path) -> Structure:
    """Read one molecule from a PDB or mmCIF file.

    The first model and, per atom, the first alternate location are taken.

    Parameters
    ----------
    path : path-like
        File ending in .pdb, .ent, .cif or .mmcif.

    Returns
    -------
    Structure

    Raises
    ------
    StructureError
        If the file is missing, unreadable or empty; holds water, ions, several chains or several molecules; or has
        coordinates that are not finite or that coincide.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StructureError(f"{path}: not a text file, so neither PDB nor mmCIF") from error
    except OSError as error:
        raise StructureError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise StructureError(f"{path}: the file is empty")
    is_cif = path.suffix.lower() in (".cif", ".mmcif")
    records = read_cif_records(text, str(path)) if is_cif else read_pdb_records(text, str(path))
    atoms, notes = _first_model_and_altloc(records)
    _refuse_surroundings(atoms, str(path))
    positions = np.array([atom.xyz for atom in atoms], dtype=float) / 10.0
    _check_positions(atoms, positions, str(path))
    topology, residue_names = _build_topology(atoms, positions, records.bonds, str(path))
    if records.has_box:
        raise StructureError(
            f"{path}: the file has a periodic box (unit cell), and boltzgen treats one molecule in open space; "
            "if the box does not matter, remove the CRYST1 line (mmCIF: the _cell items)"
        )
    for note in notes:
        _log.info("%s: %s", path.name, note)
    return Structure(topology, positions, tuple(atom.name for atom in atoms), residue_names, tuple(notes))


def check_connected(topology: Topology) -> None:
    """Raise StructureError unless bonds connect all atoms."""
    neighbours: dict[Atom, list[Atom]] = {atom: [] for atom in topology.atoms()}
    if not neighbours:
        raise StructureError("the molecule has no atoms")
    for first, second in topology.bonds():
        neighbours[first].append(second)
        neighbours[second].append(first)
    start = next(iter(neighbours))
    reached, frontier = {start}, [start]
    while frontier:
        new = [atom for atom in neighbours[frontier.pop()] if atom not in reached]
        reached.update(new)
        frontier += new
    stray = next((atom for atom in neighbours if atom not in reached), None)
    if stray is not None:
        labels = [f"{a.residue.name}{a.residue.id}:{a.name}" for a in (stray, start)]
        raise StructureError(
            f"{labels[0]} is not connected to {labels[1]} by bonds: a generator draws one molecule; keep one, or add "
            "the missing bonds (CONECT records)"
        )


def d_residues(topology: Topology, positions: np.ndarray) -> list[str]:
    """Labels of the amino acids whose alpha carbon has D chirality; positions (N, 3) in any unit."""
    found = []
    for residue in topology.residues():
        atom = {a.name: positions[a.index] for a in residue.atoms()}
        if {"N", "CA", "C", "CB"} <= atom.keys():
            n, c, cb = (atom[name] - atom["CA"] for name in ("N", "C", "CB"))
            if np.dot(np.cross(n, c), cb) < 0:
                found.append(f"{residue.name}{residue.id}")
    return found


def _first_model_and_altloc(records: FileRecords) -> tuple[list[AtomRecord], list[str]]:
    notes = []
    models = list(dict.fromkeys(atom.model for atom in records.atoms))
    atoms = [atom for atom in records.atoms if atom.model == models[0]]
    if len(models) > 1:
        notes.append(f"{len(models)} models in the file: the first (model {models[0]}) is used")
    chosen: dict[tuple[str, str, str, str], AtomRecord] = {}
    alternates: Counter[str] = Counter()
    for atom in atoms:
        key = (*atom.residue_key, atom.name)
        if key not in chosen:
            chosen[key] = atom
            continue
        if atom.altloc == chosen[key].altloc:
            raise StructureError(f"{atom.label}: the atom occurs twice; give each atom of a residue its own name")
        alternates[chosen[key].altloc or "blank"] += 1
    if alternates:
        kept = ", ".join(sorted(alternates))
        notes.append(f"alternate locations of {sum(alternates.values())} atoms: the first one written ({kept}) is used")
    return _one_residue_name_per_site(list(chosen.values()), notes), notes


def _one_residue_name_per_site(atoms: list[AtomRecord], notes: list[str]) -> list[AtomRecord]:
    """Where two residues share one site (a point mutation as altlocs), keep the first."""
    names: dict[tuple[str, str, str], str] = {}
    kept = []
    for atom in atoms:
        if names.setdefault(atom.residue_key, atom.residue_name) == atom.residue_name:
            kept.append(atom)
    if len(kept) < len(atoms):
        notes.append("several residues share one site: the first one written is used")
    return kept


def _refuse_surroundings(atoms: Sequence[AtomRecord], source: str) -> None:
    residues = Counter((atom.residue_key, atom.residue_name.upper()) for atom in atoms)
    water = [key for (key, name) in residues if name in _WATER]
    if water:
        raise StructureError(
            f"{source}: {len(water)} water molecule(s) (first: residue {water[0][1]}): a generator draws one molecule "
            "without explicit solvent; remove the water; an implicit solvent is an option (solvent='obc2')"
        )
    ions = [(key, name) for (key, name), count in residues.items() if count == 1 and name.rstrip("+-12") in _IONS]
    if ions:
        raise StructureError(
            f"{source}: ion {ions[0][1]} (residue {ions[0][0][1]}): a generator draws one molecule; remove the ions"
        )
    chains = list(dict.fromkeys(atom.chain for atom in atoms))
    if len(chains) > 1:
        names = ", ".join(repr(chain) for chain in chains)
        raise StructureError(
            f"{source}: {len(chains)} chains ({names}): a generator draws one molecule; keep one chain in the file"
        )


def _check_positions(atoms: Sequence[AtomRecord], positions: np.ndarray, source: str) -> None:
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if bad.size:
        raise StructureError(f"{source}: the coordinates of {atoms[bad[0]].label} are not finite numbers")
    pairs = cKDTree(positions).query_pairs(_OVERLAP_NM)
    if pairs:
        i, j = min(pairs)
        distance = float(np.linalg.norm(positions[i] - positions[j]))
        raise StructureError(f"{source}: atoms {atoms[i].label} and {atoms[j].label} overlap ({distance:.3f} nm apart)")


def _build_topology(
    atoms: Sequence[AtomRecord], positions: np.ndarray, bonds: Sequence[BondRecord], source: str
) -> tuple[Topology, tuple[str, ...]]:
    PDBFile._loadNameReplacementTables()
    topology = Topology()
    chain = topology.addChain(atoms[0].chain)
    residue_names: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    by_serial = {}
    by_name = {}
    last = None
    for atom in atoms:
        if atom.residue_key != last:
            if atom.residue_key in seen:
                raise StructureError(
                    f"{source}: the atoms of residue {atom.residue_label} do not stand together: sort the file"
                )
            seen.add(atom.residue_key)
            last = atom.residue_key
            standard = _standard_residue_name(atom.residue_name)
            residue = topology.addResidue(standard, chain, atom.residue_id, atom.insertion_code)
            residue_names.append(atom.residue_name)
            replacements = PDBFile._atomNameReplacements.get(standard, {})
        name = replacements.get(atom.name, atom.name)
        try:
            symbol = element.get_by_symbol(atom.element)
        except KeyError:
            raise StructureError(f"{source}: {atom.label}: the element {atom.element!r} does not exist") from None
        by_serial[atom.serial] = by_name[(*atom.residue_key, atom.name)] = topology.addAtom(
            name, symbol, residue, atom.serial
        )
    topology.createStandardBonds()
    topology.createDisulfideBonds(positions * unit.nanometer)
    existing = {frozenset(bond) for bond in topology.bonds()}
    for first, second in bonds:
        table: dict = by_serial if isinstance(first, str) else by_name
        pair = frozenset(atom for atom in (table.get(first), table.get(second)) if atom is not None)
        if len(pair) == 2 and pair not in existing:
            topology.addBond(*sorted(pair, key=lambda atom: atom.index))
            existing.add(pair)
    return topology, tuple(residue_names)


def _standard_residue_name(name: str) -> str:
    if name in PROTONATION_NAMES:
        return PROTONATION_NAMES[name][0]
    return PDBFile._residueNameReplacements.get(name, name)
