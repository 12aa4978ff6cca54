"""The functions of OpenMM's expressions, as torch operations; semantics of the Lepton library.

An argument is a tensor or a Python float; at least one of them is a tensor. Floats stay floats, because
torch then needs no buffer for them and keeps the precision of the tensor beside them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ARITIES", "OPERATIONS", "Argument", "where_at_least"]

Argument = Tensor | float


def where_at_least(a: Argument, b: Argument, taken: Argument, otherwise: Argument) -> Tensor:
    """`taken` where a >= b, else `otherwise`; a NaN compares as false, as step(NaN) = 0 does in Lepton."""
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    return _where(torch.as_tensor(a >= b), taken, otherwise, like)


def _where(condition: Tensor, taken: Argument, otherwise: Argument, like: Tensor) -> Tensor:
    # With two plain floats torch.where would answer in torch's default precision.
    if not isinstance(taken, Tensor) and not isinstance(otherwise, Tensor):
        taken = torch.full_like(like, taken)
    return torch.where(condition, taken, otherwise)


def _select(condition: Argument, taken: Argument, otherwise: Argument) -> Tensor:
    assert isinstance(condition, Tensor)  # a constant condition is decided when the graph is built
    return _where(condition != 0, taken, otherwise, condition)


def _minimum(a: Argument, b: Argument) -> Tensor:
    # A NaN stays NaN whichever side it is on; OpenMM's platforms differ there, and a NaN must not be hidden.
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return a.clamp(max=b) if isinstance(a, Tensor) else b.clamp(max=a)  # type: ignore[union-attr]


def _maximum(a: Argument, b: Argument) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a.clamp(min=b) if isinstance(a, Tensor) else b.clamp(min=a)  # type: ignore[union-attr]


def _atan2(a: Argument, b: Argument) -> Tensor:
    if not isinstance(a, Tensor):
        a = torch.full_like(b, a)  # type: ignore[arg-type]
    if not isinstance(b, Tensor):
        b = torch.full_like(a, b)
    return torch.atan2(a, b)


def _power(a: Argument, b: Argument) -> Tensor:
    return torch.pow(a, b)  # type: ignore[arg-type]


ARITIES: dict[str, int] = {
    **dict.fromkeys(("sqrt", "exp", "log", "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan"), 1),
    **dict.fromkeys(("sinh", "cosh", "tanh", "erf", "erfc", "step", "delta", "square", "cube", "recip"), 1),
    **dict.fromkeys(("abs", "floor", "ceil"), 1),
    **dict.fromkeys(("atan2", "min", "max"), 2),
    "select": 3,
}
"""Number of arguments of every function that Lepton knows."""

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": _power,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "step": lambda a: (a >= 0).to(a.dtype),
    "delta": lambda a: (a == 0).to(a.dtype),
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "atan2": _atan2,
    "min": _minimum,
    "max": _maximum,
    "select": _select,
    "where_at_least": where_at_least,
}
"""Implementation of every kind of node that computes something (tabulated functions apart)."""
