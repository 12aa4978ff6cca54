"""Metropolis moves of many configurations at once, on the way from the density of a generator to its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from boltzgen.errors import PotentialError

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["HamiltonianMoves", "PathState", "TargetPath", "move_masses"]

BATCH = 4096
ACCEPTANCE = (
    0.8  # that step sizes are tuned to; efficiency is flat about it (Betancourt, Byrne and Girolami, arXiv:1411.6669)
)
TUNING_RATE = 0.5


@dataclass
class PathState:
    """Configurations with what the path needs of them.

    Attributes
    ----------
    positions : (B, N, d) float64 tensor
        nm.
    log_q, log_p : (B,) tensors
        Log-density of the generator, and log p~ of the target; both -inf outside the domain.
    gradient_q, gradient_p : (B, N, d) tensors
        Of both; zero where the place on the path has no use for one of them.
    """

    positions: Tensor
    log_q: Tensor
    log_p: Tensor
    gradient_q: Tensor
    gradient_p: Tensor

    def take(self, rows: Tensor) -> PathState:
        """The state with configurations picked, or repeated, by number."""
        return PathState(*(getattr(self, name)[rows] for name in PathState.__annotations__))

    def where(self, chosen: Tensor, other: PathState) -> PathState:
        """This state where `chosen` (B,), the other elsewhere."""
        pick = lambda a, b: torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return PathState(*(pick(getattr(self, name), getattr(other, name)) for name in PathState.__annotations__))

    def log_density(self, t: float) -> Tensor:
        """Log-density (B,) at the place t of the path; -inf outside the domain wherever on the path."""
        inside = torch.isfinite(self.log_q) & torch.isfinite(self.log_p)
        mixed = (1 - t) * self.log_q + t * self.log_p
        return torch.where(inside, mixed, torch.full_like(mixed, -torch.inf))

    def gradient(self, t: float) -> Tensor:
        """Of the log-density at the place t, (B, N, d)."""
        return (1 - t) * self.gradient_q + t * self.gradient_p


class TargetPath:
    """The geometric path ``log pi_t = (1 - t) log q + t log p~`` from a generator to its target.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With an exact density of all atoms.

    Raises
    ------
    PotentialError
        If its hydrogens are a function of the heavy atoms, for there is then no density of all atoms to move in; or if
        bonds of the molecule are constrained.
    """

    def __init__(self, generator: BoltzmannGenerator) -> None:
        if generator.other_target:
            raise PotentialError(
                f"the target of this generator is {generator.other_target}: moves need a density of all atoms, "
                "so build the generator with hydrogens='flow'"
            )
        if generator.molecule is not None and generator.molecule.system.getNumConstraints():
            raise PotentialError(
                "moves would stretch the constrained bonds of this molecule: build it without constraints"
            )
        self.generator = generator
        self._like = next(generator.flow.parameters())

    def state(self, positions: Tensor, t: float, log_q: Tensor | None = None, gradients: bool = True) -> PathState:
        """Evaluate configurations (B, N, d) at the place t; one energy evaluation each.

        Parameters
        ----------
        log_q : (B,) tensor, optional
            Where it is known already and t is one.
        gradients : bool
            Whether moves will start from here.
        """
        parts = []
        for start in range(0, len(positions), BATCH):
            rows = slice(start, start + BATCH)
            known = None if log_q is None else log_q[rows]
            parts.append(self._evaluate(positions[rows], t, known, gradients))
        return PathState(*(torch.cat([getattr(part, name) for part in parts]) for name in PathState.__annotations__))

    def _evaluate(self, positions: Tensor, t: float, log_q: Tensor | None, gradients: bool) -> PathState:
        x = positions.detach().double()
        gradient_q, gradient_p = torch.zeros_like(x), torch.zeros_like(x)
        if gradients and t > 0:
            x.requires_grad_(True)
            with torch.enable_grad():
                log_p = -self.generator.reduced_energy(x)
                (gradient_p,) = torch.autograd.grad(torch.where(torch.isfinite(log_p), log_p, 0.0).sum(), x)
        else:
            with torch.no_grad():
                log_p = -self.generator.reduced_energy(x)
        if log_q is None or (gradients and t < 1):
            log_q, gradient_q = self._density(x.detach(), gradients and t < 1)
        # An undefined energy is as good as an infinite one to a move: it is not accepted.
        log_p = torch.nan_to_num(log_p.detach().double(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        finite = lambda gradient: torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return PathState(x.detach(), log_q.detach().double(), log_p, finite(gradient_q), finite(gradient_p))

    def _density(self, x: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
        """log q and its gradient; the gradient is zero outside the domain."""
        y = x.to(self._like)
        if not gradients:
            with torch.no_grad():
                return self.generator.log_prob(y).to(x), torch.zeros_like(x)
        y.requires_grad_(True)
        with torch.enable_grad():
            log_q = self.generator.log_prob(y)
            finite = torch.where(torch.isfinite(log_q), log_q, torch.zeros_like(log_q))
            (gradient,) = torch.autograd.grad(finite.sum(), y)
        return log_q.to(x), gradient.to(x)


class HamiltonianMoves:
    """Hybrid Monte Carlo: leapfrog trajectories with fresh momenta, accepted or rejected as a whole.

    One leapfrog step a trajectory is Langevin dynamics with a Metropolis test (MALA).

    Parameters
    ----------
    path : TargetPath
    masses : (N,) array
        Any unit; their ratios set how far atoms go.
    step_size : float
        nm, for an atom of mean mass, to start with.
    n_leapfrog : int
    rng : torch.Generator

    Attributes
    ----------
    step_size : float
        Changed by `tune`.
    acceptance : float
        Of the last move, averaged over configurations.

    References
    ----------
    Duane et al., Phys. Lett. B 195, 216 (1987); Roberts and Tweedie, Bernoulli 2, 341 (1996).
    """

    def __init__(
        self, path: TargetPath, masses: np.ndarray, step_size: float, n_leapfrog: int, rng: torch.Generator
    ) -> None:
        self.path, self.step_size, self.n_leapfrog, self.rng = path, step_size, n_leapfrog, rng
        relative = torch.as_tensor(masses / np.mean(masses), dtype=torch.float64, device=rng.device)
        self._masses = relative[:, None]
        self.acceptance = float("nan")

    def __call__(self, state: PathState, t: float) -> PathState:
        """One trajectory of every configuration at the place t."""
        shape = state.positions.shape
        noise = torch.randn(shape, generator=self.rng, dtype=torch.float64, device=self.rng.device)
        momenta = noise * self._masses.sqrt()
        before = state.log_density(t) - self._kinetic(momenta)
        # Trajectories of one length could go round an orbit and come back.
        jitter = 0.8 + 0.4 * torch.rand(1, generator=self.rng, dtype=torch.float64, device=self.rng.device)
        step = self.step_size * jitter
        moved = state
        momenta = momenta + 0.5 * step * moved.gradient(t)
        for k in range(self.n_leapfrog):
            positions = moved.positions + step * momenta / self._masses
            # At the target itself the density of the generator counts at the end only, to tell the domain.
            passing = t == 1.0 and k < self.n_leapfrog - 1
            moved = self.path.state(positions, t, torch.zeros_like(state.log_q) if passing else None)
            momenta = momenta + (step if k < self.n_leapfrog - 1 else 0.5 * step) * moved.gradient(t)
        after = moved.log_density(t) - self._kinetic(momenta)
        chance = torch.exp((after - before).clamp(max=0)).nan_to_num(nan=0.0)
        uniform = torch.rand(len(chance), generator=self.rng, dtype=torch.float64, device=self.rng.device)
        self.acceptance = float(chance.mean())
        return moved.where(uniform < chance, state)

    def tune(self) -> None:
        """Change the step size towards the acceptance that is aimed at; not while samples are kept."""
        self.step_size *= float(np.exp(TUNING_RATE * (self.acceptance - ACCEPTANCE)))

    def _kinetic(self, momenta: Tensor) -> Tensor:
        return 0.5 * (momenta.square() / self._masses).flatten(1).sum(1)


def move_masses(generator: BoltzmannGenerator, n_atoms: int) -> np.ndarray:
    """Masses (n_atoms,) for moves: those of the molecule with heavier hydrogens, or ones."""
    from boltzgen.sampling.langevin import heavy_hydrogens

    return np.ones(n_atoms) if generator.molecule is None else heavy_hydrogens(generator.molecule)
