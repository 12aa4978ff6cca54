"""Training on data: maximum likelihood of given configurations, until those held out no longer gain."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.energy import log_mass_metric
from boltzgen.ensemble import Ensemble
from boltzgen.errors import StructureError
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.flows.placed import PlacedFlow
from boltzgen.losses import forward_kl
from boltzgen.training import MAX_GRADIENT_NORM, Event, History

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["pretrain"]

N_CHECKS = 40  # of the held-out likelihood, over all steps
N_BLOCKS = 20  # stretches of a trajectory without groups, of which some are held out as a whole
EVALUATION_BATCH = 4096


def pretrain(
    generator: BoltzmannGenerator,
    trajectory: Any,
    *,
    validation: Any = 0.1,
    n_steps: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    patience: int | None = 10,
    seed: int = 0,
) -> History:
    """Fit the generator to configurations, by maximum likelihood (the KL_z loss of the paper on data).

    No energy is evaluated. Some configurations are held out, and their mean negative log-likelihood is followed forty
    times over the run (``held_out`` in the history). The weights that made it lowest are those that the generator has
    in the end (``kept`` marks their record, and an event says so), so that more steps than the data bear do no harm.

    A generator with an alignment penalty sees configurations in orientations that are drawn anew for each batch, as the
    penalty distributes them, whatever orientation they come in.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory, Ensemble, or (n, N, 3) array or tensor in nm
        An Ensemble's weights are used. Configurations without weights of a molecule with constraints are taken to come
        from dynamics that kept these, and weighted by the mass metric (`boltzgen.energy.log_mass_metric`), so that they
        stand for the target; an event says how much that changes.
    validation : float, or configurations like those of the trajectory
        What is held out: a share of the trajectory, or independent configurations. A share consists of whole groups of
        an Ensemble that has several (walkers, which are independent), else of whole stretches of a twentieth of the
        trajectory each: frames next to each other are alike, and single ones would not show that a generator learns
        them by heart. Zero: none, and the last weights are kept.
    n_steps : int
        Steps of Adam, with the learning rate falling to zero on a cosine.
    patience : int, optional
        Checks without a gain after which training ends; None: only after the last step.
    seed : int
        Of the order of the data, and of what is held out.

    Raises
    ------
    StructureError
        If the number of atoms differs, configurations lie outside the domain of the generator, or those held out have
        no weight.
    ValueError
        If a share to hold out is not at least zero and below one.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 4.
    """
    data, held_out = _split(generator, trajectory, validation, seed)
    if isinstance(generator.flow, (CartesianFlow, PlacedFlow)):
        generator.flow.start_at(data.positions, data.weights)
    rng = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(list(generator.flow.parameters()), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    best = _Best(generator, held_out, patience)
    no_energies = torch.empty(0)
    history, started = History(), time.monotonic()
    history.events += _weighting(generator, trajectory, data)
    for step in range(1, n_steps + 1):
        rows = torch.multinomial(data.weights, batch_size, replacement=True, generator=rng)
        loss = forward_kl(no_energies, generator.log_prob(generator.oriented(data.positions[rows])))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(generator.flow.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm):
            optimizer.step()
        schedule.step()
        if step % max(n_steps // N_CHECKS, 1) == 0 or step == n_steps:
            record = _record(generator, step, float(loss.detach()), time.monotonic() - started)
            history.records.append(record)
            best.check(record)
            if best.is_final:
                break
    history.events.append(best.keep(history.records, n_steps))
    return history


@dataclass(frozen=True)
class _Data:
    """Configurations (n, N, 3) in nm, with weights (n,) that sum to one, in float64."""

    positions: Tensor
    weights: Tensor

    def rows(self, chosen: Tensor) -> _Data:
        """Those of a (n,) bool mask."""
        weights = self.weights[chosen]
        if len(weights) and float(weights.sum()) <= 0:
            raise StructureError("the configurations held out have no weight: give others as validation=")
        return _Data(self.positions[chosen], weights / weights.sum())


class _Best:
    """The weights of lowest held-out negative log-likelihood so far."""

    def __init__(self, generator: BoltzmannGenerator, held_out: _Data | None, patience: int | None) -> None:
        self.generator, self.held_out, self.patience = generator, held_out, patience
        self.lowest, self.without_gain = math.inf, 0
        self.record: dict[str, Any] | None = None
        self.parameters: list[Tensor] = []

    def check(self, record: dict[str, Any]) -> None:
        """Add ``held_out`` to the record of a step, and take the weights if they are the best so far."""
        if self.held_out is None:
            return
        with torch.no_grad():
            parts = [self.generator.log_prob(part) for part in self.held_out.positions.split(EVALUATION_BATCH)]
        record["held_out"] = value = -float(self.held_out.weights @ torch.cat(parts).double().cpu())
        self.without_gain += 1
        if value < self.lowest:
            self.lowest, self.record, self.without_gain = value, record, 0
            self.parameters = [p.detach().clone() for p in self.generator.flow.parameters()]

    @property
    def is_final(self) -> bool:
        """Whether the last checks brought no gain."""
        return self.held_out is not None and self.patience is not None and self.without_gain >= self.patience

    def keep(self, records: list[dict[str, Any]], n_steps: int) -> Event:
        """Give the generator its best weights, mark their record, and say so."""
        last = records[-1]["step"]
        if self.record is None:
            records[-1]["kept"] = True
            return Event(last, "stop", "the last weights are kept; nothing was held out to compare with")
        with torch.no_grad():
            for parameter, value in zip(self.generator.flow.parameters(), self.parameters, strict=True):
                parameter.copy_(value)
        self.record["kept"] = True
        ended = f"ended early, of {n_steps:,} steps" if last < n_steps else "took all steps"
        kept = (
            f"weights of step {self.record['step']:,} are kept, where the held-out negative log-likelihood was lowest "
            f"({self.lowest:.3f})"
        )
        return Event(last, "stop", f"pre-training {ended}; {kept}")


def _record(generator: BoltzmannGenerator, step: int, loss: float, seconds: float) -> dict[str, Any]:
    return {
        "stage": "pretraining",
        "step": step,
        "temperature": math.nan,
        "loss": loss,
        "held_out": math.nan,
        "kept": False,
        "ess_fraction": math.nan,
        "energy_evaluations": generator.potential.counts.energy,
        "seconds": seconds,
        "populations": {},
    }


def _split(generator: BoltzmannGenerator, trajectory: Any, validation: Any, seed: int) -> tuple[_Data, _Data | None]:
    """Configurations to train on, and those held out."""
    data = _data(generator, trajectory)
    if not isinstance(validation, (int, float)):
        return data, _data(generator, validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation}: give a share of at least 0 and below 1, or configurations")
    groups = trajectory.groups if isinstance(trajectory, Ensemble) else None
    if validation == 0 or len(data.positions) < 2:
        return data, None
    held_out = _held_out(len(data.positions), groups, float(validation), seed)
    return data.rows(~held_out), data.rows(held_out)


def _held_out(n: int, groups: np.ndarray | None, share: float, seed: int) -> Tensor:
    """Whole groups, or stretches where there are not several groups, that hold about a share of n rows: (n,) bool."""
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(n) * min(N_BLOCKS, n) // n
    labels, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    enough = np.searchsorted(np.cumsum(sizes[order]), share * n) + 1
    return torch.from_numpy(np.isin(groups, labels[order[: min(enough, len(labels) - 1)]]))


def _data(generator: BoltzmannGenerator, trajectory: Any) -> _Data:
    """Positions in the generator's dtype and device, oriented as its target is; all inside the domain."""
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
    share = _shares(generator, positions) if weights is None else torch.as_tensor(weights).double()
    return _Data(generator.oriented(positions.to(next(generator.flow.parameters()))), share)


def _shares(generator: BoltzmannGenerator, positions: Tensor) -> Tensor:
    """Weights (n,) of configurations that came without: equal, but for the mass metric of constraints."""
    if generator.molecule is None:
        return torch.full((len(positions),), 1 / len(positions), dtype=torch.float64)
    return torch.softmax(-log_mass_metric(generator.molecule, positions.detach().cpu()), dim=0)


def _weighting(generator: BoltzmannGenerator, trajectory: Any, data: _Data) -> list[Event]:
    """How much the mass metric weighs, where configurations came without weights."""
    if isinstance(trajectory, Ensemble) or generator.molecule is None or not len(generator.molecule.constraints):
        return []
    spread = float(data.weights.log().std())
    message = (
        f"configurations of dynamics with {len(generator.molecule.constraints)} constraints are weighted by the mass "
        f"metric: log-weights vary by {spread:.2g}"
    )
    return [Event(0, "weights", message)]
