"""Canonical form of a graph, for comparison: sums and products flattened and sorted, signs in front."""

import hashlib

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.graph import Node

__all__ = ["canonical"]

_SUMS = ("add", "sub", "neg")
_PRODUCTS = ("mul", "div")
_Form = tuple[bytes, int]


def canonical(root: Node) -> _Form:
    """Digest and sign, the same for graphs that differ in the order, grouping and signs of sums and products alone."""
    forms: dict[Node, _Form] = {}
    for node in graph.ordered([root]):
        if node.is_constant():
            forms[node] = (graph.constant(abs(node.value)).digest, -1 if node.value < 0 else 1)
        elif node.kind in _SUMS:
            forms[node] = _sum([(forms[part], direct) for part, direct in _flattened(node, _SUMS)])
        elif node.kind in _PRODUCTS:
            forms[node] = _product([(forms[part], direct) for part, direct in _flattened(node, _PRODUCTS)])
        else:
            forms[node] = (_digest(_head(node), [_signed(*forms[argument]) for argument in node.arguments]), 1)
    return forms[root]


def _sum(parts: list[tuple[_Form, bool]]) -> _Form:
    terms = sorted((form, sign if direct else -sign) for (form, sign), direct in parts)
    first = terms[0][1]  # x (a - b) and -x (b - a) are one product
    return _digest(b"sum", [_signed(form, sign * first) for form, sign in terms]), first


def _product(parts: list[tuple[_Form, bool]]) -> _Form:
    negative = sum(sign < 0 for (_, sign), _ in parts)
    factors = sorted(_signed(form, 1 if direct else -1) for (form, _), direct in parts)
    return _digest(b"product", factors), -1 if negative % 2 else 1


def _flattened(node: Node, kinds: tuple[str, ...]) -> list[tuple[Node, bool]]:
    """Terms (factors) of nested sums (products), and whether each is added or subtracted (multiplied or divided)."""
    parts = []
    pending = [(node, True)]
    while pending:
        part, direct = pending.pop()
        if part.kind not in kinds:
            parts.append((part, direct))
            continue
        inverse = part.kind in ("sub", "div", "neg")
        pending += [(a, direct) for a in part.arguments[:-1]] + [(part.arguments[-1], direct != inverse)]
    return parts


def _head(node: Node) -> bytes:
    return repr((node.kind, node.name, node.orders, node.tabulated.digest if node.tabulated else b"")).encode()


def _signed(form: bytes, sign: int) -> bytes:
    return form + (b"+" if sign > 0 else b"-")


def _digest(head: bytes, parts: list[bytes]) -> bytes:
    digest = hashlib.blake2b(head, digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()
