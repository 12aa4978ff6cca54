"""Symbolic first derivatives of expression graphs.

Reverse accumulation, because a pair energy of generalized Born has three derivatives and a compound bond up to
twelve, and forward propagation would multiply the chain rule out once for each. It stops at `select`, `min`,
`max`: an adjoint pushed into a branch that is not taken would be zero, and times an infinite local derivative
there (log, sqrt, 1/x at 0) it would be NaN. Instead each branch is differentiated by itself, and its derivatives
are selected like the values, so that nothing of the other branch remains, NaN or not. This is what Lepton's own
forward rule does, and derivatives are NaN or infinite where OpenMM's are.
"""

import math
from collections.abc import Callable, Iterable

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.graph import ONE, Node, constant

__all__ = ["gradient"]

Gradient = dict[str, Node]


def gradient(root: Node, names: Iterable[str]) -> Gradient:
    """Derivatives of `root` with respect to `names`; those that are identically zero are left out."""
    wanted = set(names)
    depends: dict[Node, bool] = {}
    for node in graph.ordered([root]):
        depends[node] = node.name in wanted or any(depends[argument] for argument in node.arguments)
    done: dict[Node, Gradient] = {}
    # Branches come before the nodes that choose between them, so that no recursion is needed.
    for node in graph.ordered([root]):
        if node.kind in _BRANCHES and depends[node]:
            for branch in _BRANCHES[node.kind](node)[1:]:
                if branch not in done:
                    done[branch] = _accumulate(branch, depends, done)
    return _accumulate(root, depends, done)


def _accumulate(root: Node, depends: dict[Node, bool], done: dict[Node, Gradient]) -> Gradient:
    result: Gradient = {}
    adjoints: dict[Node, Node] = {root: ONE}
    for node in reversed(graph.ordered([root], stop=lambda node: node.kind in _BRANCHES or not depends[node])):
        adjoint = adjoints.pop(node, None)
        if adjoint is None or not depends[node]:
            continue
        if node.kind == "variable":
            result[node.name] = adjoint
        elif node.kind in _BRANCHES:
            for name, slope in _chosen(node, done).items():
                # The variable itself may have been passed already, or be still to come: add to its adjoint.
                _add(adjoints, graph.variable(name), graph.multiply(adjoint, slope))
        else:
            for position, argument in enumerate(node.arguments):
                if depends[argument]:
                    _add(adjoints, argument, _times_local(adjoint, node, position))
    for node, adjoint in adjoints.items():  # reached through a branch only
        result[node.name] = graph.add(result[node.name], adjoint) if node.name in result else adjoint
    return {name: slope for name, slope in result.items() if not slope.is_constant(0)}


def _add(adjoints: dict[Node, Node], node: Node, term: Node) -> None:
    adjoints[node] = graph.add(adjoints[node], term) if node in adjoints else term


def _chosen(node: Node, done: dict[Node, Gradient]) -> Gradient:
    condition, taken, otherwise = _BRANCHES[node.kind](node)
    first, second = done[taken], done[otherwise]
    return {
        name: graph.apply("select", condition, first.get(name, graph.ZERO), second.get(name, graph.ZERO))
        for name in {**first, **second}
    }


def _step_of_difference(node: Node) -> Node:
    return graph.apply("step", graph.subtract(*node.arguments))


_BRANCHES: dict[str, Callable[[Node], tuple[Node, Node, Node]]] = {
    # Condition, branch where it holds, branch where not; ties of min and max as Lepton has them.
    "select": lambda node: (node.arguments[0], node.arguments[1], node.arguments[2]),
    "max": lambda node: (_step_of_difference(node), node.arguments[0], node.arguments[1]),
    "min": lambda node: (_step_of_difference(node), node.arguments[1], node.arguments[0]),
}


def _times_local(adjoint: Node, node: Node, position: int) -> Node:
    """Adjoint of an argument: the adjoint of `node` times the derivative of `node` with respect to it."""
    a, *rest = node.arguments
    if node.kind == "table":
        assert node.tabulated is not None
        orders = tuple(order + (index == position) for index, order in enumerate(node.orders))
        return graph.multiply(adjoint, graph.table(node.tabulated, node.arguments, orders))
    if node.kind in _DIRECT:
        return _DIRECT[node.kind](adjoint, a, rest[0] if rest else a, node)[position]
    local = _LOCAL[node.kind](a, node)
    return graph.ZERO if local is None else graph.multiply(adjoint, local)


def _direct_atan2(adjoint: Node, a: Node, b: Node, node: Node) -> tuple[Node, ...]:
    scaled = graph.divide(adjoint, graph.add(graph.power(a, constant(2)), graph.power(b, constant(2))))
    return graph.multiply(scaled, b), graph.negate(graph.multiply(scaled, a))


def _direct_power(adjoint: Node, a: Node, b: Node, node: Node) -> tuple[Node, ...]:
    lower = graph.multiply(b, graph.power(a, graph.add(b, constant(-1))))
    return graph.multiply(adjoint, lower), graph.multiply(adjoint, graph.multiply(graph.apply("log", a), node))


_DIRECT: dict[str, Callable[[Node, Node, Node, Node], tuple[Node, ...]]] = {
    # Adjoint, arguments and the node itself to the adjoints of the arguments.
    "add": lambda adjoint, a, b, node: (adjoint, adjoint),
    "sub": lambda adjoint, a, b, node: (adjoint, graph.negate(adjoint)),
    "neg": lambda adjoint, a, b, node: (graph.negate(adjoint),),
    "mul": lambda adjoint, a, b, node: (graph.multiply(adjoint, b), graph.multiply(adjoint, a)),
    "div": lambda adjoint, a, b, node: (
        graph.divide(adjoint, b),
        graph.negate(graph.multiply(adjoint, graph.divide(node, b))),
    ),
    "pow": _direct_power,
    "atan2": _direct_atan2,
    "sqrt": lambda adjoint, a, b, node: (graph.divide(graph.multiply(constant(0.5), adjoint), node),),
    "log": lambda adjoint, a, b, node: (graph.divide(adjoint, a),),
}


def _one_minus_square(a: Node) -> Node:
    return graph.subtract(ONE, graph.power(a, constant(2)))


def _gauss(a: Node) -> Node:
    return graph.apply("exp", graph.negate(graph.power(a, constant(2))))


_LOCAL: dict[str, Callable[[Node, Node], Node | None]] = {
    # Argument and the node itself to the derivative; None is zero everywhere.
    "exp": lambda a, node: node,
    "sin": lambda a, node: graph.apply("cos", a),
    "cos": lambda a, node: graph.negate(graph.apply("sin", a)),
    "tan": lambda a, node: graph.add(ONE, graph.power(node, constant(2))),
    "asin": lambda a, node: graph.reciprocal(graph.apply("sqrt", _one_minus_square(a))),
    "acos": lambda a, node: graph.negate(graph.reciprocal(graph.apply("sqrt", _one_minus_square(a)))),
    "atan": lambda a, node: graph.reciprocal(graph.add(ONE, graph.power(a, constant(2)))),
    "sinh": lambda a, node: graph.apply("cosh", a),
    "cosh": lambda a, node: graph.apply("sinh", a),
    "tanh": lambda a, node: _one_minus_square(node),
    "erf": lambda a, node: graph.multiply(constant(2 / math.sqrt(math.pi)), _gauss(a)),
    "erfc": lambda a, node: graph.multiply(constant(-2 / math.sqrt(math.pi)), _gauss(a)),
    # 1 at 0, as Lepton has it.
    "abs": lambda a, node: graph.apply("select", graph.apply("step", a), ONE, constant(-1)),
    "step": lambda a, node: None,
    "delta": lambda a, node: None,
    "floor": lambda a, node: None,
    "ceil": lambda a, node: None,
}
