"""Parser of OpenMM's energy expressions: text to graph, by the grammar of the Lepton library (`Parser.cpp`).

An expression is followed by definitions of intermediate values, `name = expression`, separated by semicolons.
A definition may use those that stand after it. From loose to tight: `+ -`, `* /`, unary minus, `^`; `^` groups
to the right and its exponent may be negative, so -x^2 is -(x^2) and 2^-x^2 is 2^(-(x^2)). There is no unary
plus, and a function's name is followed by its parenthesis at once, as in Lepton.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.graph import Node
from boltzgen.energy.expressions.operations import ARITIES
from boltzgen.energy.expressions.points import POINT_FUNCTIONS, point_function
from boltzgen.energy.expressions.tabulated import Tabulated
from boltzgen.errors import PotentialError

__all__ = ["parse", "point_at", "suggestion"]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<function>[^\s+\-*/^(),;=]+)\(
    | (?P<name>[^\s+\-*/^(),;=]+)
    | (?P<mark>[+\-*/^(),;=])
    )""",
    re.VERBOSE,
)
_OPERATORS = {"+": ("add", 0), "-": ("sub", 0), "*": ("mul", 1), "/": ("div", 1), "^": ("pow", 3)}
_UNARY_MINUS = 2
_DEEPEST = 200


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def point_at(text: str, position: int, problem: str) -> PotentialError:
    """Error with the expression and a caret under `position`."""
    line = re.sub(r"\s", " ", text)
    return PotentialError(f"{problem}\n  {line}\n  {' ' * position}^")


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse(text: str, functions: Mapping[str, Tabulated], calls: Mapping[str, int]) -> tuple[Node, dict[str, int]]:
    """Parse a whole expression; see `parse_expression` for the arguments.

    Returns
    -------
    root : Node
    positions : dict
        Where in `text` each free name is first met.
    """
    positions: dict[str, int] = {}
    defined: dict[str, Node] = {}
    main, *definitions = _split(_tokenize(text))
    for tokens in reversed(definitions):
        if len(tokens) == 1:  # nothing between two semicolons
            continue
        if tokens[0].kind != "name" or tokens[1].text != "=":
            raise point_at(text, tokens[0].position, "after ';' comes a definition, as in 'name = expression'")
        # Lepton evaluates a later definition without knowledge of the names that are defined before it.
        defined[tokens[0].text] = _Parser(text, tokens[2:], functions, calls, defined, positions).whole()
    return _Parser(text, main, functions, calls, defined, positions).whole(), positions


def _tokenize(text: str) -> list[_Token]:
    tokens, position = [], 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        assert match is not None  # every character starts some token
        assert match.lastgroup is not None
        kind = match.lastgroup
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        position = match.end()
    return [*tokens, _Token("end", "", end)]


def _split(tokens: list[_Token]) -> list[list[_Token]]:
    """Tokens between semicolons; each part ends with a token of kind "end"."""
    parts: list[list[_Token]] = [[]]
    for token in tokens:
        if token.text == ";":
            parts[-1].append(_Token("end", "", token.position))
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


class _Parser:
    """Precedence climbing over the tokens of one expression."""

    def __init__(
        self,
        text: str,
        tokens: list[_Token],
        functions: Mapping[str, Tabulated],
        calls: Mapping[str, int],
        defined: Mapping[str, Node],
        positions: dict[str, int],
    ) -> None:
        self._text = text
        self._tokens = tokens
        self._functions = functions
        self._calls = calls
        self._defined = defined
        self._positions = positions
        self._next = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._expression(0)
        token = self._tokens[self._next]
        if token.text == "=":
            raise self._fail(token, "a definition stands after a ';'")
        if token.kind != "end":
            hint = ", or an operator is missing before it" if token.kind != "mark" or token.text == "(" else ""
            raise self._fail(token, f"did not expect {token.text!r} here{hint}")
        return node

    def _expression(self, precedence: int) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._fail(self._tokens[self._next], f"nested more than {_DEEPEST} deep")
        node = self._operand()
        while (token := self._tokens[self._next]).text in _OPERATORS and token.kind == "mark":
            kind, tightness = _OPERATORS[token.text]
            if tightness < precedence:
                break
            self._next += 1
            node = graph.apply(kind, node, self._expression(tightness if token.text == "^" else tightness + 1))
        self._depth -= 1
        return node

    def _operand(self) -> Node:
        token = self._tokens[self._next]
        self._next += 1
        if token.kind == "number":
            return graph.constant(float(token.text))
        if token.kind == "name":
            return self._name(token.text, token.position)
        if token.kind == "function":
            return self._call(token)
        if token.text == "(":
            node = self._expression(0)
            self._close(token)
            return node
        if token.text == "-":
            return graph.negate(self._expression(_UNARY_MINUS))
        if token.kind == "end":
            raise self._fail(token, "a number, a name or a parenthesis is missing here")
        raise self._fail(token, f"{token.text!r} cannot stand here; a number, a name or a parenthesis must")

    def _name(self, name: str, position: int) -> Node:
        if name in self._defined:
            return self._defined[name]
        self._positions[name] = min(position, self._positions.get(name, position))
        return graph.variable(name)

    def _call(self, token: _Token) -> Node:
        name = token.text
        of_points = name in self._calls and name in POINT_FUNCTIONS
        if name in self._calls and name not in self._functions and not of_points:
            return self._bare_call(token)
        arities = {**ARITIES, **POINT_FUNCTIONS} if of_points else ARITIES
        arity = len(self._functions[name].shape) if name in self._functions else arities.get(name)
        if arity is None:
            known = {*ARITIES, *self._functions, *self._calls}
            hint = "; powers are written x^n" if name in ("pow", "power") else suggestion(name, known)
            raise self._fail(token, f"unknown function {name!r}{hint}")
        arguments = [self._expression(0)]
        while self._accept(","):
            arguments.append(self._expression(0))
        self._close(token)
        self._check_count(token, len(arguments), arity)
        if name in self._functions:
            return graph.table(self._functions[name], tuple(arguments))
        if of_points:
            return point_function(name, arguments)
        return graph.apply(name, *arguments)

    def _bare_call(self, token: _Token) -> Node:
        """A call that the caller will evaluate, whose arguments are names: one free name, such as 'distance(p1,p2)'."""
        names: list[str] = []
        while not names or self._accept(","):
            argument = self._tokens[self._next]
            if argument.kind != "name":
                raise self._fail(argument, f"the arguments of {token.text!r} must be names")
            names.append(argument.text)
            self._next += 1
        self._close(token)
        self._check_count(token, len(names), self._calls[token.text])
        return self._name(f"{token.text}({','.join(names)})", token.position)

    def _check_count(self, token: _Token, found: int, expected: int) -> None:
        if found != expected:
            raise self._fail(token, f"{token.text!r} takes {expected} argument{'s' * (expected > 1)}, not {found}")

    def _accept(self, mark: str) -> bool:
        token = self._tokens[self._next]
        found = token.kind == "mark" and token.text == mark
        self._next += found
        return found

    def _close(self, opened: _Token) -> None:
        if not self._accept(")"):
            raise self._fail(
                self._tokens[self._next], f"')' is missing, to close the '(' of column {opened.position + 1}"
            )

    def _fail(self, token: _Token, problem: str) -> PotentialError:
        return point_at(self._text, token.position, problem)
