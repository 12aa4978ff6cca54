"""Markov chains in the latent space of a generator, with its samples as independent proposals mixed in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from boltzgen.energy.orientation import log_rigid_integral
from boltzgen.ensemble import Ensemble
from boltzgen.errors import PotentialError
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.sampling.latent_moves import KINDS, LatentSpace, LatentState
from boltzgen.sampling.run import generator as seeded

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["latent_chains"]


def latent_chains(
    generator: BoltzmannGenerator,
    n_chains: int = 64,
    n_rounds: int = 500,
    *,
    n_local: int = 1,
    moves: str = "hmc",
    n_leapfrog: int = 3,
    step_size: float = 0.2,
    burn_in: float = 0.2,
    seed: int = 0,
    progress: bool | StepsShower = False,
) -> Ensemble:
    """Equally weighted samples of the target from chains that move among the base variables of the flow.

    The target is pulled back through the flow, where it is nearly the simple distribution that the flow starts from:
    stiff bonds and curved valleys are straightened out, and moves cannot leave the domain or break a constraint.
    Independent proposals take a chain anywhere that the generator reaches; local moves fill what it draws too rarely.

    Parameters
    ----------
    generator : BoltzmannGenerator
        With ``coordinates="internal"`` and ``hydrogens="flow"``, or any flow that is a `LatentFlow`. Its state is not
        changed.
    n_chains : int
        Chains, each started from a sample of the generator of its own, independent of each other.
    n_rounds : int
        Rounds of one independent proposal and `n_local` local moves; the state after each is kept.
    n_local : int
        Local moves in each round; 0 for proposals of the generator alone.
    moves : {"hmc", "langevin", "autoregressive"}
        Trajectories of `n_leapfrog` steps; Langevin steps with a Metropolis test; or random steps without forces.
    n_leapfrog : int
    step_size : float
        In standard deviations of the base, to start tuning from.
    burn_in : float
        Share of the rounds whose states are left out; step sizes are tuned in the first half of them only.
    seed : int
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the chains with what they have; or wrap the rounds with this,
        which may end them early too.

    Returns
    -------
    Ensemble
        Of kind "chain" with one group for each chain, in the order of time; `evaluations` counts all, burn-in and
        rejected proposals included; `record` holds how many of them were with forces, and how many proposals of either
        kind were accepted, and whether the chains were ended early.

    Raises
    ------
    PotentialError
        Settings that make no sense, or a flow that does not give its base variables.

    References
    ----------
    Tierney, Ann. Stat. 22, 1701 (1994); Hoffman et al., arXiv:1903.03704; Gabrié, Rotskoff and Vanden-Eijnden, Proc.
    Natl. Acad. Sci. 119, e2109420119 (2022), for the mixture of independent and local moves.
    """
    if n_chains < 1 or n_rounds < 1 or n_local < 0 or n_leapfrog < 1 or not 0 <= burn_in < 1:
        raise PotentialError(
            "n_chains, n_rounds and n_leapfrog must be positive, n_local at least 0, burn_in lie between 0 and 1"
        )
    if moves not in KINDS:
        raise PotentialError(f"moves must be {', '.join(KINDS)}, not {moves!r}")
    if not 0 < step_size <= 1:
        raise PotentialError(f"step_size must lie between 0 and 1 standard deviations, not {step_size:g}")
    begin, before = time.perf_counter(), generator.potential.counts.__getstate__()
    space, rng = LatentSpace(generator), seeded(seed, generator.device)
    mover = KINDS[moves](space, step_size, rng, n_leapfrog)
    slopes = mover.slopes and n_local > 0
    state = space.draw(n_chains, rng, slopes)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    accepted = {"independent": 0.0, "local": 0.0}
    n_burnt = int(burn_in * n_rounds)
    with interruptible_steps(n_rounds, progress, "latent chains") as rounds:
        for round_ in rounds:
            state, independent = _independent(space, state, rng, slopes)
            local = 0.0
            for _ in range(n_local):
                state = mover(state)
                local += mover.acceptance / n_local
                if round_ < n_burnt // 2:
                    mover.tune()
            if round_ >= n_burnt:
                if not kept and not bool(torch.isfinite(state.log_ratio).all()):
                    raise PotentialError(
                        "some chains never found a finite energy: the generator is untrained or has diverged"
                    )
                kept.append((state.positions, state.reduced))
                accepted["independent"] += independent
                accepted["local"] += local
    if not kept:
        raise PotentialError(f"the chains were ended in the first {n_burnt} rounds, which burn_in leaves out")
    after = generator.potential.counts.__getstate__()
    record = {
        "accepted": {kind: total / len(kept) for kind, total in accepted.items()},
        "ended_early": len(kept) < n_rounds - n_burnt,
        "step_size": mover.step_size,
        "n_local": n_local,
        "moves": moves,
        "seed": seed,
        "force_evaluations": after["force"] - before["force"],
        "seconds": time.perf_counter() - begin,
    }
    return _ensemble(generator, kept, after["energy"] - before["energy"], record)


def _independent(
    space: LatentSpace, state: LatentState, rng: torch.Generator, slopes: bool
) -> tuple[LatentState, float]:
    """An independent proposal for every chain, and the mean chance that it was accepted."""
    proposed = space.draw(len(state.positions), rng, slopes)
    # Chains that have not yet found a finite energy take any proposal: -inf less -inf is no number.
    chance = torch.exp((proposed.log_ratio - state.log_ratio).clamp(max=0)).nan_to_num(nan=1.0)
    uniform = torch.rand(len(chance), generator=rng, dtype=torch.float64, device=rng.device)
    return proposed.where(uniform < chance, state), float(chance.mean())


def _ensemble(
    generator: BoltzmannGenerator,
    kept: list[tuple[torch.Tensor, torch.Tensor]],
    evaluations: int,
    record: dict[str, object],
) -> Ensemble:
    positions, reduced = (torch.cat(parts) for parts in zip(*kept, strict=True))
    rigid = None
    if generator.alignment is not None:
        rigid = log_rigid_integral(generator.alignment, positions).cpu().numpy()
        with torch.no_grad():
            reduced = reduced - generator.alignment(positions)
    return Ensemble(
        positions=positions.cpu().numpy(),
        log_weights=np.zeros(len(positions)),
        kT=generator.kT,
        energies=(reduced * generator.kT).cpu().numpy(),
        molecule=generator.molecule,
        groups=np.tile(np.arange(len(kept[0][0])), len(kept)),
        log_rigid_integral=rigid,
        kind="chain",
        evaluations=evaluations,
        record=record,
    )
