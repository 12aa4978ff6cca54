"""Losses: one function each, all of ``(log_p, log_q)``, and what each needs of its samples.

``log_p`` is the log of the target density up to a constant (``-beta U``), ``log_q`` the log-density of the
generator at the same samples, both of shape (B,). Samples with no finite ``log_p`` are left out, and counted,
by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["LOSSES", "Loss", "log_variance", "masked_log_variance", "reverse_kl"]


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) up to log Z, on reparametrised samples: the KL_x of the paper.

    Needs the forces: the gradient runs through the samples into ``log_p``.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 6.
    """
    return (log_q - log_p).mean()


def masked_log_variance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """L2+ loss: squared excess of the log-ratio over its detached batch mean.

    Only samples whose log-ratio exceeds the batch mean are pulled up, so probability is never pushed away from a
    point without saying where it should go. Needs energies only: samples are detached.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 15.
    """
    log_ratio = log_p - log_q
    excess = log_ratio - log_ratio.mean().detach()
    return excess.clamp(min=0).square().mean()


def log_variance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """L2+ without its mask: the variance of the log-ratio over detached samples (energies only).

    References
    ----------
    Felardos, Hénin, Charpiat (2022), appendix H; Richter et al., VarGrad (2020).
    """
    log_ratio = log_p - log_q
    return (log_ratio - log_ratio.mean().detach()).square().mean()


@dataclass(frozen=True)
class Loss:
    """A loss by name, with what it needs.

    Attributes
    ----------
    function : callable
        ``(log_p, log_q) -> scalar``.
    detached : bool
        True: samples carry no gradient and energies suffice; False: the gradient runs through the samples, and
        forces are needed.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    detached: bool


LOSSES = {
    "reverse-kl": Loss("reverse-kl", reverse_kl, detached=False),
    "l2+": Loss("l2+", masked_log_variance, detached=True),
    "log-variance": Loss("log-variance", log_variance, detached=True),
}
