"""Metropolis moves among the base variables of a flow, on the pull-back of the target.

With x = T(z) for base variables z of density r, the pull-back is ``p~(T(z)) |det T'(z)| = p~(x)/q(x) r(z)``: where the
flow is good it is nearly r, whatever the shape of the target, and one step size suits all variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from boltzgen.errors import PotentialError
from boltzgen.flows.base import Base

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["AutoregressiveMoves", "LatentFlow", "LatentMoves", "LatentSpace", "LatentState", "TrajectoryMoves"]

BATCH = 4096
ANGLE = math.pi / math.sqrt(3)  # standard deviation of a uniform angle
TUNING_RATE = 0.5


@runtime_checkable
class LatentFlow(Protocol):
    """A flow whose base variables can be had apart: uniform angles, and normal variables of variance one."""

    def draw(self, n_samples: int, generator: torch.Generator | None = None) -> Base:
        """The random numbers of samples."""

    def place(self, base: Base) -> tuple[Tensor, Tensor]:
        """Positions (B, N, d) and log-density (B,), a differentiable function of the base alone."""


@dataclass
class LatentState:
    """Base variables with what moves need of them.

    Attributes
    ----------
    angles, normals, labels : (B, D) tensors
        Base variables; labels stay as they were drawn.
    positions : (B, N, d) float64 tensor
    log_ratio : (B,) float64 tensor
        log p~(x) - log q(x); -inf where the target is zero or undefined.
    reduced : (B,) float64 tensor
        -log p~(x).
    slope_angles, slope_normals : (B, D) tensors
        Gradient of log p~ - log q; zero where it was not asked for.
    """

    angles: Tensor
    normals: Tensor
    labels: Tensor
    positions: Tensor
    log_ratio: Tensor
    reduced: Tensor
    slope_angles: Tensor
    slope_normals: Tensor

    def where(self, chosen: Tensor, other: LatentState) -> LatentState:
        """This state where `chosen` (B,), the other elsewhere."""
        pick = lambda a, b: torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return LatentState(*(pick(getattr(self, name), getattr(other, name)) for name in self.__annotations__))

    def log_density(self) -> Tensor:
        """Of the pull-back (B,), up to a constant."""
        return self.log_ratio - 0.5 * self.normals.double().square().sum(1)


class LatentSpace:
    """The pull-back of a generator's target through its flow.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Whose flow is a `LatentFlow`.

    Raises
    ------
    PotentialError
        If the flow is of another kind.
    """

    def __init__(self, generator: BoltzmannGenerator) -> None:
        if not isinstance(generator.flow, LatentFlow):
            raise PotentialError(
                f"a {type(generator.flow).__name__} does not give its base variables: use flow_chains, which moves in "
                "positions, or a generator with coordinates='internal' and hydrogens='flow'"
            )
        self.generator, self.flow = generator, cast(LatentFlow, generator.flow)
        empty = self.flow.draw(0, torch.Generator(generator.device))
        self._split = len(empty.torsions), len(empty.stiff)

    def draw(self, n: int, rng: torch.Generator, slopes: bool) -> LatentState:
        """Independent samples of the flow; one energy evaluation each."""
        base = self.flow.draw(n, rng)
        angles = torch.cat([base.torsions, base.hydrogen_torsions]).T
        normals = torch.cat([base.stiff, base.hydrogen_stiff]).T
        return self.state(angles, normals, base.labels.T, slopes)

    def state(self, angles: Tensor, normals: Tensor, labels: Tensor, slopes: bool) -> LatentState:
        """Evaluate base variables (B, D); one energy evaluation each, with forces if slopes are asked for."""
        batches = [slice(start, start + BATCH) for start in range(0, len(angles), BATCH)]
        parts = [self._evaluate(angles[rows], normals[rows], labels[rows], slopes) for rows in batches]
        return LatentState(
            *(torch.cat([getattr(part, name) for part in parts]) for name in LatentState.__annotations__)
        )

    def _evaluate(self, angles: Tensor, normals: Tensor, labels: Tensor, slopes: bool) -> LatentState:
        angles, normals = angles.detach(), normals.detach()
        slope_angles, slope_normals = torch.zeros_like(angles), torch.zeros_like(normals)
        with torch.set_grad_enabled(slopes):
            if slopes:
                angles.requires_grad_(True), normals.requires_grad_(True)
            positions, log_q = self.flow.place(self._base(angles, normals, labels))
            positions = positions.double()
            reduced = self.generator.reduced_energy(positions).double()
            log_ratio = -reduced - log_q.double()
            if slopes:
                finite = torch.where(torch.isfinite(log_ratio), log_ratio, 0.0)
                found = torch.autograd.grad(finite.sum(), (angles, normals), allow_unused=True)
                slope_angles, slope_normals = (
                    torch.zeros_like(x) if slope is None else torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
                    for slope, x in zip(found, (angles, normals), strict=True)
                )
        # What is undefined is as good as an infinite energy to a move: it is not accepted.
        log_ratio = torch.where(torch.isfinite(log_ratio), log_ratio, -torch.inf)
        values = (angles, normals, labels, positions, log_ratio, reduced, slope_angles, slope_normals)
        return LatentState(*(value.detach() for value in values))

    def _base(self, angles: Tensor, normals: Tensor, labels: Tensor) -> Base:
        torsions, stiff = self._split
        split = lambda values, at: (values.T[:at], values.T[at:])
        (heavy, hydrogen), (z, hydrogen_z) = split(angles, torsions), split(normals, stiff)
        return Base(heavy, z, hydrogen, hydrogen_z, labels.T)


class LatentMoves:
    """A kind of local move: every configuration goes a step of its own, which is accepted or rejected.

    Parameters
    ----------
    space : LatentSpace
    step_size : float
        In standard deviations of the base, to start with.
    rng : torch.Generator

    Attributes
    ----------
    step_size : float
        Changed by `tune`.
    acceptance : float
        Of the last move, averaged over configurations.
    """

    slopes: bool  # whether a move needs gradients
    aim: float  # acceptance that step sizes are tuned to
    largest: float  # step size

    def __init__(self, space: LatentSpace, step_size: float, rng: torch.Generator) -> None:
        self.space, self.step_size, self.rng = space, step_size, rng
        self.acceptance = float("nan")

    def __call__(self, state: LatentState) -> LatentState:
        """One move of every configuration."""
        moved, log_chance = self._propose(state)
        chance = torch.exp(log_chance.clamp(max=0)).nan_to_num(nan=0.0)
        uniform = torch.rand(len(chance), generator=self.rng, dtype=torch.float64, device=self.rng.device)
        self.acceptance = float(chance.mean())
        return moved.where(uniform < chance, state)

    def tune(self) -> None:
        """Change the step size towards the acceptance that is aimed at; not while samples are kept."""
        self.step_size = min(self.step_size * float(np.exp(TUNING_RATE * (self.acceptance - self.aim))), self.largest)

    def _propose(self, state: LatentState) -> tuple[LatentState, Tensor]:
        """Where to, and the logarithm of the Metropolis ratio (B,)."""
        raise NotImplementedError

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.rng, dtype=like.dtype, device=like.device)


class TrajectoryMoves(LatentMoves):
    """Hybrid Monte Carlo: leapfrog trajectories on the pull-back with fresh momenta; one step is MALA.

    Parameters
    ----------
    space, step_size, rng
        See `LatentMoves`.
    n_leapfrog : int
        Steps, each one energy evaluation with forces.

    References
    ----------
    Duane et al., Phys. Lett. B 195, 216 (1987); Hoffman et al., arXiv:1903.03704, for moves in the base of a flow.
    """

    slopes, aim, largest = True, 0.8, 2.0

    def __init__(self, space: LatentSpace, step_size: float, rng: torch.Generator, n_leapfrog: int) -> None:
        super().__init__(space, step_size, rng)
        self.n_leapfrog = n_leapfrog

    def _propose(self, state: LatentState) -> tuple[LatentState, Tensor]:
        momenta = self._noise(state.angles), self._noise(state.normals)
        before = state.log_density() - _kinetic(momenta)
        # Trajectories of one length could go round an orbit and come back.
        jitter = 0.8 + 0.4 * float(torch.rand(1, generator=self.rng, dtype=torch.float64, device=self.rng.device))
        moved, momenta = self.trajectory(state, momenta, self.step_size * jitter)
        return moved, moved.log_density() - _kinetic(momenta) - before

    def trajectory(
        self, state: LatentState, momenta: tuple[Tensor, Tensor], step: float
    ) -> tuple[LatentState, tuple[Tensor, Tensor]]:
        """Where leapfrog steps lead, with the momenta there."""
        momenta = _kicked(momenta, state, 0.5 * step)
        for k in range(self.n_leapfrog):
            angles = _wrapped(state.angles + step * ANGLE * momenta[0])
            state = self.space.state(angles, state.normals + step * momenta[1], state.labels, slopes=True)
            momenta = _kicked(momenta, state, step if k < self.n_leapfrog - 1 else 0.5 * step)
        return state, momenta


class AutoregressiveMoves(LatentMoves):
    """Random steps that leave the base distribution as it is, so that only p~/q decides; no forces are needed.

    Normal variables go to ``sqrt(1 - s^2) z + s xi``, angles to ``u + s xi`` on the circle.

    References
    ----------
    Cotter et al., Stat. Sci. 28, 424 (2013), preconditioned Crank-Nicolson.
    """

    slopes, aim, largest = False, 0.4, 1.0

    def _propose(self, state: LatentState) -> tuple[LatentState, Tensor]:
        s = min(self.step_size, 1.0)
        angles = _wrapped(state.angles + s * ANGLE * self._noise(state.angles))
        normals = math.sqrt(1 - s * s) * state.normals + s * self._noise(state.normals)
        moved = self.space.state(angles, normals, state.labels, slopes=False)
        return moved, moved.log_ratio - state.log_ratio


KINDS: dict[str, Callable[[LatentSpace, float, torch.Generator, int], LatentMoves]] = {
    "hmc": TrajectoryMoves,
    "langevin": lambda space, step_size, rng, _: TrajectoryMoves(space, step_size, rng, 1),
    "autoregressive": lambda space, step_size, rng, _: AutoregressiveMoves(space, step_size, rng),
}


def _kicked(momenta: tuple[Tensor, Tensor], state: LatentState, step: float) -> tuple[Tensor, Tensor]:
    """Momenta after a force has acted; those of angles are in units of `ANGLE`."""
    return momenta[0] + step * ANGLE * state.slope_angles, momenta[1] + step * (state.slope_normals - state.normals)


def _kinetic(momenta: tuple[Tensor, Tensor]) -> Tensor:
    return sum((0.5 * p.double().square().sum(1) for p in momenta), torch.zeros(()))


def _wrapped(angles: Tensor) -> Tensor:
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
