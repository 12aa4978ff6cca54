"""Parsed expressions: what a custom force's energy text means, whatever its names and layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.canonical import canonical
from boltzgen.energy.expressions.differentiation import gradient
from boltzgen.energy.expressions.graph import Node
from boltzgen.energy.expressions.parser import parse
from boltzgen.energy.expressions.tabulated import Tabulated

__all__ = ["Expression", "parse_expression"]


@dataclass(frozen=True, eq=False)
class Expression:
    """An expression graph with the text that it came from.

    Two expressions are equal if they are one formula up to the names of intermediate values and the order and
    grouping of sums and products.
    """

    root: Node = field(repr=False)
    text: str
    positions: Mapping[str, int] = field(repr=False)
    """Where in `text` each name is first met."""

    @property
    def variables(self) -> frozenset[str]:
        """Free names that the value depends on."""
        return frozenset(node.name for node in graph.ordered([self.root]) if node.kind == "variable")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and canonical(self.root) == canonical(other.root)

    def __hash__(self) -> int:
        return hash(canonical(self.root))

    @property
    def digest(self) -> str:
        """The same for equal expressions, from process to process."""
        form, sign = canonical(self.root)
        return f"{form.hex()}{'+' if sign > 0 else '-'}"

    def rename(self, names: Mapping[str, str]) -> "Expression":
        """The same with free names replaced, all at once."""
        positions = {names.get(name, name): position for name, position in self.positions.items()}
        root = _substituted(self.root, {old: graph.variable(new) for old, new in names.items()})
        return Expression(root, self.text, positions)

    def substitute(self, values: "Mapping[str, Expression | float]") -> "Expression":
        """The same with free names replaced by numbers or expressions, all at once."""
        nodes = {
            name: value.root if isinstance(value, Expression) else graph.constant(value)
            for name, value in values.items()
        }
        return Expression(_substituted(self.root, nodes), self.text, self.positions)

    def derivative(self, name: str) -> "Expression":
        """First derivative with respect to a free name."""
        root = gradient(self.root, [name]).get(name, graph.ZERO)
        return Expression(root, self.text, self.positions)


def parse_expression(
    text: str,
    functions: Mapping[str, Tabulated] | None = None,
    calls: Mapping[str, int] | None = None,
) -> Expression:
    """Parse an energy expression in OpenMM's syntax, intermediate values and all.

    Parameters
    ----------
    text : str
        As `getEnergyFunction()` of a custom force gives it.
    functions : dict, optional
        Tabulated functions by name.
    calls : dict, optional
        Functions of names alone that the caller evaluates, with their number of arguments, such as
        {"distance": 2}: `distance(p1, p2)` then becomes the free name "distance(p1,p2)". The functions of points
        named here ("pointdistance", ...) take any expressions, and are expanded.

    Raises
    ------
    PotentialError
        With a caret under the first thing that does not fit.
    """
    root, positions = parse(text, functions or {}, calls or {})
    return Expression(root, text, positions)


def _substituted(root: Node, nodes: Mapping[str, Node]) -> Node:
    return graph.rebuild(root, lambda node: nodes.get(node.name) if node.kind == "variable" else None)
