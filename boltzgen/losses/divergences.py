"""Losses that estimate a divergence between the target and the generator, or the variance of weights.

With samples from the generator itself (detached, and marked x ~ q‡ below), a loss here has a gradient whose expectation
is that of the divergence: the dependence of the sampling distribution on the parameters is put back by the ratio
q / q‡, which is one in value.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "estimator_variance",
    "forward_kl",
    "minibatch_kl",
    "path_log_prob",
    "renyi_2",
    "reverse_kl",
    "weighted_forward_kl",
]


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) up to the entropy of p, on data x ~ p: the KL_z of the paper, maximum likelihood.

    ``L = -mean(log q(x))``. Needs data and neither energies nor forces: `log_p` is not used. The mean covers all modes
    that the data cover, so it drops none of them.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 4, less the constant of the normal distribution.
    """
    return -log_q.mean()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) up to log Z, on reparametrised samples x = G(z): the KL_x of the paper.

    ``L = mean(log q(x) - log p(x))``. Needs the forces: the gradient runs through the samples into ``log_p``. Drops
    modes: nothing pulls the density towards a region that holds no sample.

    The same function serves for path gradients, with ``log_q`` from `path_log_prob`.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 6, less the constant entropy of the base distribution.
    """
    return (log_q - log_p).mean()


def path_log_prob(log_q: Tensor, log_q_fixed: Tensor) -> Tensor:
    """log q (B,) of reparametrised samples whose gradient runs through the samples alone ("sticking the landing").

    The gradient of log q(x) with x = G(z) is a path term through x and the score, the derivative at fixed x. The score
    has expectation zero under q and only adds noise: at q = p the path terms of log q and log p cancel sample by
    sample, while the score remains. Here it is subtracted; the value stays as it is. No inverse is differentiated by x.

    Parameters
    ----------
    log_q : (B,) tensor
        From ``flow.sample_and_log_prob``, with its graph.
    log_q_fixed : (B,) tensor
        ``flow.log_prob(x.detach())``: its only gradient is the score.

    References
    ----------
    Roeder, Wu, Duvenaud, Sticking the Landing (2017); for flows: Vaitl et al., Gradients should stay on Path (2022).
    """
    return log_q - (log_q_fixed - log_q_fixed.detach())


def weighted_forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) up to constants, by importance weights of detached samples: the data-free KL_z of the paper.

    ``L = -sum_i w_i log q(x_i)`` with ``w = softmax(log p - log q)``, detached. The paper divides the unnormalised
    weights by the batch size; here they are divided by their sum, which stands for the factor 1 / Z of its equation
    20e, so that the loss does not depend on the zero of energy. Needs energies only. A few large weights can hold most
    of the gradient.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 7 and appendix D.
    """
    weights = torch.softmax((log_p - log_q).detach(), dim=0)
    return -weights @ log_q


def renyi_2(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Second moment of the importance weights w = p / q: exp of the Rényi divergence of order 2 of p from q.

    ``L = mean(w^2) / mean(w)^2 = var(w) / mean(w)^2 + 1`` in value, the inverse of the effective sample fraction. The
    gradient is that of ``E_q[p^2 / q^2] = integral of p^2 / q``: ``-mean(w^2 d log q)``, over the detached square of
    the batch's estimate of Z. Needs energies only, on detached samples. The squared weights make it noisier than
    `weighted_forward_kl`.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 12.
    """
    fixed = log_q.detach()
    log_mean = torch.logsumexp(log_p - fixed, dim=0) - _log_size(log_q)
    return torch.exp(2 * (log_p - log_mean).detach() - log_q - fixed).mean()


def estimator_variance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Variance of the estimate of E_p[f] from weighted samples, for one given f, up to a constant and a factor.

    ``E_q[p^2 f^2 / q^2]`` is `renyi_2` with |f| p in the place of p, so ``log_p`` here is ``log p + log |f|``, and the
    generator learns ``q ~ |f| p``, not p. For a free-energy difference to an energy U_C, where f is
    ``exp(-(U_C - U) / kT)``, that is the Boltzmann distribution of U_C. Needs energies only, on detached samples.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 11 and appendix F.
    """
    return renyi_2(log_p, log_q)


def minibatch_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p_d || q_d) between the densities at the batch's points, either of them divided by its sum over the batch.

    ``p_d = softmax(log p)``, ``q_d = softmax(log q)``; the gradient is ``sum_i (q_d - p_d)_i d log q(x_i)``, which
    moves mass within the batch and draws none from elsewhere. Zero where q is proportional to p on the batch. Needs
    energies only. The densities are not divided by that of the sampling distribution, so the points of highest density
    decide: in many dimensions log p varies over a batch by more than the log of its size, and a few points hold all.
    (Divided by it, this would be `weighted_forward_kl` with `ControlledForwardKL`'s constant K at 1.)

    References
    ----------
    Felardos, Hénin, Charpiat (2022), appendix I.1, "Correct normalization"; gradient in J.4.
    """
    log_p_batch, log_q_batch = log_p.log_softmax(0).detach(), log_q.log_softmax(0)
    return log_p_batch.exp() @ (log_p_batch - log_q_batch)


def _log_size(values: Tensor) -> Tensor:
    return values.new_tensor(float(len(values))).log()
