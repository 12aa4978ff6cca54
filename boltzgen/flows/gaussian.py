"""A conditional normal distribution with sparse precision, as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boltzgen.flows.networks import Conditioner, bounded_log_scale

__all__ = ["ConditionalGaussian"]

Level = tuple[Tensor, Tensor, Tensor]  # entries that can be used at once: their numbers, rows and columns


class ConditionalGaussian(nn.Module):
    """Shift and triangular matrix from a context: ``base = A(context) (value - mean(context))``.

    Stiff coordinates around given torsions are nearly normal, with a mean and a covariance that depend on the
    torsions; this layer holds just that, and coupling layers before it hold the rest.

    Parameters
    ----------
    n : int
        Number of variables.
    pairs : (2, n_pairs) int tensor
        Entries below the diagonal of A that may differ from zero: rows and columns.
    n_context, n_hidden : int
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, n: int, pairs: Tensor, n_context: int, n_hidden: int) -> None:
        super().__init__()
        rows, columns = pairs
        self.n = n
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        levels = _levels(n, rows.tolist(), columns.tolist())
        self.n_levels = len(levels)
        for k, entries in enumerate(levels):
            for name, value in (
                ("entries", torch.tensor(entries)),
                ("rows", rows[entries]),
                ("columns", columns[entries]),
            ):
                self.register_buffer(f"_{name}{k}", value, persistent=False)
        self.network = Conditioner(n_context, n_hidden, 2 * n + len(rows))

    def _parameters_from(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, raw_scale, below = self.network(context).split([self.n, self.n, len(self.rows)])
        return mean, bounded_log_scale(raw_scale), below

    def forward(self, values: Tensor, context: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(n, B) base variables to values, or back; and the log-determinant (B,)."""
        mean, log_scale, below = self._parameters_from(context)
        if inverse:
            deviation = values - mean
            base = log_scale.exp() * deviation
            return base.index_add(0, self.rows, below * deviation[self.columns]), log_scale.sum(0)
        deviation = _SolveLower.apply(log_scale.exp(), below, values, self.rows, self.columns, self._levels())
        return mean + deviation, -log_scale.sum(0)

    def _levels(self) -> list[Level]:
        return [
            (getattr(self, f"_entries{k}"), getattr(self, f"_rows{k}"), getattr(self, f"_columns{k}"))
            for k in range(self.n_levels)
        ]


class _SolveLower(torch.autograd.Function):
    """``x`` of ``A x = y`` for one sparse lower triangular matrix each in a batch, level by level.

    Time and memory go with the number of entries, where a dense solver needs the square of the size.
    """

    @staticmethod
    def forward(
        ctx: Any, diagonal: Tensor, below: Tensor, right: Tensor, rows: Tensor, columns: Tensor, levels: list[Level]
    ) -> Tensor:
        solution, steps = right / diagonal, -below / diagonal[rows]
        for entries, to, of in levels:
            solution = solution.index_add(0, to, steps[entries] * solution[of])
        ctx.save_for_backward(diagonal, steps, solution, rows, columns)
        ctx.levels = levels
        return solution

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient to ``y`` solves the transposed system, from the last level up."""
        diagonal, steps, solution, rows, columns = ctx.saved_tensors
        to_right = gradients[0]
        for entries, to, of in reversed(ctx.levels):
            to_right = to_right.index_add(0, of, steps[entries] * to_right[to])
        to_right = to_right / diagonal
        return -to_right * solution, -to_right[rows] * solution[columns], to_right, None, None, None


def _levels(n: int, rows: list[int], columns: list[int]) -> list[list[int]]:
    """Entries whose rows need only rows of earlier levels, level by level."""
    level, found = [0] * n, dict[int, list[int]]()
    for row in range(n):
        entries = [k for k, other in enumerate(rows) if other == row]
        if entries:
            level[row] = 1 + max(level[columns[k]] for k in entries)
            found.setdefault(level[row], []).extend(entries)
    return [found[k] for k in sorted(found)]
