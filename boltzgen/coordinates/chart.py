"""Which internal coordinates are free and which are stiff, their centres, widths and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import openmm
import torch
from openmm import unit

from boltzgen.coordinates.bounded import BoundedCoordinates
from boltzgen.coordinates.constrained import ConstrainedBonds
from boltzgen.coordinates.folding import Folding
from boltzgen.coordinates.internal import InternalCoordinates
from boltzgen.coordinates.reference import minimized_positions
from boltzgen.coordinates.symmetry import SymmetryGroup, find_symmetry
from boltzgen.coordinates.zmatrix import ZMatrix
from boltzgen.errors import StructureError

if TYPE_CHECKING:
    from boltzgen.energy.base import Potential
    from boltzgen.molecule import Molecule

__all__ = ["CONSTRAINED", "CoordinateChart", "CoordinateRow"]

CONSTRAINED = "constrained bond"
FREE_BARRIER = 40.0  # kJ/mol; a torsion with a higher barrier (amides, rings, guanidinium) is stiff
LIMIT_IN_WIDTHS = 20.0  # 10 widths at four times the temperature, beyond any thermal excursion
ALL_PAIRS = 40  # up to so many stiff coordinates every pair is learned
PUCKER = "stiff torsion in a ring"  # held by the ring alone, which may flip to another pucker
PRIOR_FRAMES = 10  # for each stiff coordinate; with 1, 200 frames of the dipeptide lost 1.3 nats on others
PLANAR_TOLERANCE = math.radians(25)  # a stiff dihedral this close to 0 or 180 degrees is centred there exactly


@dataclass(frozen=True)
class CoordinateRow:
    """One internal coordinate.

    Attributes
    ----------
    name : str
        phi, psi, omega, chi1 and so on where the coordinate is one of these, else the labels of its atoms.
    kind : str
        "free torsion", "stiff torsion", "improper torsion", "angle", "bond" or "constrained bond".
    label : str
        The atom that is placed, and the atoms that it is placed by.
    atoms : tuple of int
        Their indices.
    of_hydrogen : bool
        Whether a hydrogen is among them.
    centre, width, limit : float
        Value at the minimised structure (0 or 180 degrees where it is planar), width in the harmonic approximation,
        and largest deviation that can be reached; nm or rad. Of a constrained bond its constant, zero and zero.
    """

    name: str
    kind: str
    label: str
    atoms: tuple[int, ...]
    of_hydrogen: bool
    centre: float
    width: float
    limit: float


@dataclass(frozen=True)
class CoordinateChart:
    """The internal coordinates of a molecule and how each is treated.

    Attributes
    ----------
    internal : InternalCoordinates
    rows : tuple of CoordinateRow
        In the order of the internal coordinates: bonds (nm), angles, dihedrals (rad).
    factor : (n_stiff, n_stiff) array
        Cholesky factor of the correlation of the stiff coordinates, heavy atoms first.
    symmetry : tuple of SymmetryGroup
        Groups whose labels are folded; empty where they are not.
    """

    internal: InternalCoordinates
    rows: tuple[CoordinateRow, ...]
    factor: np.ndarray
    symmetry: tuple[SymmetryGroup, ...] = ()

    @classmethod
    def for_molecule(
        cls, molecule: Molecule, potential: Potential, omega: str = "trans", fold_symmetry: bool = True
    ) -> CoordinateChart:
        """Z-matrix, classes, and the harmonic approximation at the minimised structure.

        Parameters
        ----------
        omega : {"trans", "free"}
            Whether torsions about amide bonds stay on the side on which the structure has them.
        fold_symmetry : bool
            Whether groups that a rotation maps onto themselves are generated on a fundamental interval.

        Raises
        ------
        StructureError
            If the molecule is too small or not connected, its structure cannot be minimised, or a bond that closes a
            ring is constrained.
        """
        positions = minimized_positions(molecule)
        zmatrix = ZMatrix.from_bonds(molecule.bonds, molecule.elements, molecule.torsions, positions)
        internal = InternalCoordinates(zmatrix)
        coordinates, _ = internal.to_internal(torch.as_tensor(positions).unsqueeze(0))
        lengths = _constrained_lengths(molecule, zmatrix)
        coordinates[:, list(lengths)] = torch.tensor(list(lengths.values()), dtype=torch.float64)
        kinds = _kinds(molecule, zmatrix, positions, omega)
        hessian = _hessian(internal, potential, coordinates[0])
        centre = coordinates[0].numpy().copy()
        stiff = _stiff_order(kinds, _of_hydrogen(molecule, zmatrix))
        width = np.array([0.0 if kind == CONSTRAINED else math.pi for kind in kinds])
        covariance = molecule.kT * _regularized_inverse(hessian[np.ix_(stiff, stiff)])
        width[stiff] = np.sqrt(np.diagonal(covariance))
        correlation = covariance / np.outer(width[stiff], width[stiff])
        rows = _rows(molecule, zmatrix, kinds, centre, width)
        symmetry = find_symmetry(molecule, potential, zmatrix, kinds, centre, positions) if fold_symmetry else ()
        return cls(internal, rows, np.linalg.cholesky(correlation), symmetry)

    def refined(self, positions: np.ndarray, weights: np.ndarray | None = None) -> CoordinateChart:
        """The same coordinates on the same domain, with widths and couplings of the stiff ones from data.

        Widths are root mean square deviations from the centres, which stay where they are, as the bounds do: the
        maximum-likelihood normal distribution given its mean. The harmonic approximation counts as much as ten
        configurations for each stiff coordinate, so that a few frames do no harm.

        Parameters
        ----------
        positions : (n, N, 3) array, nm
            From a simulation at the molecule's temperature.
        weights : (n,) array, optional

        Raises
        ------
        StructureError
            If a configuration lies outside the domain.
        """
        with torch.no_grad():
            frames = (
                Folding(self.symmetry, self.internal.n_atoms)
                .double()
                .representative(torch.as_tensor(positions).double())
            )
            coordinates = self.internal.to_internal(frames)[0]
            stiff = self.indices(False, False) + self.indices(False, True)
            bounded = self.bounded().double()
            _, held = self.constrained_bonds().pin(coordinates)
            inside = (bounded.inverse(coordinates[:, stiff])[2] & held).numpy()
            deviations = bounded.deviations(coordinates[:, stiff]).numpy()
        if not inside.all():
            raise StructureError(
                f"{int((~inside).sum())} of {len(inside)} configurations lie outside the domain of the coordinates "
                f"(the first is number {int(np.argmin(inside))}): remove them, or widen the domain (omega='free')"
            )
        share = np.full(len(inside), 1 / len(inside)) if weights is None else weights / weights.sum()
        n_effective, n_prior = 1 / np.square(share).sum(), PRIOR_FRAMES * len(stiff)
        width = np.array([self.rows[i].width for i in stiff])
        harmonic = self.factor @ self.factor.T * np.outer(width, width)
        observed = (deviations * share[:, None]).T @ deviations
        covariance = (n_effective * observed + n_prior * harmonic) / (n_effective + n_prior)
        width = np.sqrt(np.diagonal(covariance))
        rows = list(self.rows)
        for i, value in zip(stiff, width, strict=True):
            rows[i] = replace(rows[i], width=float(value))
        return replace(self, rows=tuple(rows), factor=np.linalg.cholesky(covariance / np.outer(width, width)))

    @property
    def dimension(self) -> int:
        """Number of coordinates that can change: 3N - 6, less one for each constraint. log Z has nm to this power."""
        return len(self.rows) - len(self.constrained(False)) - len(self.constrained(True))

    @property
    def dimension_of_hydrogens(self) -> int:
        """How many of these coordinates involve a hydrogen."""
        return len(self.indices(True, True)) + len(self.indices(False, True))

    def indices(self, free: bool, of_hydrogen: bool) -> list[int]:
        """Positions of a class of coordinates in the internal vector; constrained bonds are in none."""
        wanted = (free, of_hydrogen)
        rows = [(i, row) for i, row in enumerate(self.rows) if row.kind != CONSTRAINED]
        return [i for i, row in rows if (row.kind == "free torsion", row.of_hydrogen) == wanted]

    def constrained(self, of_hydrogen: bool) -> list[int]:
        """Positions of the constrained bonds in the internal vector."""
        return [i for i, row in enumerate(self.rows) if row.kind == CONSTRAINED and row.of_hydrogen == of_hydrogen]

    def constrained_bonds(self) -> ConstrainedBonds:
        """The constants as a module, heavy atoms first."""
        columns = self.constrained(False) + self.constrained(True)
        return ConstrainedBonds(columns, [self.rows[i].centre for i in columns])

    def stiff_pairs(self, of_hydrogen: bool) -> np.ndarray:
        """Pairs (2, n_pairs) of stiff coordinates, row above column, whose covariance may change with the torsions.

        All pairs in a small molecule; in a large one those that share an atom.
        """
        stiff = self.indices(False, of_hydrogen)
        atoms = [set(self.rows[i].atoms) for i in stiff]
        rows, columns = np.tril_indices(len(stiff), -1)
        if len(stiff) > ALL_PAIRS:
            near = np.array([not atoms[i].isdisjoint(atoms[j]) for i, j in zip(rows, columns, strict=True)], dtype=bool)
            rows, columns = rows[near], columns[near]
        return np.stack([rows, columns])

    def bounded(self) -> BoundedCoordinates:
        """The stiff coordinates as a module, heavy atoms first."""
        rows = [self.rows[i] for i in self.indices(False, False) + self.indices(False, True)]
        column = lambda name: torch.tensor([getattr(row, name) for row in rows])
        periodic = torch.tensor([row.kind in ("stiff torsion", "improper torsion") for row in rows])
        factor = torch.as_tensor(self.factor, dtype=torch.get_default_dtype())
        return BoundedCoordinates(column("centre"), column("width"), column("limit"), factor, periodic)

    def table(self) -> str:
        """All coordinates, one a line: kind, name, atoms, centre, width and reach."""
        names = ["" if row.name == row.label else row.name for row in self.rows]
        wide = [max(map(len, column)) for column in (names, [row.label for row in self.rows])]
        orders = {group.torsion: f"folded {group.order}x" for group in self.symmetry}
        head = f"{'kind':<17} {'name':<{wide[0]}} {'atoms':<{wide[1]}} {'centre':>9} {'width':>8} {'reach':>8}"
        lines = [head.rstrip()]
        for i, (row, name) in enumerate(zip(self.rows, names, strict=True)):
            scale, symbol = (1.0, "nm ") if row.kind in ("bond", CONSTRAINED) else (180 / math.pi, "deg")
            width = f"{row.width * scale:8.3g}" if row.kind != "free torsion" else f"{'any':>8}"
            numbers = f"{row.centre * scale:9.4g} {width} {row.limit * scale:8.3g} {symbol} {orders.get(i, '')}"
            lines.append(f"{row.kind:<17} {name:<{wide[0]}} {row.label:<{wide[1]}} {numbers}".rstrip())
        return "\n".join(lines)

    def domain(self) -> str:
        """The region that a generator on this chart can reach, in one paragraph."""
        stiff = [row.name for row in self.rows if row.kind == "stiff torsion" and row.limit <= math.pi / 2]
        n_constrained = len(self.rows) - self.dimension
        return (
            "Chirality and the labels of prochiral hydrogens as in the structure; "
            + ("labels within rotating symmetric groups (CH3, NH3, carboxylate, phenyl) any; " if self.symmetry else "")
            + (f"stiff torsions within 90 degrees of their centre: {', '.join(stiff)}; " if stiff else "")
            + (f"{n_constrained} bonds constant; " if n_constrained else "")
            + "bonds, angles and out-of-plane angles within the reach given in the coordinate table. "
            f"log Z is that of this region, in nm^{self.dimension}."
        )


def _of_hydrogen(molecule: Molecule, zmatrix: ZMatrix) -> np.ndarray:
    """Coordinates that involve a hydrogen."""
    hydrogen = np.array([element == "H" for element in molecule.elements])
    quads = np.column_stack([zmatrix.atoms, zmatrix.references])
    return np.concatenate([hydrogen[quads[depth:, : depth + 1]].any(axis=1) for depth in (1, 2, 3)])


def _stiff_order(kinds: Sequence[str], of_hydrogen: np.ndarray) -> list[int]:
    stiff = [i for i, kind in enumerate(kinds) if kind not in ("free torsion", CONSTRAINED)]
    return [i for i in stiff if not of_hydrogen[i]] + [i for i in stiff if of_hydrogen[i]]


def _kinds(molecule: Molecule, zmatrix: ZMatrix, positions: np.ndarray, omega: str) -> list[str]:
    if omega not in ("trans", "free"):
        raise ValueError(f"omega={omega!r}: choose 'trans' or 'free'")
    n = zmatrix.n_atoms
    constrained = _constrained_lengths(molecule, zmatrix)
    kinds = [CONSTRAINED if i in constrained else "bond" for i in range(n - 1)] + ["angle"] * (n - 2)
    barriers = _torsion_barriers(molecule, positions)
    named = {frozenset(atoms): name for name, atoms in molecule.torsions.items()}
    for row in range(3, n):
        atom, (b, a, c) = zmatrix.atoms[row], zmatrix.references[row]
        if zmatrix.is_improper[row]:
            kinds.append("improper torsion")
            continue
        is_omega = named.get(frozenset((int(atom), int(b), int(a), int(c))), "").startswith("omega")
        if barriers.get(frozenset((int(a), int(b))), 0.0) > FREE_BARRIER and not (is_omega and omega == "free"):
            kinds.append("stiff torsion")
        else:
            kinds.append(PUCKER if _in_ring(molecule, int(a), int(b)) else "free torsion")
    return kinds


def _constrained_lengths(molecule: Molecule, zmatrix: ZMatrix) -> dict[int, float]:
    """Length (nm) of each bond coordinate that is constant."""
    column = {
        frozenset((int(zmatrix.atoms[row]), int(zmatrix.references[row, 0]))): row - 1
        for row in range(1, zmatrix.n_atoms)
    }
    lengths = {}
    for (i, j), nm in molecule.constraints:
        if frozenset((i, j)) not in column:
            raise StructureError(
                f"the bond {molecule.atom_label(i)}-{molecule.atom_label(j)} closes a ring, so its length follows from "
                "the other coordinates and cannot be constrained: build the System with constraints=HBonds or None"
            )
        lengths[column[frozenset((i, j))]] = nm
    return lengths


def _in_ring(molecule: Molecule, a: int, b: int) -> bool:
    """Whether a and b stay connected without the bond between them."""
    neighbours: dict[int, set[int]] = {}
    for i, j in molecule.bonds:
        if {int(i), int(j)} != {a, b}:
            neighbours.setdefault(int(i), set()).add(int(j))
            neighbours.setdefault(int(j), set()).add(int(i))
    seen, stack = {a}, [a]
    while stack:
        for j in neighbours.get(stack.pop(), set()) - seen:
            seen.add(j)
            stack.append(j)
    return b in seen


def _torsion_barriers(molecule: Molecule, positions: np.ndarray) -> dict[frozenset[int], float]:
    """Height (kJ/mol) of the torsional energy about each bond when its two sides turn rigidly.

    Terms over atoms that are not bonded in a row are impropers, and do not change when a bond turns.
    """
    bonds = {frozenset((int(i), int(j))) for i, j in molecule.bonds}
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    profiles: dict[frozenset[int], np.ndarray] = {}
    for force in molecule.system.getForces():
        if not isinstance(force, openmm.PeriodicTorsionForce):
            continue
        for index in range(force.getNumTorsions()):
            i, j, k, l, n, phase, strength = force.getTorsionParameters(index)  # noqa: E741
            if not {frozenset((i, j)), frozenset((j, k)), frozenset((k, l))} <= bonds:
                continue
            angle = _dihedral(positions[[i, j, k, l]])
            phase, strength = phase.value_in_unit(unit.radian), strength.value_in_unit(unit.kilojoule_per_mole)
            profile = strength * np.cos(n * (angle + turn) - phase)
            profiles[frozenset((j, k))] = profiles.get(frozenset((j, k)), 0.0) + profile
    return {bond: float(np.ptp(profile)) for bond, profile in profiles.items()}


def _dihedral(points: np.ndarray) -> float:
    b0, b1, b2 = np.diff(points, axis=0)
    n1, n2 = np.cross(b0, b1), np.cross(b1, b2)
    return math.atan2(np.dot(np.cross(n1, n2), b1) / np.linalg.norm(b1), np.dot(n1, n2))


def _hessian(internal: InternalCoordinates, potential: Potential, centre: torch.Tensor) -> np.ndarray:
    """Second derivatives of the energy (kJ/mol per nm and rad) by central differences of the gradient, float64."""
    n = len(centre)
    bonds = internal.n_atoms - 1
    step = torch.cat([torch.full((bonds,), 1e-5), torch.full((n - bonds,), 1e-4)]).double()
    shifts = torch.diag(step)
    points = torch.cat([centre + shifts, centre - shifts]).requires_grad_(True)
    positions, _ = internal.to_cartesian(points)
    (gradient,) = torch.autograd.grad(potential(positions).sum(), points)
    forward, backward = gradient.split(n)
    hessian = ((forward - backward) / (2 * step.unsqueeze(1))).numpy()
    return 0.5 * (hessian + hessian.T)


def _regularized_inverse(hessian: np.ndarray) -> np.ndarray:
    """Inverse with eigenvalues of the scaled matrix kept above 0.02, so that a soft direction stays bounded."""
    scale = 1 / np.sqrt(np.clip(np.diagonal(hessian), 1.0, None))
    values, vectors = np.linalg.eigh(hessian * np.outer(scale, scale))
    return np.outer(scale, scale) * ((vectors / np.clip(values, 0.02, None)) @ vectors.T)


def _rows(
    molecule: Molecule, zmatrix: ZMatrix, kinds: list[str], centre: np.ndarray, width: np.ndarray
) -> tuple[CoordinateRow, ...]:
    n = zmatrix.n_atoms
    atoms = [
        tuple(int(a) for a in (zmatrix.atoms[row], *zmatrix.references[row, :depth]))
        for depth in (1, 2, 3)
        for row in range(depth, n)
    ]
    names = {frozenset(quad): name for name, quad in molecule.torsions.items()}
    of_hydrogen = _of_hydrogen(molecule, zmatrix)
    linear = np.concatenate([np.zeros(n - 1, dtype=bool), zmatrix.is_linear[2:], zmatrix.is_linear[3:]])
    rows = []
    for i, kind in enumerate(kinds):
        name = names.get(frozenset(atoms[i])) if kind in ("free torsion", "stiff torsion", PUCKER) else None
        label = "-".join(molecule.atom_label(a) for a in atoms[i])
        if linear[i]:
            label += " (across the line)" if kind == "angle" else " (along the line)"
        middle, reach = _bounds(kind, float(centre[i]), float(width[i]))
        kind, hydrogen = kind.removesuffix(" in a ring"), bool(of_hydrogen[i])
        rows.append(CoordinateRow(name or label, kind, label, atoms[i], hydrogen, middle, float(width[i]), reach))
    return tuple(rows)


def _bounds(kind: str, centre: float, width: float) -> tuple[float, float]:
    """Centre and largest deviation: positive bonds, angles off 0 and 180 degrees, no change of chirality."""
    reach = LIMIT_IN_WIDTHS * width
    if kind == CONSTRAINED:
        return centre, 0.0
    if kind == "free torsion":
        return centre, math.pi
    if kind == PUCKER:
        return centre, 0.98 * math.pi
    if kind == "bond":
        return centre, min(reach, 0.6 * centre)
    if kind == "angle":
        return centre, min(reach, 0.98 * min(centre, math.pi - centre))
    for planar in (0.0, math.pi):
        if abs(math.remainder(centre - planar, 2 * math.pi)) < PLANAR_TOLERANCE:
            return planar, math.pi / 2
    if kind == "stiff torsion":
        return centre, math.pi / 2
    return centre, 0.98 * min(abs(centre), math.pi - abs(centre))
