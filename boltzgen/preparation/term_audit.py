"""Terms that a System must hold, counted from the chemistry alone, against those it does hold."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import openmm
from openmm import app
from openmm.app.topology import Atom, Residue

from boltzgen.errors import ForceFieldError

__all__ = ["ResidueTerms", "TermAudit", "audit_terms"]

# Improper centres of the side chains in CHARMM's top_all36_prot.rtf, each with its number of IMPR entries whose force
# constant is not zero (arginine's NH1 and NH2 have zero). Histidine's key is the set of its polar hydrogens.
_SIDE_CHAIN_IMPROPERS: dict[str, dict[str, int]] = {
    "ARG": {"CZ": 1},
    "ASN": {"CG": 2, "ND2": 2},
    "ASP": {"CG": 1},
    "GLN": {"CD": 2, "NE2": 2},
    "GLU": {"CD": 1},
    "HIS:HD1": {"ND1": 2, "CD2": 2, "CE1": 2},
    "HIS:HE2": {"NE2": 2, "CD2": 2, "CE1": 2},
    "HIS:HD1+HE2": {"ND1": 2, "NE2": 2},
}


@dataclass(frozen=True)
class ResidueTerms:
    """Expected and present numbers of one residue."""

    residue: str
    impropers_expected: int
    impropers_present: int
    cmaps_expected: int
    cmaps_present: int


@dataclass(frozen=True)
class TermAudit:
    """Result of the audit.

    Attributes
    ----------
    residues : tuple of ResidueTerms
        Empty where no rules are known for the force field.
    missing : tuple of str
        One line per missing term; empty if the System is complete.
    """

    residues: tuple[ResidueTerms, ...]
    missing: tuple[str, ...]

    def raise_if_incomplete(self, force_field: str) -> None:
        """Raise ForceFieldError naming the missing terms, if any."""
        if self.missing:
            shown = "; ".join(self.missing[:5]) + (
                f"; and {len(self.missing) - 5} more" if len(self.missing) > 5 else ""
            )
            raise ForceFieldError(f"the {force_field} System has lost terms: {shown}")


def audit_terms(topology: app.Topology, system: openmm.System, *, charmm: bool) -> TermAudit:
    """Compare a System with what the molecule's chemistry asks for.

    Bonds and angles are counted for every force field. Impropers and CMAPs are counted by the rules of CHARMM's
    topology file when `charmm` is set: one improper per carbonyl carbon and amide nitrogen of the backbone (two where
    an NH2 cap follows), those of the side chains, and one CMAP per residue between two secondary or tertiary amides.
    The improper at a proline's nitrogen has a force constant of zero (N-C-CP1-CP3) and is not counted.

    Parameters
    ----------
    topology : openmm.app.Topology
        Standard names; caps as residues of their own or merged.
    system : openmm.System
    charmm : bool

    Returns
    -------
    TermAudit
    """
    neighbours: dict[int, set[int]] = defaultdict(set)
    for first, second in topology.bonds():
        neighbours[first.index].add(second.index)
        neighbours[second.index].add(first.index)
    atoms = list(topology.atoms())
    missing = _missing_bonds_and_angles(atoms, neighbours, system)
    if not charmm:
        return TermAudit((), tuple(missing))
    improper_centres = _present_improper_centres(system, neighbours)
    cmap_centres = _present_cmap_centres(system)
    rows = []
    for residue in topology.residues():
        chemistry = _Residue(residue, atoms, neighbours)
        expected = chemistry.expected_impropers()
        present = {a.index: improper_centres[a.index] for a in residue.atoms() if improper_centres[a.index]}
        for index, number in expected.items():
            if present.get(index, 0) < number:
                missing.append(f"improper at {_label(atoms[index])} ({present.get(index, 0)} of {number} present)")
        cmap = chemistry.expected_cmap()
        found = sum(cmap_centres[a.index] for a in residue.atoms())
        if cmap is not None and not cmap_centres[cmap]:
            missing.append(f"CMAP of {residue.name}{residue.id}")
        rows.append(
            ResidueTerms(
                f"{residue.name}{residue.id}",
                sum(expected.values()),
                sum(present.values()),
                int(cmap is not None),
                found,
            )
        )
    return TermAudit(tuple(rows), tuple(missing))


def _label(atom: Atom) -> str:
    return f"{atom.residue.name}{atom.residue.id}:{atom.name}"


class _Residue:
    """Expected CHARMM terms of one residue, from names and bonds."""

    def __init__(self, residue: Residue, atoms: list[Atom], neighbours: dict[int, set[int]]) -> None:
        self._residue = residue
        self._atoms = atoms
        self._neighbours = neighbours
        self._by_name = {atom.name: atom for atom in residue.atoms()}

    def expected_impropers(self) -> dict[int, int]:
        expected: dict[int, int] = {}
        for atom in self._residue.atoms():
            symbol, degree = atom.element.symbol, len(self._neighbours[atom.index])
            if symbol == "C" and atom.name == "C" and degree == 3:
                # Carboxylate, acid or amide carbon. CHARMM's CT2 patch (an NH2 cap) lists it twice.
                expected[atom.index] = 2 if any(self._is_primary_amide(n) for n in self._bonded(atom, "N")) else 1
            elif atom.name == "N" and degree == 3 and self._bonded_carbonyls(atom) and self._residue.name != "PRO":
                expected[atom.index] = 2 if self._is_primary_amide(atom) else 1
        for name, number in _SIDE_CHAIN_IMPROPERS.get(self._side_chain_key(), {}).items():
            expected[self._by_name[name].index] = number
        return expected

    def expected_cmap(self) -> int | None:
        """Index of the alpha carbon, if the residue has a CMAP."""
        if not {"N", "CA", "C"} <= self._by_name.keys():
            return None
        nitrogen, carbon = self._by_name["N"], self._by_name["C"]
        after = [n for n in self._bonded(carbon, "N") if not self._is_primary_amide(n)]
        return self._by_name["CA"].index if after and self._bonded_carbonyls(nitrogen) else None

    def _bonded(self, atom: Atom, symbol: str) -> Iterator[Atom]:
        return (a for a in map(self._atoms.__getitem__, self._neighbours[atom.index]) if a.element.symbol == symbol)

    def _bonded_carbonyls(self, nitrogen: Atom) -> list[Atom]:
        return [
            c
            for c in self._bonded(nitrogen, "C")
            if c.name == "C" and any(len(self._neighbours[o.index]) == 1 for o in self._bonded(c, "O"))
        ]

    def _is_primary_amide(self, nitrogen: Atom) -> bool:
        return sum(1 for _ in self._bonded(nitrogen, "H")) == 2

    def _side_chain_key(self) -> str:
        if self._residue.name != "HIS":
            return self._residue.name
        return "HIS:" + "+".join(name for name in ("HD1", "HE2") if name in self._by_name)


def _missing_bonds_and_angles(atoms: list[Atom], neighbours: dict[int, set[int]], system: openmm.System) -> list[str]:
    bonds = {frozenset(p) for p in _term_atoms(system, openmm.HarmonicBondForce, "Bond", 2)}
    angles = {(p[1], frozenset((p[0], p[2]))) for p in _term_atoms(system, openmm.HarmonicAngleForce, "Angle", 3)}
    missing = []
    for i, around in neighbours.items():
        for j in around:
            if i < j and frozenset((i, j)) not in bonds:
                missing.append(f"bond {_label(atoms[i])}-{_label(atoms[j])}")
            for k in around:
                if j < k and (i, frozenset((j, k))) not in angles:
                    missing.append(f"angle {_label(atoms[j])}-{_label(atoms[i])}-{_label(atoms[k])}")
    return missing


def _term_atoms(system: openmm.System, kind: type, term: str, number: int) -> Iterator[tuple[int, ...]]:
    for force in system.getForces():
        if isinstance(force, kind):
            for i in range(getattr(force, f"getNum{term}s")()):
                yield tuple(getattr(force, f"get{term}Parameters")(i)[:number])


def _present_improper_centres(system: openmm.System, neighbours: dict[int, set[int]]) -> Counter[int]:
    """How often each atom is the centre of a harmonic improper; CHARMM writes the centre first or last."""
    centres: Counter[int] = Counter()
    for force in system.getForces():
        if not isinstance(force, openmm.CustomTorsionForce):
            continue
        for i in range(force.getNumTorsions()):
            *quad, parameters = force.getTorsionParameters(i)
            for centre in quad:
                if set(quad) - {centre} <= neighbours[centre] and parameters[0] != 0:
                    centres[centre] += 1
    return centres


def _present_cmap_centres(system: openmm.System) -> Counter[int]:
    centres: Counter[int] = Counter()
    for force in system.getForces():
        if isinstance(force, openmm.CMAPTorsionForce):
            for i in range(force.getNumTorsions()):
                phi, psi = force.getTorsionParameters(i)[1:5], force.getTorsionParameters(i)[5:9]
                # The torsions C-N-CA-C and N-CA-C-N share N, CA, C; CA is third in one and second in the other.
                centres.update({phi[2]} & {psi[1]})
    return centres
