"""Missing hydrogens: which protonation state each residue gets, why, and where the hydrogens go."""

import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from openmm.app.topology import Atom, Residue

from boltzgen.errors import StructureError
from boltzgen.preparation.structure import PROTONATION_NAMES, Structure, check_connected

__all__ = ["Protonated", "add_missing_hydrogens"]

_DATA = Path(app.__file__).parent / "data"
_VARIANT_NAMES = {name: variant for name, (_, variant) in PROTONATION_NAMES.items()} | {"CYM": "CYM"}
_N_TERMINI = {"NH3+": ("H", "H2", "H3"), "NH2": ("H", "H2")}
_C_TERMINI = ("COO-", "COOH")


@dataclass(frozen=True)
class Protonated:
    """A molecule with all its hydrogens.

    Attributes
    ----------
    topology : openmm.app.Topology
        Standard names, bonds.
    positions : (N, 3) float64 array
        Nanometres; only the added hydrogens are new.
    source : tuple of int or None
        For each atom its index in the structure that was read, None for an added hydrogen.
    states : tuple of str
        Protonation states, tautomers, disulfides and termini with the reason for each.
    removed : tuple of str
        Hydrogens of the file that an override took away.
    """

    topology: app.Topology
    positions: np.ndarray
    source: tuple[int | None, ...]
    states: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class _Hydrogen:
    name: str
    parent: str
    max_ph: float
    variants: tuple[str, ...]
    terminal: str | None


@lru_cache(maxsize=1)
def _hydrogen_table() -> dict[str, tuple[tuple[str, ...], tuple[_Hydrogen, ...]]]:
    """Per residue: its variants and its hydrogens, from OpenMM's hydrogens.xml."""
    table = {}
    for node in ET.parse(_DATA / "hydrogens.xml").getroot().findall("Residue"):
        hydrogens = tuple(
            _Hydrogen(
                h.attrib["name"],
                h.attrib["parent"],
                float(h.attrib.get("maxph", "inf")),
                tuple(h.attrib["variant"].split(",")) if "variant" in h.attrib else (),
                h.attrib.get("terminal"),
            )
            for h in node.findall("H")
        )
        table[node.attrib["name"]] = (tuple(v.attrib["name"] for v in node.findall("Variant")), hydrogens)
    return table


@lru_cache(maxsize=1)
def _heavy_atom_table() -> dict[str, frozenset[str]]:
    """Per residue the names of its heavy atoms, from OpenMM's residues.xml."""
    table = {}
    for node in ET.parse(_DATA / "residues.xml").getroot().findall("Residue"):
        names = {bond.attrib[end] for bond in node.findall("Bond") for end in ("from", "to")}
        table[node.attrib["name"]] = frozenset(n for n in names if not n.startswith(("-", "H")))
    return table


def add_missing_hydrogens(
    structure: Structure, ph: float = 7.0, variants: Mapping[str, str] | None = None
) -> Protonated:
    """Choose protonation states and add the hydrogens that the file does not have.

    A state is taken, in this order, from `variants`, from the residue's name (HSD, ASH, CYX, ...), from the hydrogens
    that the file has, and from `ph`; the tautomer of a neutral histidine follows possible hydrogen bonds.

    Parameters
    ----------
    structure : Structure
    ph : float
    variants : mapping, optional
        State by residue, e.g. {"HIS5": "HIE", "ASP3": "ASH"}, and {"N-terminus": "NH2"}, {"C-terminus": "COOH"}.

    Raises
    ------
    StructureError
        If heavy atoms are missing, bonds do not connect all atoms, or an override names no residue or state.
    """
    overrides = _Overrides(structure, dict(variants or {}))
    _check_heavy_atoms(structure)
    _check_atoms_are_bonded(structure)
    check_connected(structure.topology)
    wanted: list[list[tuple[str, str]] | None] = []
    states: list[str] = []
    open_histidines = []
    for residue in structure.topology.residues():
        chosen = _Choice(residue, structure, ph, overrides)
        wanted.append(chosen.hydrogens)
        states += chosen.states
        if chosen.is_open_histidine:
            open_histidines.append(residue.index)
    overrides.check_all_used()
    # Modeller writes its random starting positions from Python's global generator.
    random_state = random.getstate()
    random.seed(0)
    try:
        modeller = app.Modeller(structure.topology, structure.positions * unit.nanometer)
        actual = modeller.addHydrogens(
            pH=max(ph, 6.6) if open_histidines else ph,
            variants=wanted,
            platform=openmm.Platform.getPlatformByName("Reference"),
        )
    finally:
        random.setstate(random_state)
    for index in open_histidines:
        label = _label(structure, index)
        states.append(f"{label}: {actual[index]} (chosen by pH {ph:g} and hydrogen bonds)")
    return _trace(structure, modeller, tuple(states))


def _trace(structure: Structure, modeller: app.Modeller, states: tuple[str, ...]) -> Protonated:
    old = {(atom.residue.index, atom.name): atom for atom in structure.topology.atoms()}
    source = tuple(
        old[key].index if (key := (atom.residue.index, atom.name)) in old else None
        for atom in modeller.topology.atoms()
    )
    kept = set(source)
    removed = tuple(
        f"{_label(structure, atom.residue.index)}:{structure.atom_names[atom.index]}"
        for atom in structure.topology.atoms()
        if atom.index not in kept
    )
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer), dtype=float)
    for new, index in enumerate(source):
        if index is not None:
            positions[new] = structure.positions[index]
    return Protonated(_with_sorted_bonds(modeller.topology), positions, source, states, removed)


def _with_sorted_bonds(topology: app.Topology) -> app.Topology:
    """Copy; OpenMM orders the terms of a System by the topology's bonds, so one molecule gets one System hash."""
    result = app.Topology()
    atoms = []
    for chain in topology.chains():
        new_chain = result.addChain(chain.id)
        for residue in chain.residues():
            new_residue = result.addResidue(residue.name, new_chain, residue.id, residue.insertionCode)
            atoms += [result.addAtom(atom.name, atom.element, new_residue) for atom in residue.atoms()]
    for i, j in sorted({(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds()}):
        result.addBond(atoms[i], atoms[j])
    return result


class _Overrides:
    """The user's choices by residue label, each of which must be used."""

    def __init__(self, structure: Structure, variants: dict[str, str]) -> None:
        self._variants = {key.upper(): value.upper() for key, value in variants.items()}
        self._unused = set(self._variants)
        self._known = [_label(structure, i) for i in range(structure.topology.getNumResidues())]

    def get(self, *labels: str) -> str | None:
        for label in labels:
            if label.upper() in self._variants:
                self._unused.discard(label.upper())
                return self._variants[label.upper()]
        return None

    def check_all_used(self) -> None:
        if self._unused:
            raise StructureError(
                f"variants name {', '.join(sorted(self._unused))}, which this molecule does not have or "
                f"which have one state only; residues: {', '.join(self._known)}; also N-terminus, C-terminus"
            )


class _Choice:
    """The hydrogens of one residue: the list Modeller gets (None where it shall choose), and what to report."""

    def __init__(self, residue: Residue, structure: Structure, ph: float, overrides: _Overrides) -> None:
        self.states: list[str] = []
        self.hydrogens: list[tuple[str, str]] | None = None
        self.is_open_histidine = False
        if residue.name not in _hydrogen_table():
            return
        self._residue = residue
        self._label = _label(structure, residue.index)
        self._file_name = structure.residue_names[residue.index]
        self._ph = ph
        self._overrides = overrides
        self._outside = _bonds_outside(structure.topology, residue)
        self._known_variants, self._table = _hydrogen_table()[residue.name]
        self._in_file = {atom.name for atom in residue.atoms() if atom.element.symbol == "H"}
        variant = self._variant()
        if self.is_open_histidine and not self._is_terminal():
            return
        self.is_open_histidine = False
        chosen = [h for h in self._table if self._belongs(h, variant)]
        self.hydrogens = [(h.name, h.parent) for h in chosen]
        self._n_terminus()
        self._c_terminus()

    def _is_terminal(self) -> bool:
        names = {atom.name for atom in self._residue.atoms()}
        return {"N", "CA", "C"} <= names and not {"N", "C"} <= self._outside.keys()

    def _belongs(self, hydrogen: _Hydrogen, variant: str | None) -> bool:
        if hydrogen.terminal is not None:
            return False  # handled by _n_terminus
        if hydrogen.variants:
            return variant in hydrogen.variants
        return self._ph <= hydrogen.max_ph

    def _variant(self) -> str | None:
        if not self._known_variants:
            return None
        disulfide = self._outside.get("SG")
        if disulfide is not None:
            if (asked := self._overrides.get(self._label)) not in (None, "CYX"):
                raise StructureError(f"{self._label} has a disulfide bond in the file, so it cannot be {asked}")
            self.states.append(f"{self._label}: disulfide bond to {disulfide.residue.name}{disulfide.residue.id}")
            return "CYX"
        variant, reason = self._variant_and_reason()
        if not self.is_open_histidine:
            self.states.append(f"{self._label}: {variant} ({reason})")
        return variant

    def _variant_and_reason(self) -> tuple[str, str]:
        states = tuple(v for v in self._known_variants if v not in ("HIN", "CYX"))
        asked = self._overrides.get(self._label)
        if asked is not None:
            variant = _VARIANT_NAMES.get(asked, asked)
            if variant not in states:
                raise StructureError(f"{self._label} cannot be {asked!r}: known states: {', '.join(states)}")
            return variant, "as asked"
        if self._file_name in PROTONATION_NAMES and self._file_name != "CYX":
            return PROTONATION_NAMES[self._file_name][1], "by the residue's name"
        if self._in_file:
            sites = {v: {h.name for h in self._table if v in h.variants} for v in states}
            all_sites = set().union(*sites.values())
            for variant, names in sites.items():
                if names == self._in_file & all_sites:
                    return variant, "by the file's hydrogens"
        if self._residue.name == "HIS":
            if self._ph <= 6.5:
                return "HIP", f"chosen by pH {self._ph:g}"
            self.is_open_histidine = not self._is_terminal()
            return "HIE", f"chosen by pH {self._ph:g}; the common tautomer"
        protonated = next(h for h in self._table if h.variants and h.max_ph < float("inf"))
        has_proton = self._ph <= protonated.max_ph
        fitting = [v for v in states if (v in protonated.variants) == has_proton]
        if not fitting:
            raise StructureError(
                f"{self._label}: no deprotonated {self._residue.name} is known (pH {self._ph:g}); choose another ph"
            )
        return fitting[0], f"chosen by pH {self._ph:g}"

    def _n_terminus(self) -> None:
        names = {atom.name for atom in self._residue.atoms()}
        if not {"N", "CA", "C"} <= names or "N" in self._outside or self.hydrogens is None:
            return
        is_proline = self._residue.name == "PRO"
        options = {
            k: tuple(n for n in v if not is_proline or n != ("H" if k == "NH3+" else "H2"))
            for k, v in _N_TERMINI.items()
        }
        asked, reason = self._overrides.get("N-TERMINUS"), "as asked"
        if asked is None:
            present = len({"H", "H2", "H3"} & self._in_file)
            neutral = self._in_file and present == len(options["NH2"])
            asked, reason = (
                ("NH2", "by the file's hydrogens") if neutral else ("NH3+", "charged unless asked otherwise")
            )
        if asked not in options:
            raise StructureError(f"the N-terminus cannot be {asked!r}: known: {', '.join(options)}")
        self.hydrogens = [h for h in self.hydrogens if h[1] != "N"]
        # Hydrogens on N that the file has under other names are matched by Modeller.
        self.hydrogens = [(name, "N") for name in options[asked]] + self.hydrogens
        self.states.append(f"N-terminus {self._label}: {asked} ({reason})")

    def _c_terminus(self) -> None:
        names = {atom.name for atom in self._residue.atoms()}
        if not {"N", "CA", "C", "OXT"} <= names or "C" in self._outside or self.hydrogens is None:
            return
        asked, reason = self._overrides.get("C-TERMINUS"), "as asked"
        if asked is None:
            acid = "HXT" in self._in_file
            asked, reason = ("COOH", "by the file's hydrogens") if acid else ("COO-", "charged unless asked otherwise")
        if asked not in _C_TERMINI:
            raise StructureError(f"the C-terminus cannot be {asked!r}: known: {', '.join(_C_TERMINI)}")
        if asked == "COOH":
            self.hydrogens.append(("HXT", "OXT"))
        self.states.append(f"C-terminus {self._label}: {asked} ({reason})")


def _label(structure: Structure, residue_index: int) -> str:
    residue = list(structure.topology.residues())[residue_index]
    return f"{structure.residue_names[residue_index]}{residue.id}{residue.insertionCode.strip()}"


def _bonds_outside(topology: app.Topology, residue: Residue) -> dict[str, Atom]:
    """Atom name in `residue` -> the atom of another residue it is bonded to."""
    outside = {}
    for first, second in topology.bonds():
        for inner, outer in ((first, second), (second, first)):
            if inner.residue is residue and outer.residue is not residue:
                outside[inner.name] = outer
    return outside


def _check_heavy_atoms(structure: Structure) -> None:
    for residue in structure.topology.residues():
        expected = set(_heavy_atom_table().get(residue.name, ()))
        if not expected:
            continue
        present = {atom.name for atom in residue.atoms()}
        outside = _bonds_outside(structure.topology, residue)
        is_last = residue.index == structure.topology.getNumResidues() - 1
        if "C" in outside or not is_last or residue.name in ("ACE", "NME", "NH2", "FOR"):
            expected.discard("OXT")
        missing = sorted(expected - present)
        if missing:
            remedy = (
                "add it, or an NME or NH2 cap"
                if missing == ["OXT"]
                else "complete the residue, for example with PDBFixer"
            )
            raise StructureError(
                f"residue {_label(structure, residue.index)} lacks heavy atoms {', '.join(missing)}; {remedy}"
            )


def _check_atoms_are_bonded(structure: Structure) -> None:
    bonded = {atom for bond in structure.topology.bonds() for atom in bond}
    known = _hydrogen_table()
    for atom in structure.topology.atoms():
        if atom in bonded or structure.topology.getNumAtoms() == 1:
            continue
        label = f"{_label(structure, atom.residue.index)}"
        if atom.residue.name not in known:
            raise StructureError(
                f"residue {label} is not a known residue and the file has no bonds for it (CONECT records); known: "
                f"{', '.join(sorted(name for name in known if re.fullmatch('[A-Z]{3}', name)))}, NH2"
            )
        raise StructureError(
            f"atom {structure.atom_names[atom.index]} of residue {label} is bonded to nothing: its name is unknown"
        )
