"""Force fields by name: which files they are, whose parameters they hold, and Systems built from them."""

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import openmm
from openmm import app

from boltzgen.errors import ForceFieldError
from boltzgen.preparation.caps import merge_caps
from boltzgen.preparation.particle_types import number_types_by_first_use
from boltzgen.preparation.term_audit import TermAudit, audit_terms

__all__ = ["CONSTRAINTS", "FORCE_FIELDS", "SOLVENTS", "BuiltSystem", "Provenance", "build_system"]

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
CONSTRAINTS = {"hbonds": app.HBonds, "allbonds": app.AllBonds}
SOLVENTS = {name: f"implicit/{name}.xml" for name in ("hct", "obc1", "obc2", "gbn", "gbn2")}
_C36M_SOURCE = "par_all36m_prot.prm"
_DATA = Path(app.__file__).parent / "data"
_AMINO_ACIDS = frozenset(
    (
        *(
            "ALA",
            "ARG",
            "ASN",
            "ASP",
            "CYS",
            "CYM",
            "GLN",
            "GLU",
            "GLY",
            "HIS",
            "HSD",
            "HSE",
            "HSP",
            "ILE",
            "LEU",
            "LYS",
        ),
        *("MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
    )
)
_NUCLEOTIDES = frozenset(("A", "C", "G", "U", "DA", "DC", "DG", "DT"))
# Patches that make a residue match twice: HSD into HSE and CYS into CYM, which have definitions of their own, and PCTE,
# a second neutral C-terminus beside CNEU.
_REDUNDANT_PATCHES = ("HS2_", "CYSD_", "PCTE_")


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
    """An OpenMM System in the atom order of the Topology it was asked for, with where it comes from and its audit.

    Attributes
    ----------
    system : openmm.System
    provenance : Provenance
    audit : TermAudit
    unconstrained : openmm.System
        The same without constraints; itself where there are none.
    """

    system: openmm.System
    provenance: Provenance
    audit: TermAudit
    unconstrained: openmm.System

    @property
    def has_cmap(self) -> bool:
        return any(isinstance(f, openmm.CMAPTorsionForce) and f.getNumTorsions() for f in self.system.getForces())


def build_system(
    topology: app.Topology, forcefield: str | Path, solvent: str | None, constraints: str | None = None
) -> BuiltSystem:
    """Build a System without cutoff or centre-of-mass removal, and check that no term was lost.

    Parameters
    ----------
    topology : openmm.app.Topology
        Complete molecule with standard names, hydrogens and bonds.
    forcefield : str or path
        A key of `FORCE_FIELDS`, or the path of an OpenMM XML file.
    solvent : str or None
        A key of `SOLVENTS`, "none" or None.
    constraints : str or None
        A key of `CONSTRAINTS`, "none" or None: bonds that become constant, and lose their stretch term. The audit is
        that of the System without.

    Raises
    ------
    ForceFieldError
        If a name or file is unknown, a residue matches no template, or a term is missing in the result.
    """
    rigid = _constraints(constraints)
    name, files = _forcefield_files(forcefield)
    solvent = _solvent_name(solvent)
    if solvent != "none":
        files = (*files, SOLVENTS[solvent])
    is_charmm = any("charmm" in Path(file).name for file in files)
    matched = merge_caps(topology) if is_charmm else topology
    names = {residue.name for residue in matched.residues()}
    loaded = _load(files)
    if is_charmm and not names & _NUCLEOTIDES:
        loaded = _load_for_peptides(files, names <= _AMINO_ACIDS)
    provenance = _provenance(name, files, solvent)
    system = _create_system(loaded, matched, topology, name)
    audit = audit_terms(topology, system, charmm=is_charmm)
    if name == "charmm36":
        # The 2015 file itself lacks impropers: those CHARMM lists twice, and carboxylate termini. Said, not refused.
        lost = tuple(f"OpenMM's {files[0]} lacks the {term}" for term in audit.missing if term.startswith("improper"))
        provenance = replace(provenance, notes=provenance.notes + lost)
        audit = replace(audit, missing=tuple(term for term in audit.missing if not term.startswith("improper")))
    audit.raise_if_incomplete(name)
    constrained = system if rigid is None else _create_system(loaded, matched, topology, name, rigid)
    return BuiltSystem(constrained, provenance, audit, system)


def _constraints(constraints: str | None) -> object | None:
    name = "none" if constraints is None else str(constraints).lower()
    if name not in ("none", *CONSTRAINTS):
        raise ForceFieldError(f"unknown constraints {constraints!r}: known: none, {', '.join(CONSTRAINTS)}")
    return CONSTRAINTS.get(name)


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


# Loading CHARMM36m takes 4 s.
@lru_cache(maxsize=8)
def _load(files: tuple[str, ...]) -> app.ForceField:
    *others, last = files
    if last in SOLVENTS.values():
        # A solvent file is one script; there is no need to read the force field a second time.
        loaded = copy.copy(_load(tuple(others)))
        loaded._scripts = [*loaded._scripts, *app.ForceField(last)._scripts]
        return loaded
    try:
        return app.ForceField(*files)
    except Exception as error:
        raise ForceFieldError(
            f"{', '.join(files)}: cannot be loaded by OpenMM {openmm.__version__}: {error}"
        ) from error


@lru_cache(maxsize=4)
def _load_for_peptides(files: tuple[str, ...], amino_acids_only: bool) -> app.ForceField:
    """Same force field with patches on amino acids only, and on request without all other residues.

    Before it looks at a residue, OpenMM applies every combination of patches to every template: 80,000 templates, of
    nucleic acids, sugars and lipids for the most part, and 13 s a molecule instead of 0.5 s. Whole capped residues
    (ALAD, AANM) are left out as well: charmm36.xml has two for alanine dipeptide and OpenMM will not choose.
    """
    loaded = copy.copy(_load(files))
    loaded._templatePatches = {
        name: {patch for patch in patches if not patch[0].startswith(_REDUNDANT_PATCHES)}
        for name, patches in loaded._templatePatches.items()
        if name in _AMINO_ACIDS
    }
    if amino_acids_only:
        loaded._templateSignatures = {
            signature: kept
            for signature, templates in loaded._templateSignatures.items()
            if (kept := [template for template in templates if template.name in _AMINO_ACIDS])
        }
    return loaded


def _create_system(
    loaded: app.ForceField,
    matched: app.Topology,
    topology: app.Topology,
    name: str,
    constraints: object | None = None,
) -> openmm.System:
    try:
        system = loaded.createSystem(
            matched, nonbondedMethod=app.NoCutoff, constraints=constraints, rigidWater=False, removeCMMotion=False
        )
    except Exception as error:
        raise ForceFieldError(_explain(error, matched, loaded, name)) from error
    if system.getNumParticles() != topology.getNumAtoms():
        raise ForceFieldError(
            f"{name} adds particles without an atom (virtual sites, Drude); such force fields are not supported"
        )
    number_types_by_first_use(system)
    return system


def _explain(error: Exception, topology: app.Topology, loaded: app.ForceField, name: str) -> str:
    text = " ".join(str(error).split("For more information")[0].split())
    match = re.search(r"residue (\d+) \((\w+)\)", text)
    if match is None:
        return f"{name} cannot describe this molecule: {text}"
    residue = list(topology.residues())[int(match.group(1))]
    label = f"{residue.name}{residue.id}"
    if residue.name in _AMINO_ACIDS or residue.name in loaded._templates:
        return f"{name} cannot describe residue {label} as it stands: {text}"
    formula = "".join(
        f"{symbol}{number}" for symbol, number in sorted(Counter(a.element.symbol for a in residue.atoms()).items())
    )
    known = ", among them the 20 amino acids and the caps ACE, NME and NH2" if "ALA" in loaded._templates else ""
    return (
        f"residue {label} ({formula}) is unknown to {name}, which knows {len(loaded._templates)} residues{known}; "
        "give the path of a force-field XML file that holds it"
    )


def _provenance(name: str, files: tuple[str, ...], solvent: str) -> Provenance:
    sources: list[str] = []
    hashes = []
    for file in _with_includes(files):
        content = file.read_bytes()
        hashes.append(hashlib.sha256(content).hexdigest())
        header = content[: content.find(b"</Info>") + 1].decode(errors="replace")
        sources += [Path(source).name for source in re.findall(r"<Source[^>]*>([^<]*)</Source>", header)]
    if name == "charmm36m" and _C36M_SOURCE not in sources:
        raise ForceFieldError(
            f"{name} must come from {_C36M_SOURCE}, but the header of {files[0]} (OpenMM {openmm.__version__}) does "
            "not name it; OpenMM >= 8.3 ships the right file"
        )
    notes = []
    if name == "charmm36":
        notes.append("charmm36 is the 2015 C36, not CHARMM36m")
    if solvent != "none" and "charmm" in files[0]:
        notes.append(f"{solvent.upper()} was not fitted for CHARMM; the combination is allowed, its accuracy untested")
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
