"""Weighted forward KL with the constant K* of appendix I.2, which takes variance out of the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ControlledForwardKL"]

DECAY = 0.99  # of the running means: a hundred batches
WARM_UP = 20  # batches before K* is used; the ratio of fewer squares is too noisy


class ControlledForwardKL(nn.Module):
    """`weighted_forward_kl` plus ``K* integral of q``, a constant whose gradient vanishes on average, not on a batch.

    The derivative of KL(p || q) by a parameter theta_j is estimated by ``mean_i((K_j - w_i) s_ij)``, where
    ``s_ij = d log q(x_i) / d theta_j``, x ~ q detached, and the weights w = p / q have mean one. It is unbiased for any
    K that does not know the batch, since E_q[s] = 0, and its variance is least at ``K_j = E[w s_j^2] / E[s_j^2]``.
    (The paper writes this for samples uniform in space, with dq / d theta in the place of s and p / q in that of w;
    samples from q divide both by q.) Both expectations are running means over past batches, as the paper asks.

    No gradient of a single sample is needed: with random signs e_i, ``(sum_i e_i a_i s_ij)^2`` has the expectation
    ``sum_i a_i^2 s_ij^2``, so each batch costs three backward passes more. Before the running means exist K is 1, the
    best constant if w and s^2 are uncorrelated.

    Parameters
    ----------
    parameters : sequence of Parameter
        Of the flow, in the order that log q depends on them.

    Attributes
    ----------
    n_batches : int tensor

    References
    ----------
    Felardos, Hénin, Charpiat (2022), appendix I.2 and J.6.
    """

    n_batches: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._flow = [p for p in parameters if p.requires_grad]  # in a list: parameters of the flow, not of this
        self.register_buffer("n_batches", torch.tensor(0))
        for index, parameter in enumerate(self._flow):
            self.register_buffer(f"weighted_{index}", torch.zeros_like(parameter, requires_grad=False))
            self.register_buffer(f"plain_{index}", torch.zeros_like(parameter, requires_grad=False))

    def forward(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        weights = torch.softmax((log_p - log_q).detach(), dim=0) * len(log_q)
        loss = -(weights * log_q).mean()
        mean_scores = self._gradient(log_q.mean())
        for parameter, constant, score in zip(self._flow, self.constants(), mean_scores, strict=True):
            # Zero in value; its gradient by the parameter is K_j times the mean score.
            loss = loss + (constant * score * (parameter - parameter.detach())).sum()
        self._follow(weights, log_q)
        return loss

    def constants(self) -> list[Tensor]:
        """K* of each parameter, from the batches before this one."""
        if int(self.n_batches) < WARM_UP:
            return [torch.ones_like(parameter, requires_grad=False) for parameter in self._flow]
        constants = []
        for index in range(len(self._flow)):
            weighted, plain = self.get_buffer(f"weighted_{index}"), self.get_buffer(f"plain_{index}")
            constants.append(torch.where(plain > 0, weighted / plain, torch.ones_like(plain)))
        return constants

    def _follow(self, weights: Tensor, log_q: Tensor) -> None:
        """Add this batch to the running means of w s^2 and s^2; their common factors cancel in K*."""
        # The batch's number is the seed, so that a resumed training draws the same signs.
        rng = torch.Generator().manual_seed(int(self.n_batches))
        signs = (2 * torch.randint(2, log_q.shape, generator=rng) - 1).to(log_q)
        weighted = self._gradient((signs * weights.sqrt() * log_q).mean())
        plain = self._gradient((signs * log_q).mean())
        if not all(bool(torch.isfinite(g).all()) for g in (*weighted, *plain)):
            return  # one overflow would stay in the running means for good
        for index, (first, second) in enumerate(zip(weighted, plain, strict=True)):
            self.get_buffer(f"weighted_{index}").lerp_(first.square(), 1 - DECAY)
            self.get_buffer(f"plain_{index}").lerp_(second.square(), 1 - DECAY)
        self.n_batches += 1

    def _gradient(self, scalar: Tensor) -> list[Tensor]:
        """Derivatives of a combination of log q by the parameters; zero where it does not depend on one."""
        found = torch.autograd.grad(scalar, self._flow, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self._flow, found, strict=True)]
