"""Losses on the log-ratio r = log p - log q at detached samples: L2+, what is left when parts of it are taken away,
and trajectory balance. All need energies only, and none depends on the zero of energy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "TrajectoryBalance",
    "log_variance",
    "masked_log_variance",
    "masked_log_variance_attached",
    "vargrad",
]


def masked_log_variance(log_p: Tensor, log_q: Tensor, n_fresh: int | None = None) -> Tensor:
    """L2+ loss: squared excess of the log-ratio over its detached batch mean, ``mean((r - K‡)_+^2)``.

    Only samples whose log-ratio exceeds the batch mean are pulled up, so probability is never pushed away from a
    point without saying where it should go.

    Parameters
    ----------
    n_fresh : int, optional
        Samples of the present flow, which stand first and give the mean K; all, if absent. The others may come from
        anywhere: the loss is then off-policy.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 15.
    """
    log_ratio = log_p - log_q
    excess = log_ratio - log_ratio[:n_fresh].mean().detach()
    return excess.clamp(min=0).square().mean()


def masked_log_variance_attached(log_p: Tensor, log_q: Tensor) -> Tensor:
    """L2+ with a mean that is differentiated too, ``mean((r - K)_+^2)``: an ablation.

    K is now asked to rise, which lowers log q at every sample of the batch, most of all at those that the mask leaves
    alone. The paper finds the energies of the samples highly unstable.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), appendix H.
    """
    log_ratio = log_p - log_q
    return (log_ratio - log_ratio.mean()).clamp(min=0).square().mean()


def log_variance(log_p: Tensor, log_q: Tensor, n_fresh: int | None = None) -> Tensor:
    """L2+ without its mask: the variance of the log-ratio, ``mean((r - K)^2)``.

    Where all samples are fresh, detaching K makes no difference: the derivative by K is ``-2 mean(r - K) = 0`` on every
    batch. On batches of n samples from q its expected gradient is ``2 (n - 1) / n`` times that of KL(q || p).

    Parameters
    ----------
    n_fresh : int, optional
        As of `masked_log_variance`.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 14 and appendix H.
    """
    log_ratio = log_p - log_q
    return (log_ratio - log_ratio[:n_fresh].mean().detach()).square().mean()


def vargrad(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Unbiased variance of the log-ratio, over n - 1: twice the expected gradient of KL(q || p) for every n >= 2.

    References
    ----------
    Richter et al., VarGrad (2020).
    """
    return (log_p - log_q).var()


class TrajectoryBalance(nn.Module):
    """Squared distance of the log-ratio from a learned log Z, ``mean((r - log Z)^2)``.

    With log Z at the batch mean of r this is `log_variance`; here it is a parameter, trained along with the flow, and
    starts at the mean of the first batch.

    Parameters
    ----------
    parameters : sequence of Parameter
        Of the flow; they give the dtype and the device.

    Attributes
    ----------
    log_z : (1,) Parameter
        Estimate of log Z; at the optimum of log Z alone it is E_q[r] = log Z - KL(q || p), and log Z where q = p.

    References
    ----------
    Malkin et al., Trajectory balance (2022), for trajectories of one step.
    """

    started: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.log_z = nn.Parameter(parameters[0].detach().new_zeros(1))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, log_p: Tensor, log_q: Tensor, n_fresh: int | None = None) -> Tensor:
        log_ratio = log_p - log_q
        if not self.started:
            with torch.no_grad():
                self.log_z.fill_(log_ratio[:n_fresh].mean())
                self.started.fill_(True)
        return (log_ratio - self.log_z).square().mean()
