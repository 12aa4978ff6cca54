"""Training on data: maximum likelihood of given configurations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.flows.placed import PlacedFlow
from boltzgen.losses import forward_kl
from boltzgen.training import MAX_GRADIENT_NORM, History

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["pretrain"]

HELD_OUT = 0.1


def pretrain(
    generator: BoltzmannGenerator,
    trajectory: Any,
    *,
    n_steps: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> History:
    """Fit the generator to configurations, by maximum likelihood (the KL_z loss of the paper on data).

    No energy is evaluated. A tenth of the configurations is held out; their mean negative log-likelihood stands in the
    history as ``held_out``. A generator with an alignment penalty sees them in orientations that are drawn anew for
    each batch, as the penalty distributes them, whatever orientation they come in.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory, Ensemble, or (n, N, 3) array or tensor in nm
        An Ensemble's weights are used.
    n_steps : int
        Steps of Adam, with the learning rate falling to zero on a cosine.
    seed : int
        Of the order of the data.

    Raises
    ------
    StructureError
        If the number of atoms differs, or configurations lie outside the domain of the generator.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 4.
    """
    positions, weights = _data(generator, trajectory)
    positions = generator.oriented(positions)
    if isinstance(generator.flow, (CartesianFlow, PlacedFlow)):
        generator.flow.start_at(positions, weights)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    n_held_out = max(int(HELD_OUT * len(positions)), 1)
    held_out, kept = order[:n_held_out], order[n_held_out:]
    rng = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(list(generator.flow.parameters()), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    no_energies = torch.empty(0)
    history, started = History(), time.monotonic()
    for step in range(1, n_steps + 1):
        rows = kept[torch.multinomial(weights[kept], batch_size, replacement=True, generator=rng)]
        loss = forward_kl(no_energies, generator.log_prob(generator.oriented(positions[rows])))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(generator.flow.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm):
            optimizer.step()
        schedule.step()
        if step % max(n_steps // 20, 1) == 0:
            with torch.no_grad():
                log_q = generator.log_prob(positions[held_out]).double().cpu()
            share = weights[held_out] / weights[held_out].sum()
            history.records.append(
                {
                    "stage": "pretraining",
                    "step": step,
                    "temperature": float("nan"),
                    "loss": float(loss.detach()),
                    "held_out": -float(share @ log_q),
                    "ess_fraction": float("nan"),
                    "energy_evaluations": generator.potential.counts.energy,
                    "seconds": time.monotonic() - started,
                    "populations": {},
                }
            )
    return history


def _data(generator: BoltzmannGenerator, trajectory: Any) -> tuple[Tensor, Tensor]:
    """Positions in the generator's dtype and device, and float64 weights; all inside the domain."""
    weights = trajectory.weights if isinstance(trajectory, Ensemble) else None
    if isinstance(trajectory, Ensemble):
        values: Any = trajectory.positions
    else:
        values = getattr(trajectory, "xyz", trajectory)
    positions = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values)
    n_atoms, dimension = generator.potential.n_atoms, getattr(generator.potential, "dimension", 3)
    if positions.ndim != 3 or positions.shape[1:] != (n_atoms, dimension):
        raise StructureError(
            f"the data have shape {tuple(positions.shape)}; this generator needs (n, {n_atoms}, {dimension}) in nm"
        )
    outside = ~generator.contains(positions.numpy(force=True))
    if outside.any():
        raise StructureError(
            f"{int(outside.sum())} of {len(positions)} configurations lie outside the generator's domain "
            f"(the first is number {int(np.argmax(outside))}): remove them, or widen the domain (omega='free')"
        )
    positions = positions.to(next(generator.flow.parameters()))
    return positions, torch.ones(len(positions), dtype=torch.float64) if weights is None else torch.as_tensor(weights)
