"""Tokens and syntax trees of collective-variable expressions; the grammar is in `collective_variables`."""

import re
from dataclasses import dataclass

from boltzgen.errors import SelectionError

__all__ = [
    "Bound",
    "Comparison",
    "Expression",
    "Logical",
    "Negation",
    "Token",
    "Variable",
    "parse_expression",
    "parse_variable_text",
    "point_at",
]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<label>[A-Za-z0-9_+\-]*[A-Za-z0-9]:[A-Za-z0-9'*"]+)   # ALA2:CA; residue names may start with a digit
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z][A-Za-z0-9_]*)
    | (?P<operator><=|>=|<|>)
    | (?P<mark>[()\[\],])
    )""",
    re.VERBOSE,
)
_ATOM_COUNTS = {"distance": 2, "angle": 3, "torsion": 4}
_KEYWORDS = ("and", "or", "not")


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True)
class Variable:
    """A named torsion or measure of the whole (`name`, `number`), or a function of `atoms`."""

    text: str
    position: int
    name: str
    number: int | None = None
    atoms: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Bound:
    value: float
    strict: bool
    position: int


@dataclass(frozen=True)
class Comparison:
    """low (<, <=) variable (<, <=) high; one of the bounds may be absent."""

    variable: Variable
    low: Bound | None
    high: Bound | None
    position: int


@dataclass(frozen=True)
class Negation:
    operand: "Expression"


@dataclass(frozen=True)
class Logical:
    operator: str
    left: "Expression"
    right: "Expression"


Expression = Comparison | Negation | Logical


def point_at(text: str, position: int, problem: str) -> SelectionError:
    """Error with the expression and a caret under `position`."""
    return SelectionError(f"{problem}\n  {text}\n  {' ' * position}^")


def parse_expression(text: str) -> Expression:
    """Parse a whole basin expression.

    Raises
    ------
    SelectionError
        With a caret under the first thing that does not fit.
    """
    parser = _Parser(text)
    tree = parser.disjunction()
    parser.expect_end()
    return tree


def parse_variable_text(text: str) -> Variable:
    """Parse a variable that stands alone."""
    parser = _Parser(text)
    variable = parser.variable()
    parser.expect_end()
    return variable


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokenize(text)
        self._next = 0

    def disjunction(self) -> Expression:
        tree = self._conjunction()
        while self._accept("or"):
            tree = Logical("or", tree, self._conjunction())
        return tree

    def variable(self) -> Variable:
        token = self._take("a variable such as phi or distance(2, 15)", "name")
        if token.text in _KEYWORDS:
            raise self._fail(token, f"{token.text!r} cannot stand here")
        if token.text in _ATOM_COUNTS:
            atoms = self._atoms(_ATOM_COUNTS[token.text], token.text)
            return Variable(self._since(token), token.position, token.text, atoms=atoms)
        if not self._accept("["):
            return Variable(token.text, token.position, token.text)
        index = self._take(f"a number, as in {token.text}[2]", "number")
        if not index.text.isdigit() or int(index.text) < 1:
            raise self._fail(index, "numbers in brackets are whole and start at 1")
        self._take("']'", "]")
        return Variable(self._since(token), token.position, token.text, number=int(index.text))

    def expect_end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            hint = "; chain comparisons as lo < variable < hi" if token.kind == "operator" else ""
            raise self._fail(token, f"did not expect {token.text!r} here{hint}")

    def _conjunction(self) -> Expression:
        tree = self._factor()
        while self._accept("and"):
            tree = Logical("and", tree, self._factor())
        return tree

    def _factor(self) -> Expression:
        if self._accept("not"):
            return Negation(self._factor())
        if self._accept("("):
            tree = self.disjunction()
            self._take("')'", ")")
            return tree
        return self._comparison()

    def _comparison(self) -> Comparison:
        start = self._peek()
        if start.kind != "number":
            variable = self.variable()
            operator = self._take("<, <=, > or >=", "operator")
            bound = self._bound(operator)
            low, high = (bound, None) if operator.text.startswith(">") else (None, bound)
            return Comparison(variable, low, high, start.position)
        number = self._take("a number", "number")
        first = self._take("<, <=, > or >=", "operator")
        variable = self.variable()
        near = Bound(float(number.text), "=" not in first.text, number.position)
        upward = first.text.startswith("<")
        far = None
        if self._peek().kind == "operator":
            second = self._take("<, <=, > or >=", "operator")
            if second.text[0] != first.text[0]:
                raise self._fail(second, "both comparisons of a chain must point the same way")
            far = self._bound(second)
        low, high = (near, far) if upward else (far, near)
        return Comparison(variable, low, high, start.position)

    def _bound(self, operator: Token) -> Bound:
        number = self._take("a number", "number")
        return Bound(float(number.text), "=" not in operator.text, number.position)

    def _atoms(self, count: int, function: str) -> tuple[Token, ...]:
        self._take("'('", "(")
        atoms = []
        for i in range(count):
            if i:
                self._take(f"',': {function} needs {count} atoms", ",")
            atom = self._take("an atom: an index from 0, or a label such as ALA2:CA", "label", "number")
            if atom.kind == "number" and not atom.text.isdigit():
                raise self._fail(atom, "atom indices are whole numbers from 0")
            atoms.append(atom)
        self._take(f"')': {function} needs {count} atoms", ")")
        return tuple(atoms)

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _accept(self, text: str) -> bool:
        if self._peek().text == text and self._peek().kind in ("name", "mark"):
            self._next += 1
            return True
        return False

    def _take(self, wanted: str, *kinds: str) -> Token:
        token = self._peek()
        if token.kind not in kinds and (token.kind != "mark" or token.text not in kinds):
            found = "the end" if token.kind == "end" else repr(token.text)
            raise self._fail(token, f"expected {wanted}, found {found}")
        self._next += 1
        return token

    def _since(self, token: Token) -> str:
        last = self._tokens[self._next - 1]
        return self._text[token.position : last.position + len(last.text)]

    def _fail(self, token: Token, problem: str) -> SelectionError:
        return point_at(self._text, token.position, problem)


def _tokenize(text: str) -> list[Token]:
    tokens = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            position += len(text[position:]) - len(text[position:].lstrip())
            hint = "; write < or <=, > or >=" if text[position] in "=!" else ""
            raise point_at(text, position, f"cannot read {text[position]!r}{hint}")
        kind = match.lastgroup or ""
        tokens.append(Token(kind, match.group(kind), match.start(kind)))
        position = match.end()
    tokens.append(Token("end", "", end))
    return tokens
