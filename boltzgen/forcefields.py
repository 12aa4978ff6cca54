"""Force fields by name: which files they are, whose parameters they hold, and Systems built from them."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import openmm
from openmm import app

from boltzgen.errors import ForceFieldError
from boltzgen.term_audit import TermAudit, audit_terms

__all__ = ["FORCE_FIELDS", "SOLVENTS", "BuiltSystem", "Provenance", "build_system"]

# OpenMM's charmm36.xml holds the 2015 C36 parameters; C36m came with charmm36_2024.xml in OpenMM 8.3.
FORCE_FIELDS = {
    "charmm36m": "charmm36_2024.xml",
    "charmm36": "charmm36.xml",
    "amber19": "amber19-all.xml",
    "amber14": "amber14-all.xml",
    "amber99sbildn": "amber99sbildn.xml",
    "amber99sb": "amber99sb.xml",
    "amber96": "amber96.xml",
}
SOLVENTS = {name: f"implicit/{name}.xml" for name in ("hct", "obc1", "obc2", "gbn", "gbn2")}
_REQUIRED_SOURCE = {"charmm36m": "par_all36m_prot.prm"}
_DATA = Path(app.__file__).parent / "data"
_CAPS = {"ACE", "NME", "NH2", "FOR"}


@dataclass(frozen=True)
class Provenance:
    """Where the energy function comes from.

    Attributes
    ----------
    force_field : str
        Name as asked for, or "OpenMM System".
    files : tuple of str
        XML files, in the order of loading.
    parameter_sources : tuple of str
        Parameter files named in the header of the XML files, e.g. par_all36m_prot.prm.
    sha256 : tuple of str
        One hash per file.
    solvent : str
        "none" or the name of the implicit solvent.
    openmm_version : str
    notes : tuple of str
    """

    force_field: str
    files: tuple[str, ...]
    parameter_sources: tuple[str, ...]
    sha256: tuple[str, ...]
    solvent: str
    openmm_version: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuiltSystem:
    """An OpenMM System in the atom order of the Topology it was asked for, with where it comes from and its audit."""

    system: openmm.System
    provenance: Provenance
    audit: TermAudit


def build_system(topology: app.Topology, forcefield: str | Path, solvent: str | None) -> BuiltSystem:
    """Build a System without cutoff, constraints or centre-of-mass removal, and check that no term was lost.

    Parameters
    ----------
    topology : openmm.app.Topology
        Complete molecule with standard names, hydrogens and bonds.
    forcefield : str or path
        A key of `FORCE_FIELDS`, or the path of an OpenMM XML file.
    solvent : str or None
        A key of `SOLVENTS`, "none" or None.

    Raises
    ------
    ForceFieldError
        If a name or file is unknown, a residue matches no template, or a term is missing in the result.
    """
    name, files = _forcefield_files(forcefield)
    solvent = _solvent_name(solvent)
    if solvent != "none":
        files = (*files, SOLVENTS[solvent])
    loaded = _load(files)
    provenance = _provenance(name, files, solvent)
    is_charmm = any("charmm" in Path(file).name for file in files)
    system = _create_system(loaded, merge_caps(topology) if is_charmm else topology, topology, name)
    audit = audit_terms(topology, system, charmm=name == "charmm36m")
    audit.raise_if_incomplete(name)
    return BuiltSystem(system, provenance, audit)


def merge_caps(topology: app.Topology) -> app.Topology:
    """Copy a Topology with ACE, NME and NH2 caps made part of the neighbouring amino acid.

    OpenMM's CHARMM files describe caps as patches of an amino acid. Caps that are residues of their own match a patch
    over several residues, and then the script that adds harmonic impropers, which looks atoms up residue by residue,
    silently leaves them out (0 instead of 4 for ACE-ALA-NME).

    Returns
    -------
    openmm.app.Topology
        Same atoms in the same order; only the residues differ.
    """
    merged = app.Topology()
    atoms = {}
    for chain in topology.chains():
        new_chain = merged.addChain(chain.id)
        residues = list(chain.residues())
        hosts = [_host(residues, i) for i in range(len(residues))]
        target = None
        for i, residue in enumerate(residues):
            if i == 0 or hosts[i] != hosts[i - 1]:
                host = residues[hosts[i]]
                target = merged.addResidue(host.name, new_chain, host.id, host.insertionCode)
            for atom in residue.atoms():
                # Only elements and bonds take part in template matching; distinct names keep the residue well formed.
                label = atom.name if hosts[i] == i else f"{residue.name}_{atom.name}"
                atoms[atom] = merged.addAtom(label, atom.element, target)
    for first, second in topology.bonds():
        merged.addBond(atoms[first], atoms[second])
    return merged


def _host(residues: Sequence[app.topology.Residue], i: int) -> int:
    """Index of the residue that residue i becomes part of: its neighbour for a cap, else itself."""
    if residues[i].name not in _CAPS or len(residues) == 1:
        return i
    if i == 0 and residues[1].name not in _CAPS:
        return 1
    if i == len(residues) - 1 and residues[i - 1].name not in _CAPS:
        return i - 1
    return i


def _forcefield_files(forcefield: str | Path) -> tuple[str, tuple[str, ...]]:
    text = str(forcefield)
    if text.lower() in FORCE_FIELDS:
        return text.lower(), (FORCE_FIELDS[text.lower()],)
    if text.endswith(".xml"):
        if Path(text).is_file():
            return text, (str(Path(text).resolve()),)
        if (_DATA / text).is_file():
            return text, (text,)
        raise ForceFieldError(f"force-field file {text!r} does not exist, neither here nor in OpenMM's data folder")
    close = get_close_matches(text.lower(), FORCE_FIELDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ForceFieldError(
        f"unknown force field {text!r}: {hint}known: {', '.join(FORCE_FIELDS)}, or the path of an OpenMM XML file"
    )


def _solvent_name(solvent: str | None) -> str:
    name = "none" if solvent is None else str(solvent).lower()
    if name not in ("none", "vacuum", *SOLVENTS):
        raise ForceFieldError(f"unknown solvent {solvent!r}: known: none, {', '.join(SOLVENTS)}")
    return "none" if name == "vacuum" else name


# CHARMM36m takes 4 s to load; its 320 patches are the reason.
@lru_cache(maxsize=8)
def _load(files: tuple[str, ...]) -> app.ForceField:
    try:
        return app.ForceField(*files)
    except Exception as error:
        raise ForceFieldError(
            f"{', '.join(files)}: cannot be loaded by OpenMM {openmm.__version__}: {error}"
        ) from error


def _create_system(loaded: app.ForceField, matched: app.Topology, topology: app.Topology, name: str) -> openmm.System:
    try:
        unmatched = loaded.getUnmatchedResidues(matched)
    except Exception:  # a diagnosis only: createSystem below decides
        unmatched = []
    try:
        system = loaded.createSystem(
            matched, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
        )
    except Exception as error:
        raise ForceFieldError(_explain(error, unmatched, loaded, name)) from error
    if system.getNumParticles() != topology.getNumAtoms():
        raise ForceFieldError(
            f"{name} adds particles without an atom (virtual sites, Drude); such force fields are not supported"
        )
    return system


def _explain(error: Exception, unmatched: Sequence[app.topology.Residue], loaded: app.ForceField, name: str) -> str:
    known = "amino acids and caps" if "ALA" in loaded._templates else ", ".join(sorted(loaded._templates)[:8])
    summary = f"{name} knows {len(loaded._templates)} residues ({known} among them)"
    text = " ".join(str(error).split())
    match = re.search(r"residue \d+ \((\w+)\)", text)
    residue = f"{unmatched[0].name}{unmatched[0].id}" if unmatched else match.group(1) if match else None
    if residue is None:
        return f"{name} cannot describe this molecule: {text}"
    if residue.rstrip("0123456789-") in loaded._templates:
        return f"residue {residue} does not match {name}'s definition of it: {text}"
    return f"residue {residue} is unknown to {name}: {summary}; give a force-field XML file that holds it"


def _provenance(name: str, files: tuple[str, ...], solvent: str) -> Provenance:
    sources: list[str] = []
    hashes = []
    for file in _with_includes(files):
        content = file.read_bytes()
        hashes.append(hashlib.sha256(content).hexdigest())
        header = content[: content.find(b"</Info>") + 1].decode(errors="replace")
        sources += [Path(source).name for source in re.findall(r"<Source[^>]*>([^<]*)</Source>", header)]
    required = _REQUIRED_SOURCE.get(name)
    if required and required not in sources:
        raise ForceFieldError(
            f"{name} must come from {required}, but the header of {files[0]} (OpenMM {openmm.__version__}) does not name it; "
            "OpenMM >= 8.3 ships the right file"
        )
    notes = []
    if name == "charmm36":
        notes.append("charmm36 is the 2015 C36, not CHARMM36m")
    if solvent != "none" and "charmm" in files[0]:
        notes.append(
            f"{solvent.upper()} was not fitted for CHARMM36m; the combination is allowed, its accuracy untested"
        )
    # Protein parameters first: the header also lists lipids, sugars and nucleic acids.
    sources.sort(key=lambda source: (not source.endswith(".prm"), "prot" not in source))
    return Provenance(
        force_field=name,
        files=tuple(Path(file).name if Path(file).is_absolute() else file for file in _names_with_includes(files)),
        parameter_sources=tuple(dict.fromkeys(source for source in sources if not source.endswith(".rtf"))),
        sha256=tuple(hashes),
        solvent=solvent,
        openmm_version=openmm.__version__,
        notes=tuple(notes),
    )


def _names_with_includes(files: Sequence[str]) -> list[str]:
    names = []
    for file in files:
        names.append(file)
        text = (Path(file) if Path(file).is_absolute() else _DATA / file).read_text(errors="replace")[:100_000]
        names += re.findall(r'<Include file="([^"]+)"', text)
    return names


def _with_includes(files: Sequence[str]) -> list[Path]:
    paths = []
    for name in _names_with_includes(files):
        paths.append(Path(name) if Path(name).is_absolute() else _DATA / name)
    return paths
