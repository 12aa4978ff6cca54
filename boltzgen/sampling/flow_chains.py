"""Markov chains of the target with a generator's samples as independent proposals, and local moves between them.

The independent proposals take chains across any barrier in one step, wherever the generator has been; local moves take
them to places that the generator rarely draws. Either leaves the target as it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from boltzgen.energy.orientation import log_rigid_integral
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.sampling.hybrid_moves import HamiltonianMoves, PathState, TargetPath, move_masses
from boltzgen.sampling.run import generator as seeded

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["flow_chains"]


def flow_chains(
    generator: BoltzmannGenerator,
    n_chains: int = 64,
    n_rounds: int = 500,
    *,
    n_local: int = 1,
    moves: str = "hmc",
    n_leapfrog: int = 5,
    step_size: float | None = None,
    burn_in: float = 0.2,
    seed: int = 0,
    progress: bool | StepsShower = False,
) -> Ensemble:
    """Equally weighted samples of the target from chains of independence Metropolis and local moves.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Its state is not changed.
    n_chains : int
        Chains, each started from a sample of the generator of its own, independent of each other.
    n_rounds : int
        Rounds of one independent proposal and `n_local` local moves; the state after each is kept.
    n_local : int
        Local moves in each round; 0 for proposals of the generator alone.
    moves, n_leapfrog, step_size
        Of the local moves, as in `annealed_importance`.
    burn_in : float
        Share of the rounds whose states are left out; step sizes are tuned in the first half of them only.
    seed : int
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the chains with what they have; or wrap the rounds with this,
        which may end them early too.

    Returns
    -------
    Ensemble
        Of kind "chain" with one group for each chain, in the order of time; `record` holds how many proposals of
        either kind were accepted, and whether the chains were ended early.

    Raises
    ------
    PotentialError
        Settings that make no sense, or a generator without an exact density of all atoms.

    References
    ----------
    Tierney, Ann. Stat. 22, 1701 (1994), for independence chains; Gabrié, Rotskoff and Vanden-Eijnden, Proc. Natl.
    Acad. Sci. 119, e2109420119 (2022), for the mixture with local moves.
    """
    if n_chains < 1 or n_rounds < 1 or n_local < 0 or n_leapfrog < 1 or not 0 <= burn_in < 1:
        raise PotentialError("n_chains, n_rounds and n_leapfrog must be positive, burn_in lie between 0 and 1")
    if moves not in ("hmc", "langevin"):
        raise PotentialError(f"moves must be 'hmc' or 'langevin', not {moves!r}")
    begin, before = time.perf_counter(), generator.potential.counts.energy
    path, rng = TargetPath(generator), seeded(seed, generator.device)
    state = _proposals(path, n_chains, rng, n_local > 0)
    size = step_size if step_size is not None else (0.3 if generator.molecule is None else 2e-3)
    masses = move_masses(generator, state.positions.shape[1])
    mover = HamiltonianMoves(path, masses, size, n_leapfrog if moves == "hmc" else 1, rng)
    kept: list[np.ndarray] = []
    reduced: list[np.ndarray] = []
    accepted = {"independent": 0.0, "local": 0.0}
    n_burnt = int(burn_in * n_rounds)
    with interruptible_steps(n_rounds, progress, "chains") as rounds:
        for round_ in rounds:
            proposed = _proposals(path, n_chains, rng, n_local > 0)
            chance = torch.exp((_log_weight(proposed) - _log_weight(state)).clamp(max=0)).nan_to_num(nan=1.0)
            uniform = torch.rand(n_chains, generator=rng, dtype=torch.float64, device=rng.device)
            # Chains that have not yet found a finite energy take any proposal that has.
            state = proposed.where(uniform < chance, state)
            local = 0.0
            for _ in range(n_local):
                state = mover(state, 1.0)
                local += mover.acceptance / n_local
                if round_ < n_burnt // 2:
                    mover.tune()
            if round_ >= n_burnt:
                kept.append(state.positions.cpu().numpy())
                reduced.append(state.log_p.cpu().numpy())
                accepted["independent"] += float(chance.mean())
                accepted["local"] += local
    if not kept:
        raise PotentialError(f"the chains were ended in the first {n_burnt} rounds, which burn_in leaves out")
    accepted = {kind: total / len(kept) for kind, total in accepted.items()}
    positions = np.concatenate(kept)
    if not np.isfinite(reduced[0]).all():
        raise PotentialError("some chains never found a finite energy: the generator is untrained or has diverged")
    spent = generator.potential.counts.energy - before
    record = {"accepted": accepted, "step_size": mover.step_size, "n_local": n_local, "moves": moves, "seed": seed}
    record["ended_early"] = len(kept) < n_rounds - n_burnt
    return _ensemble(
        generator, positions, len(kept), n_chains, spent, {**record, "seconds": time.perf_counter() - begin}
    )


def _proposals(path: TargetPath, n: int, rng: torch.Generator, gradients: bool) -> PathState:
    with torch.no_grad():
        positions, log_q = path.generator.flow.sample_and_log_prob(n, rng)
    return path.state(positions.double(), 1.0, log_q.double(), gradients)


def _log_weight(state: PathState) -> torch.Tensor:
    """log p~ - log q (B,), -inf where the target is zero."""
    return torch.where(torch.isfinite(state.log_p), state.log_p - state.log_q, -torch.inf)


def _ensemble(
    generator: BoltzmannGenerator,
    positions: np.ndarray,
    n_kept: int,
    n_chains: int,
    evaluations: int,
    record: dict[str, object],
) -> Ensemble:
    x = torch.as_tensor(positions, device=generator.device)
    with torch.no_grad():
        energies = torch.cat([generator.potential(part) for part in x.split(65_536)])
    rigid = None if generator.alignment is None else log_rigid_integral(generator.alignment, x).cpu().numpy()
    return Ensemble(
        positions=positions,
        log_weights=np.zeros(len(positions)),
        kT=generator.kT,
        energies=energies.cpu().numpy(),
        molecule=generator.molecule,
        groups=np.tile(np.arange(n_chains), n_kept),
        log_rigid_integral=rigid,
        kind="chain",
        evaluations=evaluations + len(positions),
        record=record,
    )
