"""A conditional normal distribution with full covariance, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boltzgen.flows.networks import MAX_LOG_SCALE, multilayer_perceptron

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
    row_sum: Tensor

    def __init__(self, n: int, pairs: Tensor, n_context: int, n_hidden: int) -> None:
        super().__init__()
        rows, columns = pairs
        self.n = n
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("row_sum", torch.nn.functional.one_hot(rows, n).float(), persistent=False)
        self.network = multilayer_perceptron(n_context, n_hidden, 2 * n + len(rows))

    def _parameters_from(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, raw_scale, below = self.network(context).split([self.n, self.n, len(self.rows)], dim=-1)
        return mean, MAX_LOG_SCALE * torch.tanh(raw_scale / MAX_LOG_SCALE), below

    def forward(self, values: Tensor, context: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(B, n) base variables to values, or back; and the log-determinant (B,)."""
        mean, log_scale, below = self._parameters_from(context)
        if inverse:
            deviation = values - mean
            base = log_scale.exp() * deviation + (below * deviation[:, self.columns]) @ self.row_sum
            return base, log_scale.sum(-1)
        matrix = torch.diag_embed(log_scale.exp())
        matrix[:, self.rows, self.columns] = below
        deviation = torch.linalg.solve_triangular(matrix, values.unsqueeze(-1), upper=False).squeeze(-1)
        return mean + deviation, -log_scale.sum(-1)
