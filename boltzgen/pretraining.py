"""Training on data: maximum likelihood of given configurations, until those held out no longer gain."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boltzgen.configurations import Configurations, read_configurations, weighting
from boltzgen.ensemble import Ensemble
from boltzgen.errors import CheckpointError, StructureError
from boltzgen.flows.cartesian import CartesianFlow
from boltzgen.flows.placed import PlacedFlow
from boltzgen.losses import forward_kl
from boltzgen.progress import StepsShower, interruptible_steps
from boltzgen.training import MAX_GRADIENT_NORM, Event, History, TrainingDivergedError

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["Pretraining", "pretrain"]

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
    progress: bool | StepsShower = True,
) -> History:
    """Fit the generator to configurations, by maximum likelihood (the KL_z loss of the paper on data).

    No energy is evaluated. Some configurations are held out, and their mean negative log-likelihood is followed forty
    times over the run (``held_out`` in the history). The weights that made it lowest are those that the generator has
    in the end (``kept`` marks their record, and an event says so), so that more steps than the data bear do no harm.

    A generator with an alignment penalty sees configurations in orientations that are drawn anew for each batch, as the
    penalty distributes them, whatever orientation they come in.

    A generator with a temperature range is trained at the temperature of its molecule alone: data say nothing of the
    others, which `anneal` and `finetune` train on the energy.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory, Ensemble, or (n, N, 3) array or tensor in nm
        The weights of an Ensemble's ``unbiased()`` are used; its temperature and target must be the generator's.
        Configurations without weights are taken as they are; of a molecule with constraints they are taken to come
        from dynamics that kept these, and weighted by the mass metric (`boltzgen.energy.log_mass_metric`), so that they
        stand for the target; an event says how much that changes, or would change the equal weights of an Ensemble.
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
    progress : bool or callable
        Show a progress bar, where the first Ctrl-C ends the training with the best weights so far (``interrupted`` in
        the history); or wrap the steps with this, which may end them early too.

    Raises
    ------
    StructureError
        If the number of atoms differs, an Ensemble is of another temperature or target, configurations lie outside the
        domain of the generator, or those held out, or all others, have no weight.
    TrainingDivergedError
        If the held-out likelihood never was a finite number. The generator is then as it was before.
    ValueError
        If a share to hold out is not at least zero and below one.

    References
    ----------
    Felardos, Hénin, Charpiat (2022), equation 4.
    """
    training = Pretraining(
        generator,
        trajectory,
        validation=validation,
        n_steps=n_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        seed=seed,
    )
    training.run(progress)
    return training.finish()


class Pretraining:
    """The training that `pretrain` does, in steps that can be interrupted and gone on with.

    Parameters
    ----------
    generator, trajectory, validation, n_steps, batch_size, learning_rate, patience, seed
        See `pretrain`, for errors too.

    Attributes
    ----------
    step : int
        Steps done.
    history : History
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        trajectory: Any,
        *,
        validation: Any = 0.1,
        n_steps: int = 2000,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        patience: int | None = 10,
        seed: int = 0,
    ) -> None:
        self.generator, self.n_steps, self.batch_size = generator, n_steps, batch_size
        self._data, held_out = _split(generator, trajectory, validation, seed)
        self._best = _Best(generator, held_out, patience)
        if isinstance(generator.flow, (CartesianFlow, PlacedFlow)):
            generator.flow.start_at(self._data.positions, self._data.weights)
        self._rng = torch.Generator().manual_seed(seed + 1)
        self._optimizer = torch.optim.Adam(list(generator.flow.parameters()), lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, n_steps)
        self.step, self._seconds = 0, 0.0
        self._loss = torch.tensor(math.nan)
        self.history = History()
        if note := weighting(trajectory, generator.molecule):
            self.history.events.append(Event(0, "weights", note))

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done, or those held out no longer gain."""
        return self.step >= self.n_steps or self._best.is_final

    def run(self, progress: bool | StepsShower = False) -> None:
        """Go on to the end, or until interrupted; see `pretrain`."""
        with interruptible_steps(self.n_steps - self.step, progress, "pre-training") as steps:
            for _ in steps:
                self._advance()
                if self._best.is_final:
                    break

    def finish(self) -> History:
        """Give the generator its best weights.

        Raises
        ------
        TrainingDivergedError
            If the held-out likelihood never was a finite number. The generator is then as it was before.
        """
        if not self.history.records or self.history.records[-1]["step"] != self.step:
            self._check()
        self.history.interrupted = not self.is_complete
        self.history.events.append(self._best.keep(self.history.records, self.n_steps))
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """All that a training in the middle of its steps needs to go on, of tensors, numbers and strings."""
        return {
            "step": self.step,
            "seconds": self._seconds,
            "flow": self.generator.flow.state_dict(),
            "rng": self.generator.rng.get_state(),
            "order": self._rng.get_state(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "records": self.history.records,
            "best": self._best.state_dict(self.history.records),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an equal training was.

        Raises
        ------
        CheckpointError
            If the state is of another kind of flow or training.
        """
        try:
            self.generator.flow.load_state_dict(state["flow"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self.generator.rng.set_state(state["rng"])
            self._rng.set_state(state["order"])
            self.step, self._seconds = int(state["step"]), float(state["seconds"])
            self.history.records = [dict(record) for record in state["records"]]
            self._best.load_state_dict(state["best"], self.history.records)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the state does not fit this pre-training: {error}") from error

    def _advance(self) -> None:
        begin = time.monotonic()
        generator, data = self.generator, self._data
        rows = torch.multinomial(data.weights, self.batch_size, replacement=True, generator=self._rng)
        loss = forward_kl(torch.empty(0), generator.log_prob(generator.oriented(data.positions[rows])))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(generator.flow.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm):
            self._optimizer.step()
        self._schedule.step()
        self.step, self._loss = self.step + 1, loss.detach()
        self._seconds += time.monotonic() - begin
        if self.step % max(self.n_steps // N_CHECKS, 1) == 0 or self.step == self.n_steps:
            self._check()

    def _check(self) -> None:
        """Record this step, and take its weights if they are the best so far."""
        begin = time.monotonic()
        record = _record(self.generator, self.step, float(self._loss), self._seconds)
        self.history.records.append(record)
        self._best.check(record)
        self._seconds += time.monotonic() - begin


class _Best:
    """The weights of lowest held-out negative log-likelihood so far; those at the start until there is one."""

    def __init__(self, generator: BoltzmannGenerator, held_out: Configurations | None, patience: int | None) -> None:
        self.generator, self.held_out, self.patience = generator, held_out, patience
        self.lowest, self.without_gain = math.inf, 0
        self.record: dict[str, Any] | None = None
        self.state = self._present()

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
            self.state = self._present()

    @property
    def is_final(self) -> bool:
        """Whether the last checks brought no gain."""
        return self.held_out is not None and self.patience is not None and self.without_gain >= self.patience

    def keep(self, records: list[dict[str, Any]], n_steps: int) -> Event:
        """Give the generator its best weights, mark their record, and say so."""
        last = records[-1]["step"]
        if self.held_out is None:
            records[-1]["kept"] = True
            return Event(last, "stop", "the last weights are kept; nothing was held out to compare with")
        self.generator.flow.load_state_dict(self.state)
        if self.record is None:
            raise TrainingDivergedError(
                f"in {last:,} steps of pre-training the held-out likelihood never was a finite number; the generator "
                "is as it was before: lower the learning rate, or look for undefined values in data and generator"
            )
        self.record["kept"] = True
        ended = f"ended early, of {n_steps:,} steps" if last < n_steps else "took all steps"
        kept = (
            f"weights of step {self.record['step']:,} are kept, where the held-out negative log-likelihood was lowest "
            f"({self.lowest:.3f})"
        )
        return Event(last, "stop", f"pre-training {ended}; {kept}")

    def state_dict(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The weights by name, and which of the records they are of; -1 for none."""
        number = next((k for k, record in enumerate(records) if record is self.record), -1)
        return {"lowest": self.lowest, "without_gain": self.without_gain, "record": number, "flow": self.state}

    def load_state_dict(self, state: Mapping[str, Any], records: list[dict[str, Any]]) -> None:
        """What `state_dict` gave, for records in the same order."""
        self.lowest, self.without_gain = float(state["lowest"]), int(state["without_gain"])
        self.record = records[state["record"]] if state["record"] >= 0 else None
        self.state = dict(state["flow"])

    def _present(self) -> dict[str, Any]:
        return {name: value.detach().clone() for name, value in self.generator.flow.state_dict().items()}


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


def _split(
    generator: BoltzmannGenerator, trajectory: Any, validation: Any, seed: int
) -> tuple[Configurations, Configurations | None]:
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
    return data.rows(~held_out, "to train on"), data.rows(held_out, "held out")


def _held_out(n: int, groups: np.ndarray | None, share: float, seed: int) -> Tensor:
    """Whole groups, or stretches where there are not several groups, that hold about a share of n rows: (n,) bool."""
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(n) * min(N_BLOCKS, n) // n
    labels, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    enough = np.searchsorted(np.cumsum(sizes[order]), share * n) + 1
    return torch.from_numpy(np.isin(groups, labels[order[: min(enough, len(labels) - 1)]]))


def _data(generator: BoltzmannGenerator, trajectory: Any) -> Configurations:
    """Positions in the generator's dtype and device, oriented as its target is; all inside the domain."""
    shape = generator.potential.n_atoms, getattr(generator.potential, "dimension", 3)
    given = read_configurations(trajectory, shape, generator.molecule, generator.kT, generator.other_target)
    outside = ~generator.contains(given.positions.numpy(force=True))
    if outside.any():
        raise StructureError(
            f"{int(outside.sum())} of {len(outside)} configurations lie outside the generator's domain "
            f"(the first is number {int(np.argmax(outside))}): remove them, or widen the domain (omega='free')"
        )
    positions = given.positions.to(next(generator.flow.parameters()))
    return Configurations(generator.oriented(positions), given.weights)
