"""Collective variables and basins written as text: "0 < phi < 150", "distance(ALA2:N, ALA2:O) < 0.35".

Grammar (parsed by recursive descent; nothing is evaluated as code)::

    basin      := term ("or" term)*
    term       := factor ("and" factor)*
    factor     := "not" factor | "(" basin ")" | comparison
    comparison := variable op number | number op variable | number op variable op number
    op         := "<" | "<=" | ">" | ">="
    variable   := name | name "[" integer "]" | "distance" "(" atom "," atom ")"
                | "angle" "(" atom "," atom "," atom ")" | "torsion" "(" atom "," atom "," atom "," atom ")"
                | "rmsd" | "rg"
    atom       := index from 0 | label such as ALA2:CA

Torsions are in degrees in (-180, 180], angles in degrees in [0, 180], distances in nm. ``rmsd`` is that of the heavy
atoms from the molecule's own structure after the best superposition, ``rg`` the radius of gyration of all atoms by
mass, both in nm. Torsions are periodic, and two forms of comparison exist:

- ``lo < t < hi`` is the arc that goes upward from lo to hi. ``150 < phi < -150`` and ``150 < phi < 210`` are therefore
  the same 60 degrees across the branch cut. ``hi > t > lo`` says the same as ``lo < t < hi``.
- ``t > x`` alone compares the value on the branch (-180, 180]: ``phi > 0`` is 0 < phi <= 180.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openmm import unit
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
from boltzgen.measures import angle, distance, radius_of_gyration, rmsd, torsion
from boltzgen.regions import Arc, Not, Pair, Range, Region, can_hold, comparisons

if TYPE_CHECKING:
    from boltzgen.molecule import Molecule

__all__ = [
    "Basin",
    "CollectiveVariable",
    "angle",
    "distance",
    "is_region",
    "parse_basin",
    "parse_named_basin",
    "parse_named_basins",
    "parse_variable",
    "radius_of_gyration",
    "rmsd",
    "torsion",
]

Positions = np.ndarray | Tensor


@dataclass(frozen=True)
class CollectiveVariable:
    """A measure of a molecule, callable on positions.

    Attributes
    ----------
    name : str
        As written, without spaces at the ends.
    atoms : tuple of int
        The atoms that it is a function of.
    n_atoms : int
        Number of atoms of the molecule.
    kind : {"torsion", "angle", "distance", "rmsd", "rg"}
    constants : tuple
        Reference positions (nm) of the atoms for an RMSD, their masses for a radius of gyration.
    """

    name: str
    atoms: tuple[int, ...]
    n_atoms: int
    kind: str
    constants: tuple[Any, ...] = ()

    @property
    def is_periodic(self) -> bool:
        return self.kind == "torsion"

    @property
    def unit(self) -> str:
        """ "degrees" or "nm"."""
        return "degrees" if self.kind in ("torsion", "angle") else "nm"

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value that it can take."""
        return {"torsion": (-180.0, 180.0), "angle": (0.0, 180.0)}.get(self.kind, (0.0, math.inf))

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """The same for the same measure, however it is written."""
        return self.kind, self.atoms

    def __call__(self, positions: Positions) -> Any:
        """Value per configuration.

        Parameters
        ----------
        positions : (B, N, 3) array or tensor
            Nanometres; a single (N, 3) configuration gives a scalar array.

        Returns
        -------
        (B,) array or tensor
            In `unit`; same kind, precision and device as `positions`.

        Raises
        ------
        SelectionError
            If the shape does not fit the molecule.
        """
        return _as_given(positions, self._evaluate, self.n_atoms)

    def _evaluate(self, positions: Tensor) -> Tensor:
        atoms: Any = self.atoms
        if self.kind == "torsion":
            return torch.rad2deg(torsion(positions, atoms))
        if self.kind == "angle":
            return torch.rad2deg(angle(positions, atoms))
        if self.kind == "distance":
            return distance(positions, atoms)
        chosen, constants = positions[..., list(atoms), :], torch.tensor(self.constants, dtype=torch.float64)
        return rmsd(chosen, constants) if self.kind == "rmsd" else radius_of_gyration(chosen, constants)


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
    _region: Region
    n_atoms: int

    @property
    def variables(self) -> tuple[CollectiveVariable, ...]:
        """Each variable once, in the order of its first mention."""
        by_key: dict[tuple[str, tuple[int, ...]], CollectiveVariable] = {}
        for part in comparisons(self._region):
            by_key.setdefault(part.variable.key, part.variable)
        return tuple(by_key.values())

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
    if not can_hold(region):
        raise SelectionError(f"{expression.strip()!r} selects nothing: its conditions contradict each other")
    return Basin(expression.strip(), region, molecule.n_atoms)


def is_region(text: str) -> bool:
    """Whether a text compares (and so is a region) rather than names one variable."""
    return "<" in text or ">" in text


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


def parse_named_basins(texts: Iterable[str]) -> dict[str, str]:
    """Expressions by name, of several texts as `parse_named_basin` takes them.

    Raises
    ------
    SelectionError
        If one cannot be read, or two have the same name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, expression = parse_named_basin(text)
        if name in found:
            raise SelectionError(f"two basins are called {name!r}")
        found[name] = expression
    return found


def _region(node: Expression, molecule: "Molecule", text: str) -> Region:
    if isinstance(node, Negation):
        return Not(_region(node.operand, molecule, text))
    if isinstance(node, Logical):
        return Pair(node.operator, _region(node.left, molecule, text), _region(node.right, molecule, text))
    variable = _resolve(node.variable, molecule, text)
    if variable.is_periodic and node.low is not None and node.high is not None:
        return _arc(variable, node, node.low, node.high, text)
    return _range(variable, node, text)


def _range(variable: CollectiveVariable, node: Comparison, text: str) -> Range:
    low = node.low or Bound(-math.inf, True, node.position)
    high = node.high or Bound(math.inf, True, node.position)
    if variable.is_periodic:
        if low.value >= 180 or high.value <= -180:
            hint = "torsions lie in (-180, 180]; across 180 write an arc: 150 < phi < 210"
            raise point_at(text, node.position, f"this selects nothing: {hint}")
    elif variable.kind == "angle" and (low.value > 180 or (low.strict and low.value == 180)):
        raise point_at(text, node.position, "this selects nothing: angles lie in [0, 180] degrees")
    elif low.value > high.value or high.value < 0 or ((low.strict or high.strict) and high.value in (low.value, 0)):
        raise point_at(text, node.position, "this selects nothing")
    return Range(variable, low.value, high.value, low.strict, high.strict)


def _arc(variable: CollectiveVariable, node: Comparison, low: Bound, high: Bound, text: str) -> Arc:
    for bound in (low, high):
        if not abs(bound.value) <= 360:
            raise point_at(text, bound.position, "torsions are in degrees: a bound must lie in [-360, 360]")
    span = high.value - low.value
    if span > 360:
        raise point_at(text, node.position, "this is more than the whole circle")
    if span == 0:
        raise point_at(text, node.position, "this selects nothing")
    return Arc(variable, low.value, span % 360 or 360.0, low.strict, high.strict)


def _resolve(variable: Variable, molecule: "Molecule", text: str) -> CollectiveVariable:
    if variable.atoms:
        atoms = tuple(_atom_index(atom.text, atom.position, molecule, text) for atom in variable.atoms)
        if len(set(atoms)) < len(atoms):
            raise point_at(text, variable.position, f"{variable.text}: the same atom is named twice")
        return CollectiveVariable(variable.text, atoms, molecule.n_atoms, variable.name)
    torsions = molecule.torsions
    name, number = variable.name, variable.number
    if number is None and name in ("rmsd", "rg"):
        return _of_structure(name, molecule)
    if number in (None, 1) and name in torsions:
        return CollectiveVariable(variable.text, torsions[name], molecule.n_atoms, "torsion")
    if number is not None and f"{name}[{number}]" in torsions:
        return CollectiveVariable(variable.text, torsions[f"{name}[{number}]"], molecule.n_atoms, "torsion")
    count = sum(1 for known in torsions if known == name or known.startswith(f"{name}["))
    known = ", ".join(torsions) or "no torsion has a name"
    if number is None and count:
        problem = f"there are {count} torsions {name}: write {name}[1] to {name}[{count}]"
    elif count:
        problem = f"there is no {name}[{number}]: {name} has numbers 1 to {count}"
    else:
        problem = f"unknown name {name!r}"
    functions = "distance(atom, atom), angle(atom, atom, atom), torsion(atom, atom, atom, atom), rmsd, rg"
    raise point_at(text, variable.position, f"{problem}; known: {known}, {functions}")


def _of_structure(name: str, molecule: "Molecule") -> CollectiveVariable:
    """RMSD of the heavy atoms from the molecule's own structure, or radius of gyration of all atoms by mass."""
    if name == "rmsd":
        heavy = tuple(int(i) for i in molecule.heavy_atoms)
        structure = np.array(molecule.positions.value_in_unit(unit.nanometer))[list(heavy)]
        return CollectiveVariable(name, heavy, molecule.n_atoms, name, tuple(map(tuple, structure.tolist())))
    system = molecule.system
    masses = tuple(system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(molecule.n_atoms))
    return CollectiveVariable(name, tuple(range(molecule.n_atoms)), molecule.n_atoms, name, masses)


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
