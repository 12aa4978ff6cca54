"""The set-up of a molecule as a record and as a short readable table."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openmm import unit

from boltzgen.preparation.term_audit import TermAudit

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["SetupRecord", "format_report"]


@dataclass(frozen=True)
class SetupRecord:
    """What was read, added, chosen and checked on the way from a file to a System.

    Attributes
    ----------
    source : str
        File name, without its folder.
    notes : tuple of str
    added_hydrogens : mapping of residue label to atom names
    removed_hydrogens : tuple of atom labels
    states : tuple of str
        Protonation states, tautomers, disulfides, termini.
    audit : TermAudit or None
        None where the System was given.
    """

    source: str
    notes: tuple[str, ...] = ()
    added_hydrogens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    removed_hydrogens: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    audit: TermAudit | None = None


def format_report(molecule: "Molecule") -> str:
    """Lay out the set-up of a molecule as lines of label and text."""
    setup, origin = molecule.setup, molecule.provenance
    residues = " ".join(f"{r.name}{r.id}" for r in molecule.topology.residues())
    rows = [
        ("structure", setup.source),
        ("residues", residues),
        ("atoms", f"{molecule.n_atoms} ({len(molecule.heavy_atoms)} heavy, {len(molecule.hydrogens)} hydrogen)"),
        ("hydrogens added", _grouped(setup.added_hydrogens)),
        ("hydrogens removed", ", ".join(setup.removed_hydrogens)),
        *(("state", state) for state in setup.states),
        ("force field", _force_field(molecule)),
        *(("sha256", f"{file} {digest}") for file, digest in zip(origin.files, origin.sha256, strict=True)),
        ("solvent", origin.solvent),
        ("temperature", f"{molecule.temperature.value_in_unit(unit.kelvin):g} K (kT = {molecule.kT:.4f} kJ/mol)"),
        ("constraints", _constraints(molecule)),
        ("terms", _terms(setup.audit)),
        ("torsions", ", ".join(molecule.torsions) or "none by name"),
        *(("note", note) for note in (*setup.notes, *origin.notes)),
    ]
    lines = []
    for label, text in rows:
        if text:
            lines += textwrap.wrap(text, 100, initial_indent=f"{label:<18}", subsequent_indent=" " * 18)
    return "\n".join(lines)


def _grouped(hydrogens: Mapping[str, tuple[str, ...]]) -> str:
    if not hydrogens:
        return "none"
    total = sum(len(names) for names in hydrogens.values())
    return f"{total}: " + "; ".join(f"{residue} {' '.join(names)}" for residue, names in hydrogens.items())


def _force_field(molecule: "Molecule") -> str:
    origin = molecule.provenance
    if not origin.files:
        return origin.force_field
    sources = ", ".join(origin.parameter_sources[:1]) or "unnamed parameters"
    return f"{origin.force_field}: {', '.join(origin.files)} ({sources}; OpenMM {origin.openmm_version})"


def _constraints(molecule: "Molecule") -> str:
    pairs = [f"{molecule.atom_label(i)}-{molecule.atom_label(j)} {nm:.4f}" for (i, j), nm in molecule.constraints]
    return f"{len(pairs)} bonds of constant length (nm): {', '.join(pairs)}" if pairs else ""


def _terms(audit: TermAudit | None) -> str:
    if audit is None:
        return "not audited"
    if not audit.residues:
        return "every bond and angle present"
    rows = [
        f"{r.residue} {r.impropers_present}/{r.impropers_expected} impropers"
        + (f" {r.cmaps_present}/{r.cmaps_expected} CMAP" if r.cmaps_expected else "")
        for r in audit.residues
    ]
    return "every bond and angle present; " + ", ".join(rows)
