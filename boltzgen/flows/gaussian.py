"""A conditional normal distribution with sparse precision, as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boltzgen.flows.networks import Conditioner, bounded_log_scale

__all__ = ["ConditionalGaussian"]


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
        deviation = _SolveLower.apply(log_scale.exp(), below, values, self.rows, self.columns)
        return mean + deviation, -log_scale.sum(0)


class _SolveLower(torch.autograd.Function):
    """``x`` of ``A x = y`` for one sparse lower triangular matrix each in a batch, row by row.

    Time and memory go with the number of entries, where a dense solver needs the square of the size.
    """

    @staticmethod
    def forward(ctx: Any, diagonal: Tensor, below: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        solution = right / diagonal
        for row, entries in _entries(rows):
            taken = (below[entries] * solution[columns[entries]]).sum(0)
            solution[row] -= taken / diagonal[row]
        ctx.save_for_backward(diagonal, below, solution, rows, columns)
        return solution

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient to ``y`` solves the transposed system, from the last row up."""
        diagonal, below, solution, rows, columns = ctx.saved_tensors
        to_right = gradients[0].clone()
        by_row = dict(_entries(rows))
        for row in reversed(range(len(diagonal))):
            to_right[row] /= diagonal[row]
            if row in by_row:
                entries = by_row[row]
                to_right.index_add_(0, columns[entries], -below[entries] * to_right[row])
        return -to_right * solution, -to_right[rows] * solution[columns], to_right, None, None


def _entries(rows: Tensor) -> list[tuple[int, Tensor]]:
    """Rows that have entries, in order, and the numbers of their entries."""
    found: dict[int, list[int]] = {}
    for entry, row in enumerate(rows.tolist()):
        found.setdefault(row, []).append(entry)
    return [(row, torch.tensor(found[row], device=rows.device)) for row in sorted(found)]
