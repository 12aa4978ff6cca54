"""Functions of the coordinates of points, as CustomCompoundBondForce has them, in terms of simpler ones."""

from boltzgen.energy.expressions.graph import Node, add, apply, multiply, subtract

__all__ = ["POINT_FUNCTIONS", "point_function"]

POINT_FUNCTIONS = {"pointdistance": 6, "pointangle": 9, "pointdihedral": 12}
"""Their number of arguments: x, y and z of two, three or four points."""

_Vector = tuple[Node, Node, Node]


def point_function(name: str, arguments: list[Node]) -> Node:
    """Distance, angle at the second point, or dihedral (IUPAC sign) of points given by any expressions."""
    points = [(arguments[k], arguments[k + 1], arguments[k + 2]) for k in range(0, len(arguments), 3)]
    if name == "pointdistance":
        return _length(_between(points[0], points[1]))
    if name == "pointangle":
        u, v = _between(points[1], points[0]), _between(points[1], points[2])
        return apply("atan2", _length(_cross(u, v)), _dot(u, v))
    b1, b2, b3 = (_between(points[k], points[k + 1]) for k in range(3))
    first, second = _cross(b1, b2), _cross(b2, b3)
    return apply("atan2", multiply(_length(b2), _dot(b1, second)), _dot(first, second))


def _between(start: _Vector, end: _Vector) -> _Vector:
    x, y, z = (subtract(b, a) for a, b in zip(start, end, strict=True))
    return x, y, z


def _dot(u: _Vector, v: _Vector) -> Node:
    x, y, z = (multiply(a, b) for a, b in zip(u, v, strict=True))
    return add(add(x, y), z)


def _length(u: _Vector) -> Node:
    return apply("sqrt", _dot(u, u))


def _cross(u: _Vector, v: _Vector) -> _Vector:
    def component(j: int, k: int) -> Node:
        return subtract(multiply(u[j], v[k]), multiply(u[k], v[j]))

    return component(1, 2), component(2, 0), component(0, 1)
