"""Data of the double well as the paper makes them: Metropolis-Hastings with parallel tempering."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy.analytic import DoubleWell
from boltzgen.ensemble import Ensemble
from boltzgen.progress import shown_steps
from boltzgen.sampling.parallel_tempering import ReplicaExchange
from boltzgen.sampling.run import GAS_CONSTANT

__all__ = ["LADDERS", "SOURCE", "tempered_samples"]

LADDERS = 500  # independent of each other, at most
N_TEMPERATURES, T_RATIO = 5, 10.0  # up to ten times the target's, where the barrier of 11 kT is one of 1 kT
EXCHANGE, THINNING, BURN_IN = 10, 100, 4000  # steps
SOURCE = (
    f"random-walk Metropolis-Hastings with parallel tempering, {N_TEMPERATURES} temperatures up to {T_RATIO:g} times "
    f"the target's, every {THINNING} steps of up to {LADDERS} ladders after {BURN_IN:,}"
)
REACH = 2.4  # over sqrt(d), of the widths: Roberts, Gelman and Gilks, Ann. Appl. Probab. 7, 110 (1997)


def tempered_samples(target: DoubleWell, n_samples: int, seed: int) -> Ensemble:
    """Samples of a double well by random-walk Metropolis-Hastings at several temperatures, with replica exchange.

    All ladders start in the major minimum, so that whatever the minor well has was found.

    Parameters
    ----------
    target : DoubleWell
    n_samples : int
        In all ladders together, every 100 steps after a burn-in of 4,000.
    seed : int

    Returns
    -------
    Ensemble
        Of n_samples in the order of time; the ladder is the group.
    """
    rng = torch.Generator().manual_seed(seed)
    n_ladders, coldest = min(LADDERS, n_samples), target.kT / GAS_CONSTANT
    temperatures = np.geomspace(coldest, T_RATIO * coldest, N_TEMPERATURES)
    exchange = ReplicaExchange(temperatures, n_ladders, torch.Generator().manual_seed(seed + 1))
    kT, widths = exchange.kT, _widths(target)
    reach = REACH / math.sqrt(target.dimension) * (kT / target.kT).sqrt()[:, None, None] * widths
    x = torch.zeros(len(kT), 1, target.dimension, dtype=torch.float64)
    x[:, 0, 0] = _major_minimum(target)
    energy, saved = target(x), []
    n_saved = math.ceil(n_samples / n_ladders)
    for step in shown_steps(range(1, BURN_IN + n_saved * THINNING + 1), "data by parallel tempering"):
        proposed = x + reach * torch.randn(x.shape, dtype=x.dtype, generator=rng)
        there = target(proposed)
        chance = torch.rand(len(x), dtype=x.dtype, generator=rng)
        accepted = chance.log() < (energy - there) / kT
        x = torch.where(accepted[:, None, None], proposed, x)
        energy = torch.where(accepted, there, energy)
        if step % EXCHANGE == 0:
            order, _ = exchange.propose(energy)
            x, energy = x[order], energy[order]
        if step > BURN_IN and (step - BURN_IN) % THINNING == 0:
            saved.append(x[:n_ladders])
    positions = torch.cat(saved)[:n_samples].numpy()
    groups = np.tile(np.arange(n_ladders), n_saved)[:n_samples]
    return Ensemble(positions=positions, log_weights=np.zeros(n_samples), kT=target.kT, groups=groups)


def _major_minimum(target: DoubleWell) -> float:
    """First coordinate at the bottom of the deeper well."""
    minima = torch.as_tensor(target.well.stationary[[0, 2]])
    return float(minima[target.well.energy(minima).argmin()])


def _widths(target: DoubleWell) -> Tensor:
    """Standard deviation (d,) of every coordinate, of the first that of a parabola at the bottom of the deeper well."""
    well, bottom = target.well, _major_minimum(target)
    curvature = 2 * well.quadratic + 12 * well.quartic * bottom**2
    widths = torch.full((target.dimension,), target.scale, dtype=torch.float64)
    widths[0] = curvature**-0.5
    return widths
