"""Z-matrix from the bonds of a molecule: heavy atoms first, hydrogens after, torsions the natural ones.

Every atom but the first three is placed by a distance to its parent, an angle with its grandparent and a
dihedral with a third reference. The first child of each parent carries the *torsion* about the bond
parent-grandparent; its siblings are placed by an *improper* dihedral relative to that first child, so that
turning a torsion moves all atoms behind the bond together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boltzgen.errors import StructureError

__all__ = ["ZMatrix"]


@dataclass(frozen=True)
class ZMatrix:
    """Order in which atoms are placed, and the atoms each one is placed by.

    Attributes
    ----------
    atoms : (N,) int array
        Atoms in the order of placement; all heavy atoms come before all hydrogens.
    references : (N, 3) int array
        Row k: parent, grandparent and third reference (atom indices) of ``atoms[k]``; -1 in the first three rows
        where there is none.
    is_improper : (N,) bool array
        True where the dihedral of row k is taken relative to a sibling.
    n_heavy : int
        Number of heavy atoms.
    """

    atoms: np.ndarray
    references: np.ndarray
    is_improper: np.ndarray
    n_heavy: int

    @classmethod
    def from_bonds(
        cls,
        bonds: np.ndarray,
        elements: Sequence[str],
        torsions: Mapping[str, tuple[int, int, int, int]] | None = None,
    ) -> ZMatrix:
        """Build the Z-matrix of a connected molecule.

        Parameters
        ----------
        bonds : (n_bonds, 2) int array
        elements : sequence of N element symbols
        torsions : mapping of names to four atoms, optional
            Where there is a choice, coordinates are chosen so that these torsions are among them.

        Raises
        ------
        StructureError
            If there are fewer than four atoms or fewer than three heavy atoms, or if the molecule is not connected.
        """
        return _Builder(np.asarray(bonds).reshape(-1, 2), list(elements), torsions or {}).build()

    @property
    def n_atoms(self) -> int:
        return len(self.atoms)

    def levels(self) -> list[np.ndarray]:
        """Rows that can be placed at once: each level needs only atoms of earlier levels. The first holds rows 0-2."""
        row_of = {int(atom): row for row, atom in enumerate(self.atoms)}
        depth = np.zeros(self.n_atoms, dtype=int)
        for row in range(3, self.n_atoms):
            depth[row] = 1 + max(depth[row_of[int(atom)]] for atom in self.references[row])
        return [np.flatnonzero(depth == level) for level in range(depth.max() + 1)]


class _Builder:
    def __init__(self, bonds: np.ndarray, elements: list[str], torsions: Mapping[str, tuple[int, ...]]) -> None:
        self.n_atoms = len(elements)
        self.is_hydrogen = np.array([element == "H" for element in elements])
        self.neighbours: list[list[int]] = [[] for _ in range(self.n_atoms)]
        for i, j in bonds:
            self.neighbours[int(i)].append(int(j))
            self.neighbours[int(j)].append(int(i))
        self.named = {tuple(atoms) for atoms in torsions.values()} | {tuple(atoms)[::-1] for atoms in torsions.values()}
        self.backbone = {atom for name, atoms in torsions.items() if name.startswith(("phi", "psi")) for atom in atoms}
        self._check()

    def _check(self) -> None:
        n_heavy = int((~self.is_hydrogen).sum())
        if self.n_atoms < 4 or n_heavy < 3:
            raise StructureError(
                f"a molecule of {self.n_atoms} atoms, {n_heavy} of them heavy, has no internal coordinates for a flow: "
                "at least four atoms, three of them heavy, are needed"
            )
        seen = {0}
        queue = deque([0])
        while queue:
            for j in self.neighbours[queue.popleft()]:
                if j not in seen:
                    seen.add(j)
                    queue.append(j)
        if len(seen) < self.n_atoms:
            missing = sorted(set(range(self.n_atoms)) - seen)
            raise StructureError(f"the molecule is not connected: atoms {missing[:5]} are not bonded to atom 0")

    def build(self) -> ZMatrix:
        self.atoms: list[int] = []
        self.references: list[tuple[int, int, int]] = []
        self.is_improper: list[bool] = []
        self.parent: dict[int, int] = {}
        self.first_child: dict[int, int] = {}
        self._place_roots()
        for hydrogens in (False, True):
            self._place_tree(hydrogens)
        return ZMatrix(
            atoms=np.array(self.atoms),
            references=np.array(self.references),
            is_improper=np.array(self.is_improper),
            n_heavy=int((~self.is_hydrogen).sum()),
        )

    def _distances_from(self, start: int) -> dict[int, int]:
        distance = {start: 0}
        queue = deque([start])
        while queue:
            i = queue.popleft()
            for j in self.neighbours[i]:
                if j not in distance and not self.is_hydrogen[j]:
                    distance[j] = distance[i] + 1
                    queue.append(j)
        return distance

    def _place_roots(self) -> None:
        """Start from the middle of the heavy-atom graph: errors and lever arms grow with the distance from it."""
        heavy = [i for i in range(self.n_atoms) if not self.is_hydrogen[i]]
        inner = [i for i in heavy if sum(not self.is_hydrogen[j] for j in self.neighbours[i]) >= 2]

        def eccentricity(i: int) -> tuple[bool, int, int]:
            return (bool(self.backbone) and i not in self.backbone, max(self._distances_from(i).values()), i)

        middle = min(inner, key=eccentricity)
        arms = [j for j in self.neighbours[middle] if not self.is_hydrogen[j]]
        arms.sort(key=lambda j: (j not in self.backbone, -self._weight(j, middle), j))
        first, last = arms[0], arms[1]
        for atom, references in ((first, (-1, -1, -1)), (middle, (first, -1, -1)), (last, (middle, first, -1))):
            self.atoms.append(atom)
            self.references.append(references)
            self.is_improper.append(False)
        self.parent = {first: middle, middle: first, last: middle}
        self.first_child = {middle: last}

    def _weight(self, atom: int, behind: int) -> int:
        """Number of heavy atoms on the far side of the bond behind-atom."""
        seen = {atom, behind}
        queue = deque([atom])
        while queue:
            for j in self.neighbours[queue.popleft()]:
                if j not in seen and not self.is_hydrogen[j]:
                    seen.add(j)
                    queue.append(j)
        return len(seen) - 1

    def _place_tree(self, hydrogens: bool) -> None:
        placed = set(self.atoms)
        queue = deque(self.atoms)
        while queue:
            b = queue.popleft()
            children = [j for j in self.neighbours[b] if j not in placed and self.is_hydrogen[j] == hydrogens]
            if not children:
                continue
            a = self.parent[b]
            if b not in self.first_child:
                child, third = self._torsion(children, b, a, placed)
                children.remove(child)
                self._append(child, b, a, third, improper=False)
                self.first_child[b] = child
                placed.add(child)
                queue.append(child)
            for child in sorted(children, key=lambda j: (-self._weight(j, b), j)):
                self._append(child, b, a, self.first_child[b], improper=True)
                placed.add(child)
                queue.append(child)

    def _torsion(self, children: list[int], b: int, a: int, placed: set[int]) -> tuple[int, int]:
        thirds = [c for c in self.neighbours[a] if c in placed and c != b]

        def preference(pair: tuple[int, int]) -> tuple[bool, bool, int, int, int]:
            child, c = pair
            named = (child, b, a, c) in self.named
            return (not named, self.parent[a] != c, -self._weight(child, b), child, c)

        return min(((child, c) for child in children for c in thirds), key=preference)

    def _append(self, atom: int, b: int, a: int, c: int, improper: bool) -> None:
        self.atoms.append(atom)
        self.references.append((b, a, c))
        self.is_improper.append(improper)
        self.parent[atom] = b
