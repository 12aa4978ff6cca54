"""From a simplified graph to the operations that are run: powers as products, shared reciprocals, fused comparisons."""

from collections import Counter
from collections.abc import Iterable, Sequence

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.graph import ONE, ZERO, Node, constant, is_product_power

__all__ = ["lower"]


def lower(roots: Iterable[Node]) -> list[Node]:
    """Roots of an equal graph without integer powers and without `step` as a condition.

    Its nodes are not simplified again, which would undo the powers.
    """
    roots = list(roots)
    nodes = graph.ordered(roots)
    exponents: dict[Node, set[int]] = {}
    for node in nodes:
        if is_product_power(node):
            exponents.setdefault(node.arguments[0], set()).add(int(node.arguments[1].value))
    chains: dict[Node, dict[int, Node]] = {}
    lowered: dict[Node, Node] = {}
    for node in nodes:
        arguments = tuple(lowered[argument] for argument in node.arguments)
        if is_product_power(node):
            base = node.arguments[0]
            if base not in chains:
                chains[base] = _chain(arguments[0], exponents[base])
            lowered[node] = chains[base][int(node.arguments[1].value)]
        elif node.kind == "select" and arguments[0].kind == "step":
            lowered[node] = Node("where_at_least", (*_compared(arguments[0].arguments[0]), *arguments[1:]))
        elif arguments:
            lowered[node] = Node(node.kind, arguments, tabulated=node.tabulated, orders=node.orders)
        else:
            lowered[node] = node
    return _with_shared_reciprocals([lowered[root] for root in roots])


def _with_shared_reciprocals(roots: Sequence[Node]) -> list[Node]:
    """Divisions by something that other divisions need too become products: a division costs as much as ten."""
    nodes = graph.ordered(roots)
    factors = {node: _factors(node.arguments[1]) for node in nodes if node.kind == "div"}
    uses = Counter(factor for parts in factors.values() for factor in set(parts))
    done: dict[Node, Node] = {}
    for node in nodes:
        arguments = tuple(done[argument] for argument in node.arguments)
        if node in factors:
            shared = [done[factor] for factor in factors[node] if uses[factor] > 1]
            alone = [done[factor] for factor in factors[node] if uses[factor] == 1]
            done[node] = _quotient(arguments[0], shared, alone)
        elif arguments:
            done[node] = Node(node.kind, arguments, tabulated=node.tabulated, orders=node.orders)
        else:
            done[node] = node
    return [done[root] for root in roots]


def _factors(node: Node) -> list[Node]:
    return [f for a in node.arguments for f in _factors(a)] if node.kind == "mul" else [node]


def _quotient(numerator: Node, shared: Sequence[Node], alone: Sequence[Node]) -> Node:
    parts = [Node("div", (ONE, factor)) for factor in shared]
    if parts:
        inverse = _product(parts)
        numerator = inverse if numerator.is_constant(1.0) else Node("mul", (numerator, inverse))
    return Node("div", (numerator, _product(alone))) if alone else numerator


def _product(nodes: Sequence[Node]) -> Node:
    product = nodes[0]
    for node in nodes[1:]:
        product = Node("mul", (product, node))
    return product


def _chain(base: Node, exponents: set[int]) -> dict[int, Node]:
    """Powers of `base`, each a product of two smaller ones; u^12, u^11, u^6 and u^5 take six products in all."""
    powers = {1: base}

    def build(exponent: int) -> Node:
        if exponent not in powers:
            half = exponent // 2
            smaller = next((low for low in range(half, 0, -1) if low in powers and exponent - low in powers), None)
            if smaller is None:
                smaller = half if exponent % 2 == 0 else 1
            powers[exponent] = Node("mul", (build(smaller), build(exponent - smaller)))
        return powers[exponent]

    for exponent in sorted(exponents):
        build(exponent)
    return powers


def _compared(difference: Node) -> tuple[Node, Node]:
    """Two nodes, the first at least the second where `difference` is at least zero; saves the subtraction."""
    if difference.kind == "sub":
        return difference.arguments[0], difference.arguments[1]
    if difference.kind == "add" and difference.arguments[0].is_constant():
        return difference.arguments[1], constant(-difference.arguments[0].value)
    return difference, ZERO
