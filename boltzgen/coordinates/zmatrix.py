"""Z-matrix from the bonds of a molecule: heavy atoms first, hydrogens after, torsions the natural ones.

Every atom but the first three is placed by a distance to its parent, an angle with its grandparent and a
dihedral with a third reference. The first child of each parent carries the *torsion* about the bond
parent-grandparent; its siblings are placed by an *improper* dihedral relative to that first child, so that
turning a torsion moves all atoms behind the bond together.

Three atoms in a line define no dihedral. A torsion about a line (nitriles, alkynes) is measured against the nearest
atom off the line; an atom that continues the line is placed by two bends, along and across the plane of that atom.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boltzgen.errors import StructureError

__all__ = ["ZMatrix"]

STRAIGHT_DEGREES = 25.0  # an angle this close to 0 or 180 degrees reaches them in thermal motion
OFF_LINE_DEGREES = 10.0  # what an atom must be off a line to give it a direction


@dataclass(frozen=True)
class ZMatrix:
    """Order in which atoms are placed, and the atoms each one is placed by.

    Attributes
    ----------
    atoms : (N,) int array
        Atoms in the order of placement; all heavy atoms come before all hydrogens, except for hydrogens among the
        first three atoms where no three bonded heavy atoms span a plane (methanol, butyne).
    references : (N, 3) int array
        Row k: parent, grandparent and third reference (atom indices) of ``atoms[k]``; -1 in the first three rows
        where there is none.
    is_improper : (N,) bool array
        True where the dihedral of row k is not a torsion about a bond: taken relative to a sibling, or of an atom that
        continues a line.
    is_linear : (N,) bool array
        True where the atom continues a line; see `InternalCoordinates` for what places it.
    n_heavy : int
        Number of heavy atoms.
    """

    atoms: np.ndarray
    references: np.ndarray
    is_improper: np.ndarray
    is_linear: np.ndarray
    n_heavy: int

    @classmethod
    def from_bonds(
        cls,
        bonds: np.ndarray,
        elements: Sequence[str],
        torsions: Mapping[str, tuple[int, int, int, int]] | None = None,
        positions: np.ndarray | None = None,
    ) -> ZMatrix:
        """Build the Z-matrix of a connected molecule.

        Parameters
        ----------
        bonds : (n_bonds, 2) int array
        elements : sequence of N element symbols
        torsions : mapping of names to four atoms, optional
            Where there is a choice, coordinates are chosen so that these torsions are among them.
        positions : (N, 3) array, optional
            Reference structure in nm, to find out which angles are straight; none are without it.

        Raises
        ------
        StructureError
            If there are fewer than four atoms, if the molecule is not connected, or if all atoms lie on a line.
        """
        return _Builder(np.asarray(bonds).reshape(-1, 2), list(elements), torsions or {}, positions).build()

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
    def __init__(
        self,
        bonds: np.ndarray,
        elements: list[str],
        torsions: Mapping[str, tuple[int, ...]],
        positions: np.ndarray | None,
    ) -> None:
        self.n_atoms = len(elements)
        self.positions = positions
        self.is_hydrogen = np.array([element == "H" for element in elements])
        self.neighbours: list[list[int]] = [[] for _ in range(self.n_atoms)]
        for i, j in bonds:
            self.neighbours[int(i)].append(int(j))
            self.neighbours[int(j)].append(int(i))
        self.named = {tuple(atoms) for atoms in torsions.values()} | {tuple(atoms)[::-1] for atoms in torsions.values()}
        self.backbone = {atom for name, atoms in torsions.items() if name.startswith(("phi", "psi")) for atom in atoms}
        self._check()

    def _check(self) -> None:
        if self.n_atoms < 4:
            raise StructureError(
                f"a molecule of {self.n_atoms} atoms has no internal coordinates for a flow: at least four are needed"
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
        self.rows: dict[int, tuple[int, int, int]] = {}
        self.is_improper: list[bool] = []
        self.is_linear: list[bool] = []
        self.parent: dict[int, int] = {}
        self.first_child: dict[int, int] = {}
        self._place_roots()
        for hydrogens in (False, True):
            self._place_tree(hydrogens)
        return ZMatrix(
            atoms=np.array(self.atoms),
            references=np.array([self.rows[atom] for atom in self.atoms]),
            is_improper=np.array(self.is_improper),
            is_linear=np.array(self.is_linear),
            n_heavy=int((~self.is_hydrogen).sum()),
        )

    def _straight(self, i: int, j: int, k: int, degrees: float = STRAIGHT_DEGREES) -> bool:
        """Whether the angle i-j-k is this close to 0 or 180 degrees in the reference structure."""
        if self.positions is None:
            return False
        u, v = self.positions[i] - self.positions[j], self.positions[k] - self.positions[j]
        product = float(np.linalg.norm(np.cross(u, v)))
        return product < math.sin(math.radians(degrees)) * float(np.linalg.norm(u) * np.linalg.norm(v))

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

    def _arms(self, middle: int) -> tuple[int, int] | None:
        """The two neighbours to start from, heavy ones if possible, that span a plane with the middle atom."""
        arms = sorted(
            self.neighbours[middle],
            key=lambda j: (self.is_hydrogen[j], j not in self.backbone, -self._weight(j, middle), j),
        )
        pairs = ((i, j) for j in arms for i in arms[: arms.index(j)] if not self._straight(i, middle, j))
        return next(pairs, None)

    def _place_roots(self) -> None:
        """Start from the middle of the heavy-atom graph: errors and lever arms grow with the distance from it."""
        arms = {i: pair for i in range(self.n_atoms) if (pair := self._arms(i)) is not None}
        if not arms:
            raise StructureError(
                "the molecule is linear: no three bonded atoms span a plane that torsions could refer to"
            )

        def order(i: int) -> tuple[bool, bool, int, int, int]:
            with_hydrogen = bool(self.is_hydrogen[list(arms[i])].any())
            far = max(self._distances_from(i).values())
            # With one heavy arm only, the atom of fewer hydrogens: the methyl of methanol then turns about a torsion.
            crowd = len(self.neighbours[i]) if with_hydrogen else 0
            return (with_hydrogen, bool(self.backbone) and i not in self.backbone, far, crowd, i)

        middle = min(arms, key=order)
        first, last = arms[middle]
        for atom, references in ((first, (-1, -1, -1)), (middle, (first, -1, -1)), (last, (middle, first, -1))):
            self._append(atom, references, improper=False)
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
        queue = deque(self.atoms)
        while queue:
            b = queue.popleft()
            children = [j for j in self.neighbours[b] if j not in self.rows and self.is_hydrogen[j] == hydrogens]
            queue.extend(self._place_children(b, children))

    def _place_children(self, b: int, children: list[int]) -> list[int]:
        """Place atoms around b; returns them in the order of placement."""
        a, n_before = self.parent[b], len(self.atoms)
        bent = [j for j in children if not self._straight(j, b, a)]
        if bent and b not in self.first_child:
            child, third = self._torsion(bent, b, a)
            self._append(child, (b, a, third), improper=False)
            self.first_child[b] = child
        for child in sorted(children, key=lambda j: (-self._weight(j, b), j)):
            if child in self.rows:
                continue
            if child in bent:
                self._append(child, (b, a, self.first_child[b]), improper=True)
            elif b in self.first_child:
                self._append(child, (b, self.first_child[b], a), improper=True)
            else:
                self._append(child, (b, a, self._off_line(a, b)), improper=True, linear=True)
        return self.atoms[n_before:]

    def _torsion(self, children: list[int], b: int, a: int) -> tuple[int, int]:
        """First child of b, and what its torsion about the bond b-a is measured against."""
        thirds = [c for c in self.neighbours[a] if c in self.rows and c != b and not self._straight(c, a, b)]
        thirds = thirds or [self._off_line(a, b)]

        def preference(pair: tuple[int, int]) -> tuple[bool, bool, int, int, int]:
            child, c = pair
            named = (child, b, a, c) in self.named
            return (not named, self.parent[a] != c, -self._weight(child, b), child, c)

        return min(((child, c) for child in children for c in thirds), key=preference)

    def _off_line(self, a: int, b: int) -> int:
        """The nearest placed atom that is not on the line through a and b."""
        seen, queue = {a, b}, deque([a])
        while queue:
            for j in self.neighbours[queue.popleft()]:
                if j in seen or j not in self.rows:
                    continue
                if not self._straight(j, a, b, OFF_LINE_DEGREES):
                    return j
                seen.add(j)
                queue.append(j)
        raise StructureError(
            f"atoms {a} and {b} lie on a line with every atom placed before them: no torsion is defined"
        )

    def _append(self, atom: int, references: tuple[int, int, int], improper: bool, linear: bool = False) -> None:
        self.atoms.append(atom)
        self.rows[atom] = references
        self.is_improper.append(improper)
        self.is_linear.append(linear)
        self.parent[atom] = references[0]
