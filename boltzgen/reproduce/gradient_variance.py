"""Variance of minibatch gradients at a fixed flow, and how well each of them points down the exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from boltzgen.energy.analytic import AnalyticTarget
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import ControlledForwardKL, forward_kl, minibatch_kl, weighted_forward_kl
from boltzgen.progress import shown_steps
from boltzgen.reproduce.unconstrained import unnormalised_kl

__all__ = ["ESTIMATORS", "Noise", "exact_gradient", "gradient_noise", "weighted_normalised_kl"]

CHUNK = 4096  # exact samples a backward pass

Estimator = Callable[[Tensor, Tensor], Tensor]


def weighted_normalised_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`weighted_forward_kl` with K = 1: its gradient is ``sum_i (1/n - w_i) d log q(x_i)``, weights w of sum one.

    This is the normalisation of appendix I.1 for samples from q instead of uniform ones: the weights p / q and q / q,
    each divided by its sum over the batch.
    """
    return weighted_forward_kl(log_p, log_q) + log_q.mean()


# The last is made from the parameters of the flow, since it has a state.
ESTIMATORS: dict[str, Estimator | None] = {
    "KL(p_d || q)": unnormalised_kl,
    "KL(p_d || q_d)": minibatch_kl,
    "weighted": weighted_forward_kl,
    "weighted, K = 1": weighted_normalised_kl,
    "weighted, K*": None,
}


@dataclass(frozen=True)
class Noise:
    """Of a minibatch gradient g at a fixed flow, over many minibatches.

    Attributes
    ----------
    variance : float
        Trace of its covariance, by all parameters of the flow.
    mean_square : float
        Square of the norm of its expectation, without the bias by the finite number of minibatches.
    cosine : float
        Of a single g with the exact gradient of KL(p || q), on average.
    mean_cosine : float
        Of the mean of all g with it: whether it points there at all.
    """

    variance: float
    mean_square: float
    cosine: float
    mean_cosine: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def exact_gradient(generator: BoltzmannGenerator, n_samples: int, seed: int) -> tuple[Tensor, float]:
    """Gradient of KL(p || q) = -E_p[d log q], from exact samples of an `AnalyticTarget`.

    Returns
    -------
    gradient : (P,) tensor
        By all parameters.
    agreement : float
        Cosine between the gradients of the two halves of the samples: how well it is known.

    Raises
    ------
    TypeError
        If the target cannot be sampled exactly.
    """
    target = generator.potential
    if not isinstance(target, AnalyticTarget):
        raise TypeError(f"{target.name} has no exact samples")
    parameters = list(generator.flow.parameters())
    rng = torch.Generator().manual_seed(seed)
    like = parameters[0]
    halves = [torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in range(2)]
    n_chunks = max(1, n_samples // (2 * CHUNK))
    for number, half in enumerate(halves, 1):
        for _ in shown_steps(range(n_chunks), f"exact gradient, half {number}"):
            x = target.sample(CHUNK, rng).to(like)
            half += _gradient(forward_kl(x, generator.flow.log_prob(x)), parameters)
        half /= n_chunks
    return (halves[0] + halves[1]) / 2, float(torch.cosine_similarity(halves[0], halves[1], dim=0))


def gradient_noise(
    generator: BoltzmannGenerator, exact: Tensor, *, n_batches: int, batch_size: int, n_warm: int, seed: int
) -> dict[str, Noise]:
    """All estimators on the same minibatches of detached samples from the flow.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Not changed.
    exact : (P,) tensor
        From `exact_gradient`.
    n_batches, batch_size : int
    n_warm : int
        Minibatches before these, from which K* is known; it goes on following those that are past.
    seed : int

    References
    ----------
    Felardos, Hénin, Charpiat (2022), appendices I.1, I.2, J.4 and J.6.
    """
    flow, parameters = generator.flow, list(generator.flow.parameters())
    controlled = ControlledForwardKL(parameters)
    estimators = {name: estimator or controlled for name, estimator in ESTIMATORS.items()}
    moments = {name: _Moments(exact) for name in estimators}
    rng = torch.Generator().manual_seed(seed)
    for index in shown_steps(range(n_warm + n_batches), "gradients of minibatches"):
        with torch.no_grad():
            x = flow.sample_and_log_prob(batch_size, rng)[0]
            log_p = -generator.reduced_energy(x, generator.kT).to(x.dtype)
        log_q = flow.log_prob(x)
        if index < n_warm:
            controlled(log_p, log_q)
            continue
        for name, estimator in estimators.items():
            moments[name].add(_gradient(estimator(log_p, log_q), parameters, keep_graph=True))
    return {name: moment.noise() for name, moment in moments.items()}


class _Moments:
    """Sums over minibatches: the gradients themselves would be too many to keep."""

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact
        self.total = torch.zeros_like(exact)
        self.square = self.cosine = 0.0
        self.n = 0

    def add(self, gradient: Tensor) -> None:
        self.total += gradient
        self.square += float(gradient @ gradient)
        self.cosine += float(torch.cosine_similarity(gradient, self.exact, dim=0))
        self.n += 1

    def noise(self) -> Noise:
        mean = self.total / self.n
        variance = (self.square - self.n * float(mean @ mean)) / (self.n - 1)
        along = float(torch.cosine_similarity(mean, self.exact, dim=0))
        return Noise(variance, float(mean @ mean) - variance / self.n, self.cosine / self.n, along)


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], keep_graph: bool = False) -> Tensor:
    """By all parameters in one vector, (P,) float64."""
    found = torch.autograd.grad(loss, parameters, retain_graph=keep_graph)
    return torch.cat([g.flatten() for g in found]).double()
