"""Annealed importance sampling and sequential Monte Carlo from a generator to its target.

For generators whose weights are too uneven. Particles drawn from the generator go along the geometric path to the
target in small steps, are weighted at each, and moved by hybrid Monte Carlo on the path; where weights of a repeat
have become uneven its particles are resampled. The mean of the final weights of each repeat is an unbiased estimate of
Z, and the weights are those of the target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from boltzgen.energy.orientation import log_rigid_integral
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps, shown_wait
from boltzgen.sampling.hybrid_moves import HamiltonianMoves, PathState, TargetPath, move_masses
from boltzgen.sampling.run import generator as seeded

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["annealed_importance"]

PILOT_PARTICLES = 256
AT_ONCE = 1000  # particles; larger batches are hardly faster for a molecule, and an interruption loses one
MOST_LEVELS = 2000
TUNING_MOVES = 10  # before the first level; later levels start from the step size of the one before


def annealed_importance(
    generator: BoltzmannGenerator,
    n_particles: int = 200,
    n_repeats: int = 20,
    *,
    schedule: Sequence[float] | None = None,
    conditional_ess: float = 0.95,
    resample_below: float = 0.5,
    moves: str = "hmc",
    n_moves: int = 1,
    n_leapfrog: int = 5,
    step_size: float | None = None,
    seed: int = 0,
    progress: bool | StepsShower = False,
) -> Ensemble:
    """Samples of the target with exact weights, from a generator that is far from it.

    A pilot of its own chooses the schedule and the step sizes, which are then fixed: with a schedule adapted to the
    very particles that are weighted, Z would be biased.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Its target and its random numbers' device; its state is not changed.
    n_particles : int
        In each repeat.
    n_repeats : int
        Independent repeats, from which errors come where particles are resampled.
    schedule : sequence of float, optional
        Places on the path, ascending from above 0 to 1. Chosen by the pilot if absent.
    conditional_ess : float
        Relative effective size of the weights of one step, between 0 and 1, that the pilot aims at.
    resample_below : float
        Relative effective sample size below which a repeat is resampled; 0 for never (annealed importance sampling),
        and all samples are then independent.
    moves : {"hmc", "langevin"}
        Trajectories of `n_leapfrog` steps, or Langevin steps one by one, each with a Metropolis test.
    n_moves : int
        Moves at each place of the path.
    n_leapfrog : int
        Steps of a trajectory, each one energy evaluation with forces.
    step_size : float, optional
        nm, to start tuning from; 2e-3 for molecules and 0.3 otherwise if absent.
    seed : int
    progress : bool or callable
        Show a progress bar, or wrap the places with this, which may end them early too. Particles go along the path
        some at a time: whole repeats, or 1,000 of them where they are independent. With the bar, the first Ctrl-C after
        the pilot keeps those that have arrived.

    Returns
    -------
    Ensemble
        `kind` is "particles" with one group for each repeat, or "independent" without resampling; `evaluations` counts
        the pilot too; `record` holds the schedule, step sizes, acceptance, effective sizes and times of resampling, and
        whether it was ended early.

    Raises
    ------
    PotentialError
        Settings that make no sense, a generator without an exact density of all atoms, or an end before the first
        repeats have arrived.

    References
    ----------
    Neal, Stat. Comput. 11, 125 (2001); Del Moral, Doucet and Jasra, J. R. Stat. Soc. B 68, 411 (2006); Zhou, Johansen
    and Aston, J. Comput. Graph. Stat. 25, 701 (2016), for the conditional effective sample size.
    """
    _check(n_particles, n_repeats, schedule, conditional_ess, resample_below, moves, n_moves, n_leapfrog)
    begin, before = time.perf_counter(), generator.potential.counts.energy
    path, rng = TargetPath(generator), seeded(seed, generator.device)
    state = _draw(path, PILOT_PARTICLES, rng)
    size = step_size if step_size is not None else (0.3 if generator.molecule is None else 2e-3)
    masses = move_masses(generator, state.positions.shape[1])
    mover = HamiltonianMoves(path, masses, size, n_leapfrog if moves == "hmc" else 1, rng)
    with shown_wait("choosing places on the path and step sizes") if progress is True else nullcontext():
        places, sizes = _pilot(path, state, mover, n_moves, schedule, conditional_ess)
    groups, size_of_group = (n_repeats, n_particles) if resample_below > 0 else (n_repeats * n_particles, 1)
    at_once = max(1, AT_ONCE // size_of_group)
    starts = range(0, groups, at_once)
    arrived: list[_Repeats] = []
    on_the_way: _Repeats | None = None
    k = 0
    with interruptible_steps(len(starts) * len(places), progress, "annealed importance") as steps:
        for _ in steps:
            if on_the_way is None:
                n, k = min(at_once, groups - starts[len(arrived)]), 0
                on_the_way = _Repeats(_draw(path, n * size_of_group, rng), n)
            mover.step_size = sizes[k]
            on_the_way.advance(places[k], mover, n_moves, resample_below)
            k += 1
            if k == len(places):
                arrived.append(on_the_way)
                on_the_way = None
    if not arrived:
        raise PotentialError("ended before the first particles came to the target: there are no samples to keep")
    record = {
        "schedule": list(places),
        "step_sizes": list(sizes),
        "moves": moves,
        "n_moves": n_moves,
        "seed": seed,
        **_joined_records(arrived),
        "ended_early": len(arrived) < len(starts),
        "seconds": time.perf_counter() - begin,
    }
    spent = generator.potential.counts.energy - before
    return _ensemble(generator, arrived, resample_below > 0, spent, record)


class _Repeats:
    """Independent repeats on their way along the path: weighted, resampled and moved together.

    Parameters
    ----------
    state : PathState
        Particles of the generator, those of each repeat together.
    n_repeats : int

    Attributes
    ----------
    log_weights : (n_repeats, n) tensor
    sums : list of (float, float)
        At each place: log of the sum of all weights, and of their squares.
    acceptance, resampled : list of float
        At each place: accepted moves, and repeats that were resampled, as shares.
    """

    def __init__(self, state: PathState, n_repeats: int) -> None:
        self.state, self._place = state, 0.0
        self.log_weights = torch.zeros_like(state.log_q, dtype=torch.float64).reshape(n_repeats, -1)
        self.sums: list[tuple[float, float]] = []
        self.acceptance: list[float] = []
        self.resampled: list[float] = []

    def advance(self, place: float, mover: HamiltonianMoves, n_moves: int, resample_below: float) -> None:
        """Go on to a place of the path."""
        log_weights = self.log_weights + _increment(self.state, place - self._place).reshape(self.log_weights.shape)
        self.state, self.log_weights, share = _resample(self.state, log_weights, resample_below, mover.rng)
        for _ in range(n_moves):
            self.state = mover(self.state, place)
        every = self.log_weights.flatten()
        self.sums.append((float(every.logsumexp(0)), float((2 * every).logsumexp(0))))
        self.acceptance.append(mover.acceptance)
        self.resampled.append(share)
        self._place = place


def _joined_records(arrived: Sequence[_Repeats]) -> dict[str, list[float]]:
    """Of all particles at each place: accepted moves, relative effective size, and share of repeats resampled."""
    sizes = np.array([repeats.log_weights.numel() for repeats in arrived], dtype=float)
    mean = lambda values: np.average(values, axis=0, weights=sizes).tolist()
    sums = np.logaddexp.reduce([repeats.sums for repeats in arrived], axis=0)
    return {
        "acceptance": mean([repeats.acceptance for repeats in arrived]),
        "ess": np.exp(2 * sums[:, 0] - sums[:, 1] - np.log(sizes.sum())).tolist(),
        "resampled": mean([repeats.resampled for repeats in arrived]),
    }


def _draw(path: TargetPath, n: int, rng: torch.Generator) -> PathState:
    """Particles of the generator, drawn by a source of randomness of their own."""
    generator = path.generator
    with torch.no_grad():
        parts = [generator.flow.sample_and_log_prob(min(4096, n - start), rng) for start in range(0, n, 4096)]
    # Halfway along the path, where a move needs both gradients.
    return path.state(torch.cat([x for x, _ in parts]).double(), 0.5)


def _increment(state: PathState, dt: float) -> Tensor:
    """Log-weights (B,) of one step along the path."""
    change = dt * (state.log_p - state.log_q)
    return torch.where(torch.isfinite(state.log_p) & torch.isfinite(state.log_q), change, -torch.inf)


def _pilot(
    path: TargetPath,
    state: PathState,
    mover: HamiltonianMoves,
    n_moves: int,
    schedule: Sequence[float] | None,
    target: float,
) -> tuple[list[float], list[float]]:
    """Places on the path and step sizes, from particles that are then thrown away."""
    places: list[float] = []
    sizes: list[float] = []
    t = 0.0
    log_weights = torch.zeros(1, len(state.positions), dtype=torch.float64, device=state.positions.device)
    while t < 1.0:
        following = schedule[len(places)] if schedule is not None else _next_place(state, log_weights[0], t, target)
        if len(places) >= MOST_LEVELS:
            raise PotentialError(
                f"the path needs more than {MOST_LEVELS} places: the generator is too far from the target"
            )
        log_weights = log_weights + _increment(state, following - t)
        state, log_weights, _ = _resample(state, log_weights, 0.999, mover.rng)
        for _ in range(n_moves if places else max(n_moves, TUNING_MOVES)):
            state = mover(state, following)
            mover.tune()
        t = following
        places.append(t)
        sizes.append(mover.step_size)
    return places, sizes


def _next_place(state: PathState, log_weights: Tensor, t: float, target: float) -> float:
    """The place at which the conditional effective sample size has fallen to the target, at most one."""
    gain = _increment(state, 1.0)
    weights = torch.softmax(log_weights, 0)
    finite = torch.isfinite(gain)
    weights, gain = weights[finite] / weights[finite].sum(), gain[finite]
    if not len(gain):
        raise PotentialError("no particle has a finite energy: the generator is untrained or has diverged")

    def excess(place: float) -> float:
        step = (place - t) * (gain - gain.max())
        first, second = (weights * step.exp()).sum(), (weights * (2 * step).exp()).sum()
        return float(first.square() / second) - target

    return 1.0 if excess(1.0) >= 0 else float(brentq(excess, t, 1.0, xtol=1e-9, rtol=1e-6))


def _relative_ess(log_weights: Tensor) -> Tensor:
    """Kish's effective size over n (R,) of log-weights (R, n)."""
    return torch.exp(2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)) / log_weights.shape[1]


def _resample(
    state: PathState, log_weights: Tensor, below: float, rng: torch.Generator
) -> tuple[PathState, Tensor, float]:
    """Systematic resampling of the repeats (R, n) whose effective size is too small; weights keep their mean."""
    n_repeats, n = log_weights.shape
    poor = (_relative_ess(log_weights) < below) & torch.isfinite(log_weights.logsumexp(1))
    if not bool(poor.any()):
        return state, log_weights, 0.0
    chosen = log_weights[poor]
    cumulative = torch.softmax(chosen, 1).cumsum(1)
    start = torch.rand(len(chosen), 1, generator=rng, dtype=torch.float64, device=rng.device)
    points = (start + torch.arange(n, device=rng.device)) / n * cumulative[:, -1:]
    rows = torch.arange(n_repeats * n, device=rng.device).reshape(n_repeats, n)
    picked = torch.searchsorted(cumulative, points).clamp(max=n - 1)
    rows[poor] = rows[poor].gather(1, picked)
    mean = chosen.logsumexp(1, keepdim=True) - np.log(n)
    levelled = log_weights.clone()
    levelled[poor] = mean.expand(-1, n)
    return state.take(rows.flatten()), levelled, float(poor.double().mean())


def _ensemble(
    generator: BoltzmannGenerator,
    arrived: Sequence[_Repeats],
    resampled: bool,
    evaluations: int,
    record: dict[str, object],
) -> Ensemble:
    joined = lambda parts: torch.cat(list(parts))
    positions, log_p = (joined(getattr(one.state, name) for one in arrived) for name in ("positions", "log_p"))
    log_weights = joined(one.log_weights for one in arrived)
    n_repeats, n = log_weights.shape
    with torch.no_grad():
        energies = generator.potential(positions)
    weights = torch.where(torch.isfinite(log_p), log_weights.flatten(), -torch.inf)
    rigid = None if generator.alignment is None else log_rigid_integral(generator.alignment, positions)
    return Ensemble(
        positions=positions.cpu().numpy(),
        log_weights=weights.cpu().numpy(),
        kT=generator.kT,
        energies=energies.cpu().numpy(),
        molecule=generator.molecule,
        dimension=generator.dimension,
        groups=np.repeat(np.arange(n_repeats), n) if resampled else None,
        log_rigid_integral=None if rigid is None else rigid.cpu().numpy(),
        n_infinite=int(torch.isneginf(weights).sum()),
        kind="particles" if resampled else "independent",
        evaluations=evaluations + len(energies),
        record=record,
    )


def _check(
    n_particles: int,
    n_repeats: int,
    schedule: Sequence[float] | None,
    conditional_ess: float,
    resample_below: float,
    moves: str,
    n_moves: int,
    n_leapfrog: int,
) -> None:
    for name, value in (("n_particles", n_particles - 1), ("n_repeats", n_repeats), ("n_leapfrog", n_leapfrog)):
        if value < 1:
            raise PotentialError(f"{name} is too small")
    if n_moves < 0 or not 0 < conditional_ess < 1 or not 0 <= resample_below <= 1:
        raise PotentialError("n_moves must not be negative; conditional_ess and resample_below lie between 0 and 1")
    if moves not in ("hmc", "langevin"):
        raise PotentialError(f"moves must be 'hmc' or 'langevin', not {moves!r}")
    if schedule is not None:
        ascending = all(a < b for a, b in zip([0.0, *schedule], schedule, strict=False))
        if not len(schedule) or not ascending or schedule[-1] != 1.0:
            raise PotentialError("the schedule must ascend from above 0 to exactly 1")
