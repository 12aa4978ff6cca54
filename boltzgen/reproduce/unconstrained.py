"""Proposition I.1 and its corollary: what descent on KL(p || q) does where nothing holds the mass of q at one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzgen.energy.analytic import DoubleWell
from boltzgen.generator import BoltzmannGenerator
from boltzgen.losses import minibatch_kl
from boltzgen.progress import shown_steps

__all__ = ["Descent", "descend", "exact_solution", "fixed_minibatch", "grid", "random_start", "unnormalised_kl"]

RELATIVE_STEP = 0.01  # of t: q^2 = q0^2 + 2 p t changes by a hundredth at most
FIRST_STEP = 1e-7  # q0^2 / 2p, the time in which the smallest q0 doubles, is above 1e-5 here
GRID = (-4.0, 4.0, 2001)


@dataclass(frozen=True)
class Descent:
    """Gradient descent on KL(p || q) over functions q on a grid, ``dq/dt = p / q``.

    Attributes
    ----------
    x, p : (n,) tensor
        Grid and normalised target density.
    times : tuple of float
    q : (len(times), n) tensor
        By the midpoint rule.
    exact : (len(times), n) tensor
        ``sqrt(q0^2 + 2 p t)``.
    """

    x: Tensor
    p: Tensor
    times: tuple[float, ...]
    q: Tensor
    exact: Tensor

    @property
    def mass(self) -> Tensor:
        """Integral of q at each time."""
        return torch.trapezoid(self.q, self.x, dim=1)

    @property
    def root(self) -> Tensor:
        """The square root of p, normalised (n,)."""
        return self.p.sqrt() / self.root_mass

    @property
    def root_mass(self) -> float:
        """Integral of sqrt(p)."""
        return float(torch.trapezoid(self.p.sqrt(), self.x))

    @property
    def normalised(self) -> Tensor:
        """q over its mass, (len(times), n)."""
        return self.q / self.mass.unsqueeze(1)

    @property
    def error(self) -> float:
        """Largest relative error of the numerical solution."""
        return float((self.q / self.exact - 1).abs().max())

    @property
    def entropy(self) -> float:
        """Of p, in nats."""
        return -float(torch.trapezoid(self.p * self.p.clamp(min=1e-300).log(), self.x))

    def distance(self, density: Tensor) -> list[float]:
        """Total variation of q, normalised, from a density (n,), at each time."""
        return (torch.trapezoid((self.normalised - density).abs(), self.x, dim=1) / 2).tolist()

    def divergence(self) -> list[float]:
        """``integral of p log(p / q)`` at each time: negative where the mass of q has grown beyond one."""
        ratio = self.p.clamp(min=1e-300).log() - self.q.log()
        return torch.trapezoid(self.p * ratio, self.x, dim=1).tolist()


def descend(well: DoubleWell, start: Tensor, times: Sequence[float]) -> Descent:
    """Follow ``dq/dt = -dKL(p || q)/dq = p / q`` from a start on the grid.

    Parameters
    ----------
    well : DoubleWell
        In one dimension.
    start : (n,) tensor
        q0 on `grid()`, positive.
    times : sequence of float
        Increasing.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), proposition I.1 and appendix J.2.
    """
    x = grid()
    p = well.log_prob(x.reshape(-1, 1, 1)).exp()
    t, q, seen = 0.0, start.clone(), []
    for end in times:
        while t < end:
            step = min(max(FIRST_STEP, RELATIVE_STEP * t), end - t)
            half = q + 0.5 * step * p / q
            q, t = q + step * p / half, t + step
        seen.append(q.clone())
    exact = torch.stack([exact_solution(p, start, time) for time in times])
    return Descent(x, p, tuple(times), torch.stack(seen), exact)


def exact_solution(p: Tensor, start: Tensor, t: float) -> Tensor:
    """``q(t) = sqrt(q0^2 + 2 p t)``, the solution of ``dq/dt = p / q`` (appendix J.2)."""
    return (start.square() + 2 * p * t).sqrt()


def grid() -> Tensor:
    """Points of x, (2001,)."""
    return torch.linspace(*GRID, dtype=torch.float64)


def random_start(seed: int) -> Tensor:
    """A normal density with centre and width drawn by a seed, on the grid."""
    centre, width = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    density = torch.exp(-0.5 * ((grid() - (2 * centre - 1)) / (1 + width)).square())
    return density / torch.trapezoid(density, grid())


def unnormalised_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p_d || q) on a batch: p divided by its sum over the batch, q not. "The incorrect way" of appendix J.4.

    ``L = -sum_i p_d(x_i) log q(x_i)`` up to a constant: the density is asked to rise at every sample. With neither
    divided, KL(p_m || q_m), the gradient is the same up to the factor ``sum_i p(x_i)``.
    """
    return -(log_p.log_softmax(0).detach().exp() @ log_q)


def fixed_minibatch(
    start: BoltzmannGenerator, n_samples: int, n_steps: int, learning_rate: float, seed: int
) -> dict[str, list[float]]:
    """Corollary I.1: descent with one and the same minibatch, drawn from the flow.

    Parameters
    ----------
    start : BoltzmannGenerator
        Stays as it is.
    n_samples : int
        Of the minibatch.
    n_steps : int
        Of Adam.
    learning_rate : float
    seed : int

    Returns
    -------
    {loss: list of float}
        Log of ``sum_i q(x_i)`` over its value at the start, before each step and after the last: of
        `unnormalised_kl` and of `boltzgen.losses.minibatch_kl`.
    """
    with torch.no_grad():
        x = start.flow.sample_and_log_prob(n_samples, torch.Generator().manual_seed(seed))[0]
        log_p = -start.reduced_energy(x, start.kT).to(x.dtype)
    grown = {}
    for name, loss in (("unnormalised", unnormalised_kl), ("normalised", minibatch_kl)):
        flow = copy.deepcopy(start.flow)
        optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate)
        mass = []
        for _ in shown_steps(range(n_steps), f"one minibatch, {name}"):
            log_q = flow.log_prob(x)
            mass.append(float(log_q.detach().logsumexp(0)))
            optimizer.zero_grad(set_to_none=True)
            loss(log_p, log_q).backward()
            optimizer.step()
        with torch.no_grad():
            mass.append(float(flow.log_prob(x).logsumexp(0)))
        grown[name] = [value - mass[0] for value in mass]
    return grown
