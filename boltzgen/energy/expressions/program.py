"""Evaluation of expressions by torch: constants once, the rest as a short list of tensor operations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boltzgen.energy.expressions import graph
from boltzgen.energy.expressions.differentiation import gradient
from boltzgen.energy.expressions.expression import Expression
from boltzgen.energy.expressions.graph import Node
from boltzgen.energy.expressions.lowering import lower
from boltzgen.energy.expressions.operations import OPERATIONS, Argument
from boltzgen.energy.expressions.parser import point_at, suggestion
from boltzgen.energy.expressions.tabulated import Tabulated
from boltzgen.errors import PotentialError

__all__ = ["ExpressionProgram"]


class ExpressionProgram(nn.Module):
    """Value and first derivatives of an expression, for tensors.

    Parameters
    ----------
    expression : Expression
    variables : names
        Those that vary per call, in the order of the call's arguments.
    constants : dict
        Every other name: numbers, or float64 arrays that broadcast against the variables. What depends on these
        alone is computed here, once and in float64, and kept in non-persistent buffers; `.to()` moves and converts
        them. The tensors of a call must have their precision and device.
    derivatives : names
        Variables with respect to which a call returns derivatives.

    Raises
    ------
    PotentialError
        If a name in the expression is neither a variable nor a constant.
    """

    def __init__(
        self,
        expression: Expression,
        variables: Sequence[str],
        constants: Mapping[str, np.ndarray | float] | None = None,
        derivatives: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.variables = tuple(variables)
        self.derivatives = tuple(derivatives)
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in (constants or {}).items()}
        _check_names(expression, self.variables, arrays, self.derivatives)
        used = [arrays[name] for name in sorted(expression.variables - set(self.variables))]
        self._constant_shape = np.broadcast_shapes(*(array.shape for array in used))
        root = _with_numbers(expression.root, self.variables, arrays)
        slopes = gradient(root, self.derivatives)
        roots = lower([root, *(slopes.get(name, graph.ZERO) for name in self.derivatives)])
        plan = _Plan(self.variables, arrays)
        self._value_steps = plan.steps(roots[:1])
        self._steps = plan.steps(roots)
        self._results = tuple(plan.slot(root) for root in roots)
        self._size = plan.size
        self._numbers = tuple(plan.numbers.items())
        self._constants = tuple((slot, f"constant_{slot}") for slot in plan.buffers)
        for slot, name in self._constants:
            self.register_buffer(name, plan.buffers[slot], persistent=False)
        # Says which precision to answer in where there is no tensor to ask.
        self.register_buffer("_precision", torch.zeros((), dtype=torch.float64), persistent=False)

    _precision: Tensor

    def forward(self, *variables: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Value and its derivatives, each in the shape to which variables and constants broadcast."""
        value, *slopes = self._run(self._steps, self._results, variables)
        return value, slopes

    def value(self, *variables: Tensor) -> Tensor:
        """Value alone; nothing that only derivatives need is computed."""
        return self._run(self._value_steps, self._results[:1], variables)[0]

    def _run(self, steps: "tuple[_Step, ...]", results: tuple[int, ...], variables: tuple[Tensor, ...]) -> list[Tensor]:
        if len(variables) != len(self.variables):
            raise PotentialError(f"expected {len(self.variables)} tensors, {self.variables}, not {len(variables)}")
        values: list[Any] = [None] * self._size
        for slot, number in self._numbers:
            values[slot] = number
        for slot, name in self._constants:
            values[slot] = getattr(self, name)
        values[: len(variables)] = variables
        for step in steps:
            values[step.target] = step(values)
            for slot in step.last_uses:
                values[slot] = None  # its memory is free for the next step
        shape = torch.broadcast_shapes(self._constant_shape, *(variable.shape for variable in variables))
        like = variables[0] if variables else self._precision
        return [_expanded(values[slot], shape, like) for slot in results]


def _expanded(value: Argument, shape: torch.Size, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full(shape, value, dtype=like.dtype, device=like.device)
    return value if value.shape == shape else value.expand(shape)


class _Step:
    """One tensor operation on numbered values."""

    def __init__(self, node: Node, target: int, arguments: tuple[int, ...], arrays: tuple[int, ...]) -> None:
        self.kind = node.kind
        self.tabulated = node.tabulated
        self.orders = node.orders
        self.target = target
        self.arguments = arguments
        self.arrays = arrays
        self.last_uses: tuple[int, ...] = ()

    def __call__(self, values: list[Any]) -> Tensor:
        arguments = [values[slot] for slot in self.arguments]
        if self.tabulated is not None:
            return self.tabulated.evaluate(arguments, [values[slot] for slot in self.arrays], self.orders)
        return OPERATIONS[self.kind](*arguments)


class _Plan:
    """Numbers every value, evaluates those that are constant, and lists the steps to the others."""

    def __init__(self, variables: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> None:
        self.numbers: dict[int, float] = {}
        self.buffers: dict[int, Tensor] = {}
        self._arrays = arrays
        self._slots = {graph.variable(name): slot for slot, name in enumerate(variables)}
        self._varying = dict.fromkeys(self._slots, True)
        self._array_slots: dict[bytes, tuple[int, ...]] = {}
        self._constants: dict[Node, Tensor] = {}
        self.size = len(variables)

    def steps(self, roots: Sequence[Node]) -> tuple[_Step, ...]:
        """What to run, in order, for the varying ones among `roots`."""
        order = graph.ordered(roots)
        for node in order:
            self._varying.setdefault(node, any(self._varying[argument] for argument in node.arguments))
        steps = [self._step(node) for node in order if self._varying[node] and node.arguments]
        kept = {self.slot(root) for root in roots}
        for step in reversed(steps):  # a value is let go after the step that needs it last
            used = set(step.arguments) - kept
            step.last_uses = tuple(sorted(slot for slot in used if slot not in self.numbers | self.buffers))
            kept |= used
        return tuple(steps)

    def slot(self, node: Node) -> int:
        """Where the value of `node` is; a constant is put there."""
        if node not in self._slots:
            self._slots[node] = self._new_slot()
            if not self._varying[node]:
                self._keep(node, self._slots[node])
        return self._slots[node]

    def _new_slot(self) -> int:
        self.size += 1
        return self.size - 1

    def _step(self, node: Node) -> _Step:
        arguments = tuple(self.slot(argument) for argument in node.arguments)
        return _Step(node, self.slot(node), arguments, self._table(node.tabulated) if node.tabulated else ())

    def _table(self, tabulated: Tabulated) -> tuple[int, ...]:
        if tabulated.digest not in self._array_slots:
            slots = tuple(self._new_slot() for _ in tabulated.arrays)
            self.buffers.update(zip(slots, map(torch.from_numpy, tabulated.arrays), strict=True))
            self._array_slots[tabulated.digest] = slots
        return self._array_slots[tabulated.digest]

    def _keep(self, node: Node, slot: int) -> None:
        if node.is_constant():
            self.numbers[slot] = node.value
        else:
            self.buffers[slot] = self._evaluated(node)

    def _evaluated(self, root: Node) -> Tensor:
        for node in graph.ordered([root], stop=lambda node: node in self._constants):
            if node in self._constants:
                continue
            arguments = [self._constants[argument] for argument in node.arguments]
            if node.kind == "constant":
                value = torch.tensor(node.value, dtype=torch.float64)
            elif node.kind == "variable":
                value = torch.tensor(self._arrays[node.name])
            elif node.tabulated is not None:
                arrays = [torch.from_numpy(array) for array in node.tabulated.arrays]
                value = node.tabulated.evaluate(arguments, arrays, node.orders)
            else:
                value = OPERATIONS[node.kind](*arguments)
            self._constants[node] = value
        return self._constants[root]


def _with_numbers(root: Node, variables: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Node:
    """The graph with constants of one value put in as numbers, which simplify and need no buffer."""

    def number(node: Node) -> Node | None:
        if node.kind != "variable" or node.name in variables:
            return None
        array = arrays[node.name]
        return graph.constant(array.flat[0]) if array.size and (array == array.flat[0]).all() else None

    return graph.rebuild(root, number)


def _check_names(
    expression: Expression,
    variables: tuple[str, ...],
    constants: Mapping[str, np.ndarray],
    derivatives: tuple[str, ...],
) -> None:
    known = {*variables, *constants}
    unknown = expression.variables - known
    if unknown:
        name = min(unknown, key=lambda name: (expression.positions.get(name, 0), name))
        problem = f"unknown name {name!r}{suggestion(name, known)}"
        raise point_at(expression.text, expression.positions.get(name, 0), problem)
    if not set(derivatives) <= set(variables):
        raise PotentialError(f"derivatives {derivatives} must be among the variables {variables}")
