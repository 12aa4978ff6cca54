"""Torsions of a peptide by their usual names."""

from collections import defaultdict
from collections.abc import Iterator

from openmm import app
from openmm.app.topology import Atom

__all__ = ["named_torsions"]

Torsion = tuple[int, int, int, int]

# Side-chain torsions, IUPAC-IUB (1970): for each chi the possible atom names along the chain.
_CHI: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "chi1": tuple(("N", "CA", "CB", x) for x in ("CG", "CG1", "OG", "OG1", "SG")),
    "chi2": (
        *(("CA", "CB", "CG", x) for x in ("CD", "CD1", "OD1", "ND1", "SD")),
        *(("CA", "CB", "CG1", x) for x in ("CD1", "CD")),
    ),
    "chi3": (*(("CB", "CG", "CD", x) for x in ("NE", "CE", "OE1")), ("CB", "CG", "SD", "CE")),
    "chi4": (("CG", "CD", "NE", "CZ"), ("CG", "CD", "CE", "NZ")),
    "chi5": (("CD", "NE", "CZ", "NH1"),),
}


def named_torsions(topology: app.Topology) -> dict[str, Torsion]:
    """Find phi, psi, omega and chi1 to chi5 from atom names and bonds.

    Parameters
    ----------
    topology : openmm.app.Topology

    Returns
    -------
    dict of str to (int, int, int, int)
        Atom indices. A kind that occurs once has its bare name ("phi"); one that occurs several times has names
        "phi[1]", "phi[2]", ... in the order of the residues that have it.
    """
    neighbours: dict[Atom, list[Atom]] = defaultdict(list)
    for first, second in topology.bonds():
        neighbours[first].append(second)
        neighbours[second].append(first)
    found: dict[str, list[Torsion]] = defaultdict(list)
    for residue in topology.residues():
        names = {atom.name: atom for atom in residue.atoms()}
        for kind, atoms in _backbone(names, neighbours):
            found[kind].append((atoms[0].index, atoms[1].index, atoms[2].index, atoms[3].index))
        if {"N", "CA", "C"} <= names.keys():
            for kind, candidates in _CHI.items():
                match = next((c for c in candidates if set(c) <= names.keys()), None)
                if match:
                    a, b, c, d = (names[name].index for name in match)
                    found[kind].append((a, b, c, d))
    named = {}
    for kind in ("phi", "psi", "omega", *_CHI):
        for number, torsion in enumerate(found[kind], 1):
            named[kind if len(found[kind]) == 1 else f"{kind}[{number}]"] = torsion
    return named


def _backbone(
    names: dict[str, Atom], neighbours: dict[Atom, list[Atom]]
) -> Iterator[tuple[str, tuple[Atom, Atom, Atom, Atom]]]:
    nitrogen, alpha, carbon = (names.get(name) for name in ("N", "CA", "C"))
    before = _amide_partner(nitrogen, neighbours) if nitrogen is not None and alpha is not None else None
    after = _amide_partner(carbon, neighbours) if carbon is not None else None
    if nitrogen is not None and alpha is not None and carbon is not None:
        if before is not None:
            yield "phi", (before, nitrogen, alpha, carbon)
        if after is not None:
            yield "psi", (nitrogen, alpha, carbon, after)
    if carbon is not None and after is not None:
        left = alpha or names.get("CH3")
        right = next((a for a in neighbours[after] if a is not carbon and _is_next_alpha(a, after)), None)
        if left is not None and right is not None:
            yield "omega", (left, carbon, after, right)


def _amide_partner(atom: Atom, neighbours: dict[Atom, list[Atom]]) -> Atom | None:
    """The N across the amide bond of a carbonyl C, or the C of an N."""
    other = "N" if atom.element.symbol == "C" else "C"
    for neighbour in neighbours[atom]:
        if neighbour.residue is not atom.residue and neighbour.element.symbol == other:
            return neighbour
    return None


def _is_next_alpha(atom: Atom, nitrogen: Atom) -> bool:
    """Whether `atom` is what the amide hangs on: an alpha carbon, or the methyl carbon of NME."""
    if atom.element.symbol != "C" or atom.residue is not nitrogen.residue:
        return False
    return atom.name == "CA" or all(other.name != "CA" for other in atom.residue.atoms())
