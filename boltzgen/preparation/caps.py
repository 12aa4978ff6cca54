"""Terminal caps (ACE, NME, NH2) as parts of the amino acids that they end."""

from collections.abc import Sequence

from openmm.app import Topology
from openmm.app.topology import Residue

__all__ = ["merge_caps"]

_CAPS = {"ACE", "NME", "NH2"}


def merge_caps(topology: Topology) -> Topology:
    """Copy a Topology with ACE, NME and NH2 caps made part of the neighbouring amino acid.

    OpenMM's CHARMM files describe caps as patches of an amino acid. Caps that are residues of their own match a patch
    over several residues, and then the script that adds harmonic impropers, which looks atoms up residue by residue,
    silently leaves them out (0 instead of 4 for ACE-ALA-NME).

    Returns
    -------
    openmm.app.Topology
        Same atoms in the same order; only the residues differ.
    """
    merged = Topology()
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


def _host(residues: Sequence[Residue], i: int) -> int:
    """Index of the residue that residue i becomes part of: its neighbour for a cap, else itself."""
    if residues[i].name not in _CAPS or len(residues) == 1:
        return i
    if i == 0 and residues[1].name not in _CAPS:
        return 1
    if i == len(residues) - 1 and residues[i - 1].name not in _CAPS:
        return i - 1
    return i
