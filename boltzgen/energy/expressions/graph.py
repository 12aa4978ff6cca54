"""Expression graphs: immutable nodes with a structural digest, built by functions that simplify a little.

Equal digests mean equal structure, so a dictionary keyed by node shares common subexpressions, across
processes as well. The rewriting rules are those that Lepton's optimizer applies (`ParsedExpression.cpp`),
including the ones that change a value at a singular point (0*x = 0, x/x = 1, sqrt(x)^2 = x, sqrt(x^2) = |x|),
so that both give the same number there.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from boltzgen.energy.expressions.operations import OPERATIONS
from boltzgen.energy.expressions.tabulated import Tabulated

__all__ = [
    "ONE",
    "ZERO",
    "Node",
    "absolute",
    "add",
    "apply",
    "constant",
    "divide",
    "is_product_power",
    "multiply",
    "negate",
    "ordered",
    "power",
    "rebuild",
    "reciprocal",
    "subtract",
    "table",
    "variable",
]

MAX_PRODUCT_POWER = 64
"""Integer powers up to this one are products; above, `torch.pow` is no slower and as exact."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on other nodes; make them with the functions of this module, which simplify."""

    kind: str
    """"constant", "variable", "table", or a key of `OPERATIONS`."""
    arguments: tuple["Node", ...] = ()
    value: float = 0.0
    name: str = ""
    tabulated: Tabulated | None = None
    orders: tuple[int, ...] = ()
    """Of a tabulated function: order of the derivative in each argument."""
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        table_digest = self.tabulated.digest if self.tabulated else b""
        digest.update(repr((self.kind, self.value, self.name, self.orders, table_digest)).encode())
        for argument in self.arguments:
            digest.update(argument.digest)
        object.__setattr__(self, "digest", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def is_constant(self, value: float | None = None) -> bool:
        """True for a number, or for this number."""
        return self.kind == "constant" and (value is None or self.value == value)


def ordered(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """Every node below `roots`, arguments first; arguments of nodes that `stop` accepts are left out."""
    order: dict[Node, None] = {}
    pending = [(root, False) for root in reversed(list(roots))]
    while pending:  # no recursion: a sum of a thousand terms is a thousand deep
        node, expanded = pending.pop()
        if expanded:
            order[node] = None
        elif node not in order:
            pending.append((node, True))
            if not stop(node):
                pending.extend((argument, False) for argument in reversed(node.arguments))
    return list(order)


def rebuild(root: Node, replace: Callable[[Node], Node | None]) -> Node:
    """The graph with every node for which `replace` has an answer replaced, and simplified again."""
    done: dict[Node, Node] = {}
    for node in ordered([root]):
        replacement = replace(node)
        if replacement is None:
            replacement = _remake(node, tuple(done[argument] for argument in node.arguments))
        done[node] = replacement
    return done[root]


def _remake(node: Node, arguments: tuple[Node, ...]) -> Node:
    if not arguments:
        return node
    if node.kind == "table":
        assert node.tabulated is not None
        return table(node.tabulated, arguments, node.orders)
    return apply(node.kind, *arguments)


def constant(value: float) -> Node:
    """A number."""
    return Node("constant", value=float(value) + 0.0)  # -0.0 becomes 0.0: both would be one structure


def variable(name: str) -> Node:
    """A free name."""
    return Node("variable", name=name)


ZERO = constant(0.0)
ONE = constant(1.0)


def table(tabulated: Tabulated, arguments: tuple[Node, ...], orders: tuple[int, ...] = ()) -> Node:
    """A tabulated function of `arguments`, or its partial derivative."""
    orders = orders or (0,) * len(arguments)
    if any(orders) and not tabulated.differentiable:
        return ZERO
    if all(argument.is_constant() for argument in arguments):
        arrays = [torch.from_numpy(array) for array in tabulated.arrays]
        return constant(tabulated.evaluate([argument.value for argument in arguments], arrays, orders).item())
    return Node("table", arguments, tabulated=tabulated, orders=orders)


def apply(kind: str, *arguments: Node) -> Node:
    """Operator or function `kind` of `arguments`, simplified; sec, csc, cot, square, cube and recip are rewritten."""
    if kind in _CONSTRUCTORS:
        return _CONSTRUCTORS[kind](*arguments)
    return _folded(kind, *arguments)


def _folded(kind: str, *arguments: Node) -> Node:
    if not all(argument.is_constant() for argument in arguments):
        return Node(kind, arguments)
    numbers = [torch.tensor(argument.value, dtype=torch.float64) for argument in arguments]
    return constant(OPERATIONS[kind](*numbers).item())


def _sorted(kind: str, a: Node, b: Node) -> Node:
    """A commutative operation; numbers first, then by digest."""
    if (not a.is_constant(), a.digest) > (not b.is_constant(), b.digest):
        a, b = b, a
    return _folded(kind, a, b)


def add(a: Node, b: Node) -> Node:
    if a.is_constant(0):
        return b
    if b.is_constant(0):
        return a
    if b.kind == "neg":
        return subtract(a, b.arguments[0])
    if a.kind == "neg":
        return subtract(b, a.arguments[0])
    if a == b:
        return multiply(constant(2), a)
    return _sorted("add", a, b)


def subtract(a: Node, b: Node) -> Node:
    if a == b:
        return ZERO
    if a.is_constant(0):
        return negate(b)
    if b.is_constant():
        return add(a, constant(-b.value))
    if b.kind == "neg":
        return add(a, b.arguments[0])
    return _folded("sub", a, b)


def negate(a: Node) -> Node:
    if a.is_constant():
        return constant(-a.value)
    if a.kind == "neg":
        return a.arguments[0]
    if a.kind == "sub":
        return subtract(a.arguments[1], a.arguments[0])
    if _scaled(a):
        return multiply(constant(-a.arguments[0].value), a.arguments[1])
    return Node("neg", (a,))


def _scaled(a: Node) -> bool:
    """Is it a number times something?"""
    return a.kind == "mul" and a.arguments[0].is_constant()


def multiply(a: Node, b: Node) -> Node:
    if b.is_constant():
        a, b = b, a
    if a.is_constant():
        return _scale(a.value, b)
    if a.kind == "neg":
        return negate(multiply(a.arguments[0], b))
    if b.kind == "neg":
        return negate(multiply(a, b.arguments[0]))
    if _scaled(a):  # numbers outermost, where they meet
        return _scale(a.arguments[0].value, multiply(a.arguments[1], b))
    if _scaled(b):
        return _scale(b.arguments[0].value, multiply(a, b.arguments[1]))
    (base, first), (other, second) = _as_power(a), _as_power(b)
    if base == other and first + second <= MAX_PRODUCT_POWER:
        return power(base, constant(first + second))
    if a.kind == "div" and b.kind == "div":
        for over, under in ((a, b), (b, a)):  # (x/y) (y/z)
            if over.arguments[1] == under.arguments[0]:
                return divide(over.arguments[0], under.arguments[1])
    if b.kind == "div" and b.arguments[0].is_constant(1):
        return divide(a, b.arguments[1])
    if a.kind == "div" and a.arguments[0].is_constant(1):
        return divide(b, a.arguments[1])
    return _sorted("mul", a, b)


def _scale(factor: float, a: Node) -> Node:
    if a.is_constant():
        return constant(factor * a.value)
    if factor == 0:
        return ZERO
    if factor == 1:
        return a
    if factor == -1:
        return negate(a) if not _scaled(a) else _scale(-a.arguments[0].value, a.arguments[1])
    if a.kind == "neg":
        return _scale(-factor, a.arguments[0])
    if _scaled(a):
        return _scale(factor * a.arguments[0].value, a.arguments[1])
    if a.kind == "div" and a.arguments[0].is_constant():
        return divide(constant(factor * a.arguments[0].value), a.arguments[1])
    return Node("mul", (constant(factor), a))


def is_product_power(a: Node) -> bool:
    """Is it a power with an exponent that makes it a product?"""
    return a.kind == "pow" and a.arguments[1].is_constant() and _is_product(a.arguments[1].value)


def _as_power(a: Node) -> tuple[Node, int]:
    return (a.arguments[0], int(a.arguments[1].value)) if is_product_power(a) else (a, 1)


def _is_product(exponent: float) -> bool:
    return 0 < exponent <= MAX_PRODUCT_POWER and exponent == int(exponent)


def divide(a: Node, b: Node) -> Node:
    if a.is_constant() and b.is_constant():
        return _folded("div", a, b)
    if a == b:
        return ONE
    if a.is_constant(0):
        return ZERO
    if b.is_constant():
        return _scale((torch.tensor(1.0, dtype=torch.float64) / b.value).item(), a)
    if a.kind == "neg":
        return negate(divide(a.arguments[0], b))
    if b.kind == "neg":
        return negate(divide(a, b.arguments[0]))
    if _scaled(a):
        return _scale(a.arguments[0].value, divide(a.arguments[1], b))
    if b.kind == "div" and b.arguments[0].is_constant(1):
        return multiply(a, b.arguments[1])
    if a.is_constant() and is_product_power(b):  # powers of 1/b, as for negative exponents
        return _scale(a.value, power(reciprocal(b.arguments[0]), b.arguments[1]))
    if a.kind == "div" and a.arguments[1].kind == "div" and a.arguments[1].arguments[1] == b:
        return divide(a.arguments[0], a.arguments[1].arguments[0])  # (x / (y/b)) / b, from the slope of log(y/b)
    return Node("div", (a, b))


def reciprocal(a: Node) -> Node:
    return divide(ONE, a)


def power(a: Node, b: Node) -> Node:
    if a.is_constant() and b.is_constant():
        return _folded("pow", a, b)
    if a.is_constant(0) or a.is_constant(1):
        return a
    if not b.is_constant():
        return Node("pow", (a, b))
    exponent = b.value
    if exponent == 0:
        return ONE
    if exponent == 1:
        return a
    if abs(exponent) == 0.5:
        root = apply("sqrt", a)
        return root if exponent > 0 else reciprocal(root)
    if _is_product(-exponent):  # powers of 1/a, as Lepton evaluates them
        return power(reciprocal(a), constant(-exponent))
    return _product_power(a, exponent) if _is_product(exponent) else Node("pow", (a, b))


def _product_power(a: Node, exponent: float) -> Node:
    even = exponent % 2 == 0
    if a.kind == "neg":
        result = power(a.arguments[0], constant(exponent))
        return result if even else negate(result)
    if a.kind == "abs" and even:
        return power(a.arguments[0], constant(exponent))
    if a.kind == "sqrt" and exponent == 2:
        return a.arguments[0]
    base, inner = _as_power(a)
    if inner > 1 and _is_product(inner * exponent):
        return power(base, constant(inner * exponent))
    return Node("pow", (a, constant(exponent)))


def _sqrt(a: Node) -> Node:
    if a.kind == "pow" and a.arguments[1].is_constant(2):
        return absolute(a.arguments[0])
    return _folded("sqrt", a)


def absolute(a: Node) -> Node:
    if a.kind == "neg":
        return absolute(a.arguments[0])
    return a if a.kind == "abs" else _folded("abs", a)


def _select(condition: Node, taken: Node, otherwise: Node) -> Node:
    if condition.is_constant():
        return taken if condition.value != 0 else otherwise
    return taken if taken == otherwise else Node("select", (condition, taken, otherwise))


def _extreme(kind: str) -> Callable[[Node, Node], Node]:
    return lambda a, b: a if a == b else _folded(kind, a, b)


_CONSTRUCTORS: dict[str, Callable[..., Node]] = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "neg": negate,
    "pow": power,
    "sqrt": _sqrt,
    "abs": absolute,
    "select": _select,
    "min": _extreme("min"),
    "max": _extreme("max"),
    "square": lambda a: power(a, constant(2)),
    "cube": lambda a: power(a, constant(3)),
    "recip": reciprocal,
    "sec": lambda a: reciprocal(apply("cos", a)),
    "csc": lambda a: reciprocal(apply("sin", a)),
    "cot": lambda a: reciprocal(apply("tan", a)),
}
