"""Energy expressions against OpenMM's Reference platform, which parses and differentiates them by itself."""

import copy
import itertools
import math
import pickle

import numpy as np
import openmm
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from boltzgen.energy.expressions import (
    ExpressionProgram,
    parse_expression,
    tabulated_function,
)
from boltzgen.energy.expressions.graph import ordered
from boltzgen.errors import PotentialError

NAMES = ("x", "y", "z")
PARAMETERS = {"a": 0.7, "b": -1.3, "n": 3.0}
POINTS = np.array(
    [[0.3, 0.5, 0.9], [0.8, -0.4, 0.2], [-0.6, 0.7, -0.1], [0.25, 0.25, 0.5], [1.7, 2.9, -3.1], [-0.9, -0.8, 1e-3]]
)


def openmm_reference(text, points, functions=None):
    """Values (P,) and gradients (P, 3) of an energy expression in x, y, z by OpenMM, one point at a time."""
    system = openmm.System()
    system.addParticle(1.0)
    # A compound bond of one particle, because it takes tabulated functions, which an external force does not.
    force = openmm.CustomCompoundBondForce(1, _of_first_particle(text))
    for name in PARAMETERS:
        force.addPerBondParameter(name)
    for name, function in (functions or {}).items():
        force.addTabulatedFunction(name, copy.deepcopy(function))  # the force deletes what it is given
    force.addBond([0], list(PARAMETERS.values()))
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    values, slopes = [], []
    for point in points:
        context.setPositions([openmm.Vec3(*map(float, point))])
        state = context.getState(getEnergy=True, getForces=True)
        values.append(state.getPotentialEnergy()._value)
        slopes.append([-component for component in state.getForces()[0]._value])
    return np.array(values), np.array(slopes)


def _of_first_particle(text):
    return f"{text}; x=x1; y=y1; z=z1"


def program_of(text, functions=None, **options):
    tables = {name: tabulated_function(function) for name, function in (functions or {}).items()}
    return ExpressionProgram(parse_expression(text, tables), NAMES, PARAMETERS, NAMES, **options)


def evaluate(text, points, functions=None):
    program = program_of(text, functions)
    columns = [torch.tensor(column) for column in np.asarray(points, dtype=float).T]
    value, slopes = program(*columns)
    assert torch.equal(program.value(*columns).nan_to_num(1.25), value.nan_to_num(1.25))
    return value.numpy(), torch.stack(slopes, dim=1).numpy()


def assert_agrees(text, points=POINTS, functions=None, rtol=1e-12, atol=1e-12):
    """Equal to OpenMM to the rounding of a few dozen operations, infinities and NaN at the same places."""
    expected_value, expected_slopes = openmm_reference(text, points, functions)
    value, slopes = evaluate(text, points, functions)
    np.testing.assert_allclose(value, expected_value, rtol=rtol, atol=atol, err_msg=f"value of {text}")
    np.testing.assert_allclose(slopes, expected_slopes, rtol=rtol, atol=atol, err_msg=f"slopes of {text}")


UNARY = [
    *("sqrt", "exp", "log", "sin", "cos", "sec", "csc", "tan", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *("erf", "erfc", "step", "delta", "square", "cube", "recip", "abs", "floor", "ceil"),
]


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_argument(name):
    assert_agrees(f"y*{name}(x*z+0.1)")


@pytest.mark.parametrize(
    "name", ["step", "delta", "abs", "floor", "ceil", "square", "cube", "erf", "tanh", "atan", "exp"]
)
def test_functions_at_zero_and_on_integers(name):
    points = [[0.0, 1.0, 0.0], [-0.0, 1.0, 0.0], [1.0, 2.0, 0.0], [-1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [-1.5, 1.0, 0.0]]
    assert_agrees(f"{name}(x)*y", points)


@pytest.mark.parametrize("text", ["atan2(x,y)", "min(x,y)", "max(x,y)", "select(x,y,z)", "select(x-y,y*z,z^2)"])
def test_functions_of_more_arguments(text):
    signs = [[sign * 0.5, other * 0.5, 0.3] for sign, other in itertools.product((-1, 0, 1), repeat=2)][:4]
    assert_agrees(text, np.concatenate([POINTS, signs, [[0.0, 0.5, 0.1], [0.5, 0.5, 2.0], [0.5, 0.0, 0.1]]]))


@pytest.mark.parametrize(
    "text",
    [
        "-x^2",
        "2^-x",
        "2^-x^2",
        "x^2^0.5^y",
        "2^3^x",
        "-x^-2",
        "--x",
        "x--y",
        "x*-y",
        "x/-y^2*z",
        "x-y-z",
        "x-(y-z)",
        "x/y/z",
        "x/(y/z)",
        "x/y*z",
        "-x*y",
        "-2^2*x",
        "1e-1*x+2E1*y+.5e+0*z+3.*x",
        "2.e0 * x",
        " x\t+ y\n*z ",
        "x^0",
        "x^1",
        "x^7+x^-7+x^13",
        "x^-1",
        "(x*y)^12-(x*y)^6",
        "x^70",
        "(x^2)^3*x",
        "abs(z)^0.5",
        "abs(z)^-0.5",
        "abs(z)^1.5",
        "abs(z)^2.7",
        "2^x",
        "abs(x)^y",
        "x^n",
        "x^(n-1)",
        "(x^2)^0.5",
        "sqrt(x^2)",
        "sqrt(x)^2",
        "sqrt(x*x)*y",
        "x*x*x/x",
        "x/x+y-y",
        "0*x+y",
        "0/x",
        "1/(1/x)",
        "x*(1/y)",
        "(1/x)*(1/y)",
        "1/x^2+3/y^3",
        "log(x/y)",
        "log((x*y)^2/(y*z)^2)*sin(x/y)",
        "exp(-(x^2+y^2)/2)",
        "x+x+x",
        "-(x-y)*(y-x)",
        "-(-3*x)*(2*y)/-4",
        "(-x)^3*(-y)^4",
        "x+1-1-x",
        "max(x,min(y,z))*min(x,x)",
        "abs(-x)+abs(abs(y))",
        "select(1,x,y)+select(0,x,y)",
        "select(step(x-y),x^2,y^2)",
        "select(step(x-0.25),x,-x)*select(step(-x),y,2)",
        "select(delta(x-y),z,2*z)",
        "select(step(x)*step(y),1,2)*z",
        "atan2(x,2)+atan2(2,y)",
        "min(x,0.1)+max(0.1,y)+min(0.2,z)",
        "acos(x/sqrt(x^2+y^2+z^2))",
        "a*b*x+n",
        "a",
        "3",
        "-0.5*(1/2-exp(-a*x)/3)",
    ],
)
def test_operators_and_rewritings(text):
    assert_agrees(text)


@pytest.mark.parametrize(
    "text",
    [
        "p*q; p=q+x; q=y*z",
        "p; p=q^2; q=p*x; p=y",
        "s ; s = x ;; ",
        "r^2;r=sqrt(x^2+y^2)",
        "x1y; x1y=x",
    ],
)
def test_intermediate_values(text):
    assert_agrees(text)


def test_a_definition_does_not_see_those_before_it():
    assert parse_expression("q; p=x; q=p").variables == {"p"}


def test_obc2_and_charmm_like_expressions():
    born = (
        "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r), 0);"
        "U=r+sr2;L=max(or1, D);D=abs(r-sr2);r=x;or1=y;sr2=z"
    )
    # The three regimes: one sphere within the other either way, overlapping, apart.
    points = np.random.default_rng(1).uniform(0.05, 0.6, (200, 3))
    assert_agrees(born, points, rtol=1e-9)
    pair = "-138.9*(1/a-1/78.5)*b*n/f; f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2))); r=x; B1=y; B2=z"
    assert_agrees(pair, points)
    assert_agrees("4*eps*((s/x)^12-(s/x)^6); s=0.5*(y+z); eps=sqrt(a*a)", points)


# NaN and infinity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "select(step(x), sqrt(x), y)",
        "select(step(x-0.1), log(x), y*y)",
        "select(x, 1/x, y)",
        "select(x, y/x, x^2) + x*y",
        "select(step(-x), y, acos(x-1)^0.5)",
        "max(sqrt(abs(x)), 1) + min(-sqrt(abs(x)), y)",
        "select(step(x), select(step(y), sqrt(x)*log(y), sqrt(x)), select(step(y), sqrt(y), x*y))",
        "2*select(x, exp(1/x), 3*y)^2",
    ],
)
def test_branches_that_are_not_taken_leave_no_trace(text):
    points = [[sign * 0.5, other * 0.25, 1.0] for sign, other in itertools.product((0, 1), repeat=2)]
    points += [[-0.5, 0.25, 1.0], [-0.5, -0.25, 1.0]]
    with_nan = openmm_reference(text, points)
    finite = np.isfinite(with_nan[0]) & np.isfinite(with_nan[1]).all(axis=1)
    assert finite.any()
    value, slopes = evaluate(text, points)
    np.testing.assert_allclose(value[finite], with_nan[0][finite], rtol=1e-12)
    np.testing.assert_allclose(slopes[finite], with_nan[1][finite], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(np.isfinite(value), np.isfinite(with_nan[0]))


def test_a_nan_is_not_hidden_by_min_and_max():
    nan = torch.tensor([math.nan], dtype=torch.float64)
    one = torch.ones_like(nan)
    for text in ("min(x,y)", "max(x,y)", "min(y,x)", "max(x,1)", "min(2,x)"):
        assert program_of(text).value(nan, one, one).isnan().all()


# Random expressions ---------------------------------------------------------------------------------------------------


def _differ(parts):
    """No x-x, x+-x or x/x, as a number never stands by itself: OpenMM's optimizer does not return from an expression
    in which a constant NaN comes about, as in log(-1) or the slope of atan2(x-x,x-x)."""
    left, _, right = parts
    one, other = parse_expression(left), parse_expression(f"({right})")
    return one not in (other, parse_expression(f"-({right})"))


def _infix(inner, operators, template):
    return (
        st.tuples(inner, st.sampled_from(operators), inner).filter(_differ).map(lambda parts: template.format(*parts))
    )


_NUMBERS = st.sampled_from(["2", "3", "0.5", "1.7", "1e-1"])
_NAMES = st.sampled_from([*NAMES, *PARAMETERS])
_LEAVES = st.one_of(_NAMES, st.builds("({}{}{})".format, _NUMBERS, st.sampled_from("+-*/^"), _NAMES))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        _infix(inner, "+-*/", "({}){}({})"),
        _infix(inner, "+-*/^", "{}{}{}"),
        st.builds("({})^{}".format, inner, st.sampled_from(["2", "3", "6", "-1", "-3", "0.5", "-0.5", "1.5"])),
        st.builds("-{}".format, inner),
        st.builds("{}({})".format, st.sampled_from(UNARY), inner),
        st.builds("{}({},{})".format, st.sampled_from(["min", "max", "atan2"]), inner, inner),
        st.builds("select({},{},{})".format, inner, inner, inner),
        st.builds("select(step({}-{}),{},{})".format, inner, inner, inner, inner),
    ),
    max_leaves=12,
)


def has_infinite_number(text):
    nodes = ordered([parse_expression(text).root])
    return any(node.is_constant() and not math.isfinite(node.value) for node in nodes)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_TREES)
def test_random_expressions(text):
    """Where OpenMM's value and slopes are numbers, ours are the same."""
    # Lepton takes 0^-1 for 0 where the zero comes from simplification, as in (x-x)^-1; here it is infinite.
    assume(not has_infinite_number(text))
    expected_value, expected_slopes = openmm_reference(text, POINTS)
    value, slopes = evaluate(text, POINTS)
    expected = np.column_stack([expected_value, expected_slopes])
    found = np.column_stack([value, slopes])
    good = np.isfinite(expected).all(axis=1) & (np.abs(expected) < 1e8).all(axis=1)
    if "min" in text or "max" in text:
        good &= ~np.isnan(found).any(axis=1)  # see test_a_nan_is_not_hidden_by_min_and_max
    assume(good.any())
    # What rounding in the last places of the input does to the output is the accuracy that can be asked for.
    moved = [np.column_stack(evaluate(text, POINTS * (1 + shift))) for shift in (1e-12, -1e-12)]
    with np.errstate(invalid="ignore"):
        spread = np.max([np.nan_to_num(np.abs(other - found)) for other in moved], axis=0)
    tolerance = 1e-10 * (1 + np.abs(expected[good])) + 10 * spread[good]
    assert (np.abs(found[good] - expected[good]) <= tolerance).all(), (text, found[good], expected[good])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_TREES)
def test_derivatives_are_those_of_autograd(text):
    """A second witness: torch differentiates the value program, wherever neither meets a NaN or infinity."""
    program = program_of(text)
    columns = [torch.tensor(column, requires_grad=True) for column in POINTS.T]
    value, slopes = program(*columns)
    if not value.requires_grad:
        assert all((slope == 0).all() for slope in slopes)
        return
    expected = torch.autograd.grad(value.sum(), columns, allow_unused=True)
    # At a tie of min, max or abs torch takes the mean of both slopes, OpenMM one of them.
    assume(not any(name in text for name in ("min", "max", "abs")))
    for slope, other in zip(slopes, expected, strict=True):
        other = torch.zeros_like(slope) if other is None else other
        good = slope.isfinite() & other.isfinite() & (slope.abs() < 1e8)
        torch.testing.assert_close(slope[good], other[good], rtol=1e-7, atol=1e-7)


# Tabulated functions --------------------------------------------------------------------------------------------------

_RNG = np.random.default_rng(7)


def _periodic(*shape):
    values = _RNG.normal(size=shape)
    for axis in range(len(shape)):
        last = [slice(None)] * len(shape)
        first = [slice(None)] * len(shape)
        last[axis], first[axis] = -1, 0
        values[tuple(last)] = values[tuple(first)]
    return values.ravel(order="F")


CONTINUOUS = {
    "f(x)": openmm.Continuous1DFunction(_RNG.normal(size=7), -0.5, 1.0),
    "f(x )": openmm.Continuous1DFunction(_RNG.normal(size=2), -0.5, 1.0),
    "f( x)": openmm.Continuous1DFunction(_RNG.normal(size=3), -0.5, 1.0),
    "f(x+0)": openmm.Continuous1DFunction(_periodic(7), -0.5, 1.0, True),
    "f(x-0)": openmm.Continuous1DFunction(_periodic(3), -0.5, 1.0, True),
    "f(x,y)": openmm.Continuous2DFunction(7, 4, _RNG.normal(size=28), -0.5, 1.0, -0.4, 0.5),
    "f(x, y)": openmm.Continuous2DFunction(2, 3, _RNG.normal(size=6), -0.5, 1.0, -0.4, 0.5),
    "f(x ,y)": openmm.Continuous2DFunction(7, 5, _periodic(7, 5), -0.5, 1.0, -0.4, 0.5, True),
    "f(x,y,z)": openmm.Continuous3DFunction(4, 5, 3, _RNG.normal(size=60), -0.5, 1.0, -0.4, 0.5, 0.0, 1.0),
    "f(x,y,z )": openmm.Continuous3DFunction(4, 5, 6, _periodic(4, 5, 6), -0.5, 1.0, -0.4, 0.5, 0.0, 1.0, True),
}
INSIDE = _RNG.uniform([-0.5, -0.4, 0.0], [1.0, 0.5, 1.0], (40, 3))
# Grid points (steps 0.25, 0.3, 0.5), corners, and points beyond each side.
ON_GRID = [[x, y, z] for x in (-0.5, -0.25, 0.0, 1.0) for y in (-0.4, -0.1, 0.5) for z in (0.0, 0.5, 1.0)]
OUTSIDE = [[-0.6, 0.0, 0.5], [1.1, 0.0, 0.5], [0.1, -0.5, 0.5], [0.1, 0.6, 0.5], [0.1, 0.0, -0.1], [0.1, 0.0, 1.2]]


@pytest.mark.parametrize("call", CONTINUOUS)
def test_continuous_tables(call):
    # Splines of up to 64 coefficients, whose terms cancel: a few hundred roundings.
    functions = {"f": CONTINUOUS[call]}
    assert_agrees(call, INSIDE, functions, rtol=1e-10, atol=1e-10)
    assert_agrees(call, OUTSIDE, functions, rtol=1e-10, atol=1e-10)
    # On the grid both polynomials that meet there have one value and slope, whichever is taken.
    assert_agrees(call, ON_GRID, functions, rtol=1e-10, atol=1e-10)
    assert_agrees(f"y*{call.replace('x', 'x^2')}^2", INSIDE, functions, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "function"),
    [
        ("f(9*x)", openmm.Discrete1DFunction(_RNG.normal(size=5))),
        ("f(9*x,4*y)", openmm.Discrete2DFunction(5, 3, _RNG.normal(size=15))),
        ("f(9*x,4*y,3*z)", openmm.Discrete3DFunction(5, 3, 4, _RNG.normal(size=60))),
        ("f(n)*x", openmm.Discrete1DFunction(_RNG.normal(size=5))),
        ("f(3)*x+f(1.5)", openmm.Discrete1DFunction(_RNG.normal(size=5))),
    ],
)
def test_discrete_tables(call, function):
    """Rounded, clipped to the table, slope zero."""
    halves = [[i / 9 + 1 / 18, j / 4 + 1 / 8, 0.5] for i in range(-2, 6) for j in range(-2, 4)]
    assert_agrees(call, [*INSIDE, *halves, *ON_GRID], {"f": function})


def test_discrete_tables_of_constants_are_folded():
    table = tabulated_function(openmm.Discrete2DFunction(3, 2, [1, 2, 3, 4, 5, 6]))
    expression = parse_expression("f(i,j)*x", {"f": table})
    indices = {"i": np.array([[0.0], [2.0], [1.0]]), "j": np.array([[0.0], [0.0], [1.0]])}
    program = ExpressionProgram(expression, ("x",), indices, ("x",))
    value, (slope,) = program(torch.ones(1, 4, dtype=torch.float64))
    assert torch.equal(value, torch.tensor([[1.0], [3.0], [5.0]], dtype=torch.float64).expand(3, 4))
    assert torch.equal(slope, value)
    assert [tuple(buffer.shape) for name, buffer in program.named_buffers() if buffer.dim()] == [(3, 1)]


def test_a_table_of_nan_is_nan():
    table = tabulated_function(CONTINUOUS["f(x)"])
    program = ExpressionProgram(parse_expression("f(x)", {"f": table}), ("x",), derivatives=("x",))
    value, (slope,) = program(torch.tensor([math.nan, 0.1], dtype=torch.float64))
    assert value.isnan().tolist() == slope.isnan().tolist() == [True, False]


def test_unequal_ends_of_a_periodic_table():
    with pytest.raises(PotentialError, match="first and last"):
        tabulated_function(openmm.Continuous1DFunction([1.0, 2.0, 3.0], 0, 1, True))
    with pytest.raises(PotentialError, match="object"):
        tabulated_function(object())


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("x+", 2, "missing"),
        ("", 0, "missing"),
        ("x+;y=2", 2, "missing"),
        ("x*+y", 2, "cannot stand"),
        ("x y", 2, "did not expect 'y'"),
        ("2x", 1, "operator"),
        ("x*(y+z", 6, "column 3"),
        ("x*y)", 3, "did not expect"),
        ("x)*(y", 1, "did not expect"),
        ("sqrt (x)", 5, "did not expect"),
        ("exp(x,y)", 0, "takes 1 argument, not 2"),
        ("2*max(x)", 2, "takes 2 arguments, not 1"),
        ("select(x,y)", 0, "takes 3 arguments, not 2"),
        ("exp()", 4, "cannot stand"),
        ("1+sqr(x)", 2, "unknown function 'sqr'; did you mean 'sqrt'"),
        ("pow(x,2)", 0, r"x\^n"),
        ("x; 2", 3, "definition"),
        ("x=3", 1, "after a ';'"),
        ("x; y=", 5, "missing"),
        ("1e+x", 1, "operator"),
        ("1.2.3*x", 3, "operator"),
        ("x*[y]", 2, "unknown name"),
        ("x+\nyy", 3, "unknown name 'yy'; did you mean 'y'"),
        ("a*epsilonn", 2, "unknown name"),
    ],
)
def test_errors_point_at_the_place(text, column, words):
    with pytest.raises(PotentialError, match=words) as caught:
        program_of(text)
    _, shown, caret = str(caught.value).rsplit("\n", 2)
    assert shown[2:] == text.replace("\n", " ")
    assert caret == " " * (2 + column) + "^"
    with pytest.raises(openmm.OpenMMException):
        openmm_reference(text, POINTS[:1])


@pytest.mark.parametrize("text", ["x; y+z=2", "x; y=z=3"])
def test_nonsense_that_openmm_passes_over(text):
    with pytest.raises(PotentialError, match="definition"):
        parse_expression(text)


def test_deep_and_long_expressions():
    with pytest.raises(PotentialError, match="deep"):
        parse_expression("(" * 500 + "x" + ")" * 500)
    long = "+".join(f"x^{power}*y" for power in range(1, 60)) + "+x" * 3000
    assert len(parse_expression(long).variables) == 2


def test_equality_is_of_the_formula():
    same = [
        ["a*b", "b*a"],
        ["a*b*c", "a*(c*b)", "q*b; q=c*a"],
        ["a+b-c", "b-(c-a)", "-c+(a+b)", "-(c-a)+b"],
        ["x-2*y", "-2*y+x", "x+y*-2"],
        ["a/b*c", "c*a/b", "a*c/b", "a/(b/c)"],
        ["x^2", "x*x", "square(x)"],
        ["1/x^6", "x^-6", "recip(x)^6", "1/cube(x)^2"],
        ["4*eps*((s/r)^12-(s/r)^6); s=0.5*(s1+s2)", "4*(v*v-v)*eps; v=u^6; u=m/r; m=(s2+s1)/2"],
        ["(a-b)*c", "-(b-a)*c"],
        ["f(a+b)*3", "3*f(b+a)"],
    ]
    other = [
        "a*b+c",
        "a-b",
        "b-a",
        "a/b",
        "b/a",
        "min(a,b)",
        "atan2(a,b)",
        "atan2(b,a)",
        "f(a)",
        "g(a)",
        "a",
        "-a",
        "2",
    ]
    tables = {
        "f": tabulated_function(openmm.Discrete1DFunction([1, 2])),
        "g": tabulated_function(openmm.Discrete1DFunction([1, 3])),
    }
    groups = [[parse_expression(text, tables) for text in group] for group in [*same, *([text] for text in other)]]
    for (i, first), (j, second) in itertools.product(enumerate(groups), repeat=2):
        for one, two in itertools.product(first, second):
            assert (one == two) == (i == j), (one, two)
            assert i != j or hash(one) == hash(two)
    assert groups[0][0] != "a*b"


def test_rename_and_substitute():
    expression = parse_expression("r*exp(-k*r)")
    assert expression.rename({"r": "k", "k": "r"}) == parse_expression("k*exp(-r*k)")
    assert expression.substitute({"k": 2.0, "r": parse_expression("x+y")}) == parse_expression("(y+x)*exp(-2*(x+y))")
    assert expression.derivative("k") == parse_expression("r*(exp(-k*r)*-r)")
    assert expression.derivative("q") == parse_expression("0")
    assert expression.variables == {"r", "k"}
    assert parse_expression("0*q+x-x+p").variables == {"p"}


def test_calls_of_names_become_names():
    expression = parse_expression("k*(distance( p1, p2)-1)^2+d; d=distance(p2,p3)", calls={"distance": 2})
    assert expression.variables == {"k", "distance(p1,p2)", "distance(p2,p3)"}
    for text, words in (
        ("distance(p1)", "takes 2"),
        ("distance(p1,2)", "must be names"),
        ("distanc(p1,p2)", "distance"),
    ):
        with pytest.raises(PotentialError, match=words):
            parse_expression(text, calls={"distance": 2})


# Programs -------------------------------------------------------------------------------------------------------------


def test_constants_are_evaluated_once_in_double_precision():
    expression = parse_expression("sqrt(e1*e2)*(s/r)^2; s=0.5*(s1+s2)")
    rng = np.random.default_rng(3)
    arrays = {name: rng.uniform(1, 2, (5, 1)) for name in ("e1", "e2", "s1")}
    program = ExpressionProgram(expression, ("r",), {**arrays, "s2": 1.0}, ("r",))
    shapes = sorted(tuple(buffer.shape) for buffer in program.buffers() if buffer.dim())
    assert shapes == [(5, 1), (5, 1)]  # the product and the mean, and twice neither for the slope
    assert program.state_dict() == {}
    r = torch.tensor(rng.uniform(0.5, 2, (5, 8)))
    value, (slope,) = program(r)
    expected = np.sqrt(arrays["e1"] * arrays["e2"]) * (0.5 * (arrays["s1"] + 1) / r.numpy()) ** 2
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(slope, -2 * expected / r.numpy(), rtol=1e-14)
    program = program.to(torch.float32)
    single, (single_slope,) = program(r.float())
    assert single.dtype == single_slope.dtype == torch.float32
    torch.testing.assert_close(single.double(), value, rtol=1e-6, atol=0)  # ten roundings of 6e-8


def test_shapes_are_broadcast():
    x, y = torch.rand(3, 1, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    program = ExpressionProgram(parse_expression("k+x"), ("x", "y"), {"k": np.ones((2, 1, 1))}, ("x", "y"))
    value, (in_x, in_y) = program(x, y)
    assert value.shape == in_x.shape == in_y.shape == (2, 3, 4)
    assert (value == 1 + x).all()
    assert (in_x == 1).all()
    assert (in_y == 0).all()
    constant = ExpressionProgram(parse_expression("k*2"), ("x",), {"k": np.arange(3.0)[:, None]}, ("x",)).float()
    value, (slope,) = constant(torch.zeros(3, 2))
    assert value.tolist() == [[0, 0], [2, 2], [4, 4]]
    assert slope.tolist() == [[0, 0]] * 3
    assert value.dtype == slope.dtype == torch.float32
    alone = ExpressionProgram(parse_expression("k^2"), (), {"k": 3.0})
    assert alone.value() == 9
    assert alone.float()()[0].dtype == torch.float32
    none = ExpressionProgram(parse_expression("k*x"), ("x",), {"k": np.zeros((0, 1))}, ("x",))
    assert none(torch.zeros(0, 7, dtype=torch.float64))[0].shape == (0, 7)


def test_names_are_checked():
    expression = parse_expression("k*r")
    with pytest.raises(PotentialError, match="unknown name 'k'"):
        ExpressionProgram(expression, ("r",))
    with pytest.raises(PotentialError, match="among the variables"):
        ExpressionProgram(expression, ("r",), {"k": 1.0}, ("k",))
    with pytest.raises(PotentialError, match="1 tensors"):
        ExpressionProgram(expression, ("r",), {"k": 1.0})(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    "text",
    ["select(step(x-y), x^7*a, log(z)/y)+min(x,0.2)+atan2(1,y)", "f(x,y)*z+f(y,x)", "d(n)*x+d(x*3)", "erfc(x)*2^y"],
)
def test_programs_are_traced_whole_copied_and_pickled(text):
    functions = {"f": CONTINUOUS["f(x,y)"], "d": openmm.Discrete1DFunction([1.0, 5.0, 2.0, 3.0])}
    program = program_of(text, functions)
    columns = [torch.tensor(column) for column in INSIDE.T]
    value, slopes = program(*columns)
    compiled = torch.compile(program, backend="eager", fullgraph=True)
    for other in (compiled, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        again, slopes_again = other(*columns)
        assert torch.equal(again.nan_to_num(), value.nan_to_num())
        for one, two in zip(slopes, slopes_again, strict=True):
            assert torch.equal(one.nan_to_num(), two.nan_to_num())


def test_powers_share_their_products():
    program = ExpressionProgram(parse_expression("x^12-x^6"), ("x",), derivatives=("x",))
    # x^2 to x^12 by way of 4, 5, 6, 11: six products; two factors and two differences.
    assert len(program._steps) == 10
    assert len(program._value_steps) == 5
