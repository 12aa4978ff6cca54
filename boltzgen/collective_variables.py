"""Collective variables and basins written as text: "0 < phi < 150", "distance(ALA2:N, ALA2:O) < 0.35".

Grammar (parsed by recursive descent; nothing is evaluated as code)::

    basin      := term ("or" term)*
    term       := factor ("and" factor)*
    factor     := "not" factor | "(" basin ")" | comparison
    comparison := variable op number | number op variable | number op variable op number
    op         := "<" | "<=" | ">" | ">="
    variable   := name | name "[" integer "]" | "distance" "(" atom "," atom ")"
                | "torsion" "(" atom "," atom "," atom "," atom ")"
    atom       := index from 0 | label such as ALA2:CA

Torsions are in degrees in (-180, 180], distances in nm. Torsions are periodic, and two forms of comparison exist:

- ``lo < t < hi`` is the arc that goes upward from lo to hi. ``150 < phi < -150`` and ``150 < phi < 210`` are therefore
  the same 60 degrees across the branch cut. ``hi > t > lo`` says the same as ``lo < t < hi``.
- ``t > x`` alone compares the value on the branch (-180, 180]: ``phi > 0`` is 0 < phi <= 180.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.errors import SelectionError
from boltzgen.expression_parser import (
    Bound,
    Comparison,
    Expression,
    Logical,
    Negation,
    Variable,
    parse_expression,
    parse_variable_text,
    point_at,
)

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = ["Basin", "CollectiveVariable", "distance", "parse_basin", "parse_named_basin", "parse_variable", "torsion"]

Positions = np.ndarray | Tensor


def torsion(positions: Tensor, atoms: tuple[int, int, int, int]) -> Tensor:
    """Torsion angle in radians in (-pi, pi].

    Parameters
    ----------
    positions : (..., N, 3) tensor
        Any length unit.
    atoms : four indices
        IUPAC sign: positive when, seen along the middle bond, the far bond is clockwise from the near one.

    Returns
    -------
    (...) tensor
    """
    a, b, c, d = (positions[..., i, :] for i in atoms)
    axis = c - b
    left = torch.linalg.cross(b - a, axis)
    right = torch.linalg.cross(axis, d - c)
    sine = (torch.linalg.cross(left, right) * axis).sum(-1) / axis.norm(dim=-1)
    angle = torch.atan2(sine, (left * right).sum(-1))
    # atan2 gives -pi for a sine of -0.0; the branch is open there.
    return torch.where(angle <= -torch.pi, angle + 2 * torch.pi, angle)


def distance(positions: Tensor, atoms: tuple[int, int]) -> Tensor:
    """Distance of two atoms, in the unit of positions (..., N, 3); shape (...)."""
    return (positions[..., atoms[1], :] - positions[..., atoms[0], :]).norm(dim=-1)


@dataclass(frozen=True)
class CollectiveVariable:
    """A torsion or a distance of a molecule, callable on positions.

    Attributes
    ----------
    name : str
        As written, without spaces at the ends.
    atoms : tuple of int
        Two (distance) or four (torsion) indices.
    n_atoms : int
        Number of atoms of the molecule.
    """

    name: str
    atoms: tuple[int, ...]
    n_atoms: int

    @property
    def is_periodic(self) -> bool:
        return len(self.atoms) == 4

    @property
    def unit(self) -> str:
        """ "degrees" or "nm"."""
        return "degrees" if self.is_periodic else "nm"

    def __call__(self, positions: Positions) -> Any:
        """Value per configuration.

        Parameters
        ----------
        positions : (B, N, 3) array or tensor
            Nanometres; a single (N, 3) configuration gives a scalar array.

        Returns
        -------
        (B,) array or tensor
            Degrees in (-180, 180], or nm; same kind, precision and device as `positions`.

        Raises
        ------
        SelectionError
            If the shape does not fit the molecule.
        """
        return _as_given(positions, self._evaluate, self.n_atoms)

    def _evaluate(self, positions: Tensor) -> Tensor:
        if self.is_periodic:
            a, b, c, d = self.atoms
            return torch.rad2deg(torsion(positions, (a, b, c, d)))
        i, j = self.atoms
        return distance(positions, (i, j))


@dataclass(frozen=True)
class Basin:
    """A region of configuration space; build it with `parse_basin`.

    Attributes
    ----------
    expression : str
        As written.
    n_atoms : int
        Number of atoms of the molecule.
    """

    expression: str
    _region: "_Region"
    n_atoms: int

    @property
    def variables(self) -> tuple[CollectiveVariable, ...]:
        """Each variable once, in the order of its first mention."""
        by_atoms: dict[tuple[int, ...], CollectiveVariable] = {}
        for variable in _variables(self._region):
            by_atoms.setdefault(variable.atoms, variable)
        return tuple(by_atoms.values())

    def contains(self, positions: Positions) -> Any:
        """Which configurations lie in the basin; a configuration with NaN lies in none.

        Parameters
        ----------
        positions : (B, N, 3) array or tensor
            Nanometres.

        Returns
        -------
        (B,) bool array or tensor
            Same kind and device as `positions`.
        """

        def inside(tensor: Tensor) -> Tensor:
            chosen = self._region(lambda variable: variable._evaluate(tensor))
            return chosen & torch.isfinite(tensor).flatten(-2).all(-1)

        return _as_given(positions, inside, self.n_atoms)


def parse_variable(text: str, molecule: "Molecule") -> CollectiveVariable:
    """Read one collective variable, e.g. "phi", "psi[2]", "distance(ALA2:N, 15)".

    Raises
    ------
    SelectionError
        With a caret under the place that is wrong, and the names that the molecule has.
    """
    return _resolve(parse_variable_text(text), molecule, text)


def parse_basin(expression: str, molecule: "Molecule") -> Basin:
    """Read a basin expression; the grammar and the meaning of periodic comparisons are in the module's docstring.

    Parameters
    ----------
    expression : str
    molecule : Molecule

    Returns
    -------
    Basin

    Raises
    ------
    SelectionError
        If the expression does not parse, names what the molecule does not have, or can select nothing.
    """
    region = _region(parse_expression(expression), molecule, expression)
    if not _can_hold(region):
        raise SelectionError(f"{expression.strip()!r} selects nothing: its conditions contradict each other")
    return Basin(expression.strip(), region, molecule.n_atoms)


def parse_named_basin(text: str) -> tuple[str, str]:
    """Split "C7ax: 0 < phi < 150" into its name and its expression.

    Raises
    ------
    SelectionError
        If there is no name, or no expression.
    """
    name, colon, expression = text.partition(":")
    name, expression = name.strip(), expression.strip()
    if not colon or not expression or not name.replace("_", "").replace("-", "").isalnum():
        raise SelectionError(
            f"cannot read the basin {text!r}: write a name and an expression, e.g. 'C7ax: 0 < phi < 150'"
        )
    return name, expression


_Values = Callable[[CollectiveVariable], Tensor]


@dataclass(frozen=True)
class _Range:
    """Values between two bounds, on a line."""

    variable: CollectiveVariable
    low: float
    high: float
    open_low: bool
    open_high: bool

    def __call__(self, value_of: _Values) -> Tensor:
        values = value_of(self.variable)
        above = values > self.low if self.open_low else values >= self.low
        below = values < self.high if self.open_high else values <= self.high
        return above & below


@dataclass(frozen=True)
class _Arc:
    """Values on the arc that goes from `low` upward by `width` degrees."""

    variable: CollectiveVariable
    low: float
    width: float
    open_low: bool
    open_high: bool

    def __call__(self, value_of: _Values) -> Tensor:
        half = self.width / 2
        # Measured from the middle of the arc, where rounding cannot throw a value near its ends across the wrap.
        offset = torch.remainder(value_of(self.variable) - (self.low + half) + 180, 360) - 180
        above = offset > -half if self.open_low else offset >= -half
        below = offset < half if self.open_high else offset <= half
        return above & below


@dataclass(frozen=True)
class _Not:
    operand: "_Region"

    def __call__(self, value_of: _Values) -> Tensor:
        return ~self.operand(value_of)


@dataclass(frozen=True)
class _Pair:
    operator: str
    left: "_Region"
    right: "_Region"

    def __call__(self, value_of: _Values) -> Tensor:
        left, right = self.left(value_of), self.right(value_of)
        return left & right if self.operator == "and" else left | right


_Region = _Range | _Arc | _Not | _Pair


def _region(node: Expression, molecule: "Molecule", text: str) -> _Region:
    if isinstance(node, Negation):
        return _Not(_region(node.operand, molecule, text))
    if isinstance(node, Logical):
        return _Pair(node.operator, _region(node.left, molecule, text), _region(node.right, molecule, text))
    variable = _resolve(node.variable, molecule, text)
    if variable.is_periodic and node.low is not None and node.high is not None:
        return _arc(variable, node, node.low, node.high, text)
    return _range(variable, node, text)


def _range(variable: CollectiveVariable, node: Comparison, text: str) -> _Range:
    low = node.low or Bound(-math.inf, True, node.position)
    high = node.high or Bound(math.inf, True, node.position)
    if variable.is_periodic:
        if low.value >= 180 or high.value <= -180:
            hint = "torsions lie in (-180, 180]; across 180 write an arc: 150 < phi < 210"
            raise point_at(text, node.position, f"this selects nothing: {hint}")
    elif low.value > high.value or high.value < 0 or ((low.strict or high.strict) and high.value in (low.value, 0)):
        raise point_at(text, node.position, "this selects nothing")
    return _Range(variable, low.value, high.value, low.strict, high.strict)


def _arc(variable: CollectiveVariable, node: Comparison, low: Bound, high: Bound, text: str) -> _Arc:
    for bound in (low, high):
        if not abs(bound.value) <= 360:
            raise point_at(text, bound.position, "torsions are in degrees: a bound must lie in [-360, 360]")
    span = high.value - low.value
    if span > 360:
        raise point_at(text, node.position, "this is more than the whole circle")
    if span == 0:
        raise point_at(text, node.position, "this selects nothing")
    return _Arc(variable, low.value, span % 360 or 360.0, low.strict, high.strict)


def _comparisons(region: _Region) -> list[_Range | _Arc]:
    if isinstance(region, _Not):
        return _comparisons(region.operand)
    if isinstance(region, _Pair):
        return _comparisons(region.left) + _comparisons(region.right)
    return [region]


def _can_hold(region: _Region) -> bool:
    """Whether any values of the variables, each taken alone, satisfy the expression.

    The bounds cut the range of each variable into pieces; one value of each piece, and the bounds themselves, are
    tried in all combinations, which decides the question. Expressions of very many bounds are let through.
    """
    edges: dict[tuple[int, ...], set[float]] = {}
    for part in _comparisons(region):
        found = edges.setdefault(part.variable.atoms, set())
        bounds = (part.low, part.low + part.width) if isinstance(part, _Arc) else (part.low, part.high)
        for bound in bounds:
            if part.variable.is_periodic:
                found.add(180 - (180 - max(min(bound, 720.0), -720.0)) % 360)  # in (-180, 180]
            elif math.isfinite(bound):
                found.add(max(bound, 0.0))
    grids = []
    for atoms, inner in edges.items():
        outer = {-180.0, 180.0} if len(atoms) == 4 else {0.0, max(inner, default=0.0) + 1.0}
        ends = sorted(inner | outer)
        middles = {(a + b) / 2 for a, b in pairwise(ends)}
        grids.append(torch.tensor(sorted((inner | outer | middles) - {-180.0}), dtype=torch.float64))
    if math.prod(len(grid) for grid in grids) > 100_000:
        return True
    mesh = dict(zip(edges, torch.meshgrid(*grids, indexing="ij"), strict=True))
    return bool(region(lambda variable: mesh[variable.atoms]).any())


def _variables(region: _Region) -> list[CollectiveVariable]:
    return [part.variable for part in _comparisons(region)]


def _resolve(variable: Variable, molecule: "Molecule", text: str) -> CollectiveVariable:
    if variable.atoms:
        atoms = tuple(_atom_index(atom.text, atom.position, molecule, text) for atom in variable.atoms)
        if len(set(atoms)) < len(atoms):
            raise point_at(text, variable.position, f"{variable.text}: the same atom is named twice")
        return CollectiveVariable(variable.text, atoms, molecule.n_atoms)
    torsions = molecule.torsions
    name, number = variable.name, variable.number
    if number is None and name in torsions:
        return CollectiveVariable(variable.text, torsions[name], molecule.n_atoms)
    if number == 1 and name in torsions:
        return CollectiveVariable(variable.text, torsions[name], molecule.n_atoms)
    if number is not None and f"{name}[{number}]" in torsions:
        return CollectiveVariable(variable.text, torsions[f"{name}[{number}]"], molecule.n_atoms)
    count = sum(1 for known in torsions if known == name or known.startswith(f"{name}["))
    known = ", ".join(torsions) or "no torsion has a name"
    if number is None and count:
        problem = f"there are {count} torsions {name}: write {name}[1] to {name}[{count}]"
    elif count:
        problem = f"there is no {name}[{number}]: {name} has numbers 1 to {count}"
    else:
        problem = f"unknown name {name!r}"
    raise point_at(
        text, variable.position, f"{problem}; known: {known}, distance(atom, atom), torsion(atom, atom, atom, atom)"
    )


def _atom_index(text: str, position: int, molecule: "Molecule", expression: str) -> int:
    if text.isdigit():
        if int(text) < molecule.n_atoms:
            return int(text)
        raise point_at(expression, position, f"there is no atom {text}: indices go from 0 to {molecule.n_atoms - 1}")
    labels = [molecule.atom_label(i) for i in range(molecule.n_atoms)]
    if text in labels:
        return labels.index(text)
    residue = text.partition(":")[0]
    near = [label for label in labels if label.startswith(f"{residue}:")]
    known = (
        ", ".join(near) if near else "residues " + ", ".join(dict.fromkeys(label.partition(":")[0] for label in labels))
    )
    raise point_at(expression, position, f"there is no atom {text!r}; known: {known}")


def _as_given(positions: Positions, evaluate: Callable[[Tensor], Tensor], n_atoms: int) -> Any:
    """Evaluate on a tensor and hand back the kind that came in."""
    tensor = positions if isinstance(positions, Tensor) else torch.from_numpy(np.ascontiguousarray(positions))
    if not tensor.is_floating_point():
        tensor = tensor.double()
    if tensor.ndim < 2 or tuple(tensor.shape[-2:]) != (n_atoms, 3):
        raise SelectionError(f"positions have shape {tuple(tensor.shape)}; expected (B, {n_atoms}, 3) in nm")
    result = evaluate(tensor)
    return result if isinstance(positions, Tensor) else result.numpy()
