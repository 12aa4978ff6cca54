"""Training on the energy alone: reverse KL while hot, cooling and refinement with a detached loss.

A training is a list of stages run one after the other by `Training`, whose whole state (weights, averages,
optimiser, random numbers, counters, history) can be written down between any two steps and taken up again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor, nn

from boltzgen.diagnostics import effective_sample_fraction, normalized_weights
from boltzgen.errors import BoltzgenError, CheckpointError
from boltzgen.losses import data_free_loss, path_log_prob

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule

__all__ = ["History", "Stage", "Training", "anneal", "finetune"]

log = logging.getLogger(__name__)

CAP_ABOVE_MEDIAN = 100.0  # kT; thermal fluctuations of 60 coordinates are 5 kT, so no typical state is touched
MAX_GRADIENT_NORM = 50.0
AVERAGING = 0.999
MONITOR_BATCHES = 8
BATCH_SIZE = 768
LEARNED_RATE = 10.0  # of a loss's own parameters (log Z), over that of the flow: one number moves further than a weight


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one loss.

    Attributes
    ----------
    name : str
    loss : str
        A key of `boltzgen.losses.LOSSES`.
    n_steps : int
    heat_start, heat_end : float
        Temperature over the target temperature; it falls geometrically from one to the other.
    learning_rate_start, learning_rate_end : float
        Of Adam; cosine between the two.
    """

    name: str
    loss: str
    n_steps: int
    heat_start: float = 1.0
    heat_end: float = 1.0
    learning_rate_start: float = 1e-3
    learning_rate_end: float = 1e-3

    def heat(self, step: int) -> float:
        """Temperature over target temperature at a step."""
        share = step / max(self.n_steps - 1, 1)
        return self.heat_start * (self.heat_end / self.heat_start) ** share

    def learning_rate(self, step: int) -> float:
        share = step / max(self.n_steps - 1, 1)
        mix = 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate_end + (self.learning_rate_start - self.learning_rate_end) * mix


@dataclass
class History:
    """What was seen during a training, one record now and then.

    Each record holds ``stage``, ``step``, ``temperature`` (K, or heat where there is no molecule), ``loss``,
    ``ess_fraction``, ``energy_evaluations``, ``seconds`` and ``populations`` (by basin). ESS and populations are those
    of the last batches, weighted at the temperature of their step: following them costs no evaluation.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def table(self) -> dict[str, np.ndarray]:
        """Columns of the records as arrays; populations as ``population <basin>``."""
        if not self.records:
            return {}
        columns = {key: np.array([r[key] for r in self.records]) for key in self.records[0] if key != "populations"}
        for name in self.records[0]["populations"]:
            columns[f"population {name}"] = np.array([r["populations"][name] for r in self.records])
        return columns

    def __repr__(self) -> str:
        if not self.records:
            return "<History: empty>"
        last = self.records[-1]
        return (
            f"<History: {last['energy_evaluations']:,} energy evaluations, {last['seconds']:.0f} s, "
            f"ESS {last['ess_fraction']:.1%} of the last batches>"
        )


class Training:
    """Runs stages of training on a generator.

    Parameters
    ----------
    generator : BoltzmannGenerator
    stages : list of Stage
    batch_size : int
    observable : callable, optional
        The function f of positions (B, N, 3), to (B,), of the loss "estimator-variance", which trains towards |f| p.
    basins : {name: expression or predicate}, optional
        Populations to follow: such as "0 < phi < 150", or functions of positions (B, N, 3) to bool (B,).
    on_record : callable, optional
        Called with each record and this training.
    on_checkpoint : callable, optional
        Called with this training every ``checkpoint_seconds`` and when interrupted.

    Attributes
    ----------
    skipped : int
        Steps that were left out because their gradient was not finite.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        stages: list[Stage],
        *,
        batch_size: int = BATCH_SIZE,
        observable: Callable[[Tensor], Tensor] | None = None,
        basins: Mapping[str, str | Callable[[Tensor], Tensor]] | None = None,
        record_every: int = 25,
        on_record: Callable[[dict[str, Any], Training], None] | None = None,
        on_checkpoint: Callable[[Training], None] | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.losses = {stage.loss: data_free_loss(stage.loss, observable is not None) for stage in stages}
        self.generator = generator
        self.observable = observable
        self.stages = stages
        self.batch_size = batch_size
        self.basins = {name: _predicate(basin, generator.molecule) for name, basin in (basins or {}).items()}
        self.record_every = record_every
        self.on_record = on_record
        self.on_checkpoint = on_checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.history = History()
        self.step = 0  # over all stages
        self.seconds = 0.0
        flow_parameters = list(generator.flow.parameters())
        self.objectives = {name: loss.start(flow_parameters) for name, loss in self.losses.items()}
        self.optimizer = torch.optim.Adam(flow_parameters, lr=stages[0].learning_rate_start)
        learned = [p for module in self._loss_modules().values() for p in module.parameters()]
        if learned:
            self.optimizer.add_param_group({"params": learned, "rate": LEARNED_RATE})
        self.average = [p.detach().clone() for p in generator.flow.parameters()]
        self._recent: deque[tuple[Tensor, dict[str, Tensor]]] = deque(maxlen=MONITOR_BATCHES)
        self.skipped = 0
        self._hottest = _hottest(generator)
        if self._hottest is not None and self._loss_modules():
            raise ValueError("a loss that learns log Z needs one temperature: train without a temperature range")

    @property
    def n_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.n_steps for stage in self.stages)

    def locate(self, step: int) -> tuple[Stage, int]:
        """The stage that a step belongs to, and the step within it."""
        for stage in self.stages:
            if step < stage.n_steps:
                return stage, step
            step -= stage.n_steps
        return self.stages[-1], self.stages[-1].n_steps - 1

    def run(self, stop: Callable[[], bool] | None = None) -> History:
        """Run all steps that are left; then the flow holds the averaged weights.

        Parameters
        ----------
        stop : callable, optional
            Asked before each step; a true answer ends the run early, after a checkpoint, with the averaged weights in
            the flow and ``history.interrupted`` set.
        """
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        while self.step < self.n_steps:
            if stop is not None and stop():
                self.history.interrupted = True
                break
            stage, within = self.locate(self.step)
            loss = self._one_step(stage, within)
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % self.record_every == 0 or self.step == self.n_steps:
                self._record(stage, within, loss)
            if self.on_checkpoint and time.monotonic() - saved > self.checkpoint_seconds:
                self.on_checkpoint(self)
                saved = time.monotonic()
        if self.on_checkpoint:
            self.on_checkpoint(self)
        self._use_average()
        return self.history

    def _one_step(self, stage: Stage, within: int) -> float:
        loss_kind = self.losses[stage.loss]
        heat = self._heat(stage, within)
        kT = self.generator.kT * heat
        options = {"heat": heat} if self._hottest is not None else {}
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate(within) * group.get("rate", 1.0)
        if loss_kind.detached:
            positions, log_q, reduced = self._detached_batch(kT, options)
        else:
            positions, log_q = self.generator.flow.sample_and_log_prob(self.batch_size, self.generator.rng, **options)
            if loss_kind.samples == "path":
                log_q = path_log_prob(log_q, self.generator.flow.log_prob(positions.detach(), **options))
            reduced = self.generator.reduced_energy(positions, kT)
        valid = torch.isfinite(reduced) & torch.isfinite(log_q)
        if not bool(valid.all()):
            reduced, log_q = reduced[valid], log_q[valid]
        if len(reduced) < self.batch_size // 4:
            raise BoltzgenError(
                f"step {self.step}: only {len(reduced)} of {self.batch_size} samples have a finite energy; "
                "start from a structure without clashes, or hotter"
            )
        if heat == stage.heat(within):
            self._remember(positions.detach()[valid], -reduced.detach() - log_q.detach())
        log_p = -soft_cap(reduced)
        if loss_kind.observable and self.observable is not None:
            log_p = log_p + self.observable(positions.detach()[valid]).abs().log()
        loss = self.objectives[stage.loss](log_p, log_q)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.generator.flow.parameters(), MAX_GRADIENT_NORM)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._update_average()
        else:
            self.skipped += 1
            log.warning("step %d skipped: the gradient is not finite (%d so far)", self.step, self.skipped)
        return float(loss.detach())

    def _heat(self, stage: Stage, within: int) -> float:
        """Temperature of a step over the target's: the stage's.

        A generator with a temperature range takes every second step at a temperature drawn between the stage's and the
        highest, uniform in its logarithm: one temperature a step, for the losses compare samples of one log Z.
        """
        heat = stage.heat(within)
        if self._hottest is None or self.step % 2 == 0 or heat >= self._hottest:
            return heat
        share = float(torch.rand((), generator=self.generator.rng, device=self.generator.device))
        return float(heat * (self._hottest / heat) ** share)

    def _detached_batch(self, kT: float, options: dict[str, float]) -> tuple[Tensor, Tensor, Tensor]:
        """Samples without gradient, log q at these fixed samples with gradient, and their reduced energies."""
        with torch.no_grad():
            positions, _ = self.generator.flow.sample_and_log_prob(self.batch_size, self.generator.rng, **options)
            reduced = self.generator.reduced_energy(positions, kT)
        return positions, self.generator.flow.log_prob(positions, **options), reduced

    def _update_average(self) -> None:
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.generator.flow.parameters()], 1 - decay)

    def _use_average(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.generator.flow.parameters(), self.average, strict=True):
                parameter.copy_(average)

    def _remember(self, positions: Tensor, log_weights: Tensor) -> None:
        inside = {name: predicate(positions) for name, predicate in self.basins.items()}
        self._recent.append((log_weights, inside))

    def _record(self, stage: Stage, within: int, loss: float) -> None:
        heat = stage.heat(within)
        log_weights = torch.cat([w for w, _ in self._recent]).double().cpu().numpy()
        weights = normalized_weights(log_weights)
        molecule = self.generator.molecule
        target = molecule.temperature.value_in_unit(unit.kelvin) if molecule is not None else 1.0
        record = {
            "stage": stage.name,
            "step": self.step,
            "temperature": heat * target,
            "loss": loss,
            "ess_fraction": effective_sample_fraction(log_weights),
            "energy_evaluations": self.generator.potential.counts.energy,
            "seconds": self.seconds,
            "populations": {
                name: float(weights[torch.cat([inside[name] for _, inside in self._recent]).cpu().numpy()].sum())
                for name in self.basins
            },
        }
        self.history.records.append(record)
        if self.on_record:
            self.on_record(record, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers and strings only."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "batch_size": self.batch_size,
            "step": self.step,
            "seconds": self.seconds,
            "flow": self.generator.flow.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.generator.rng.get_state(),
            "history": self.history.records,
            "recent": list(self._recent),
            "counts": self.generator.potential.counts.__getstate__(),
            "skipped": self.skipped,
            "losses": {name: module.state_dict() for name, module in self._loss_modules().items()},
        }

    def _loss_modules(self) -> dict[str, nn.Module]:
        """The losses that have a state."""
        return {name: module for name, module in self.objectives.items() if isinstance(module, nn.Module)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict` of an equal training.

        Raises
        ------
        CheckpointError
            If the stages or the batch size differ, named.
        """
        mine = {"stages": [asdict(stage) for stage in self.stages], "batch_size": self.batch_size}
        for key, value in mine.items():
            if state[key] != value:
                raise CheckpointError(f"the checkpoint was made with {key} = {state[key]}, this training has {value}")
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.flow.load_state_dict(state["flow"])
        self.average = [tensor.clone() for tensor in state["average"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.rng.set_state(state["rng"])
        self.history.records = list(state["history"])
        self.skipped = state["skipped"]
        for name, module in self._loss_modules().items():
            module.load_state_dict(state["losses"][name])
        self._recent = deque((tuple(entry) for entry in state["recent"]), maxlen=MONITOR_BATCHES)
        counts = self.generator.potential.counts
        counts.add(**{key: value - getattr(counts, key) for key, value in state["counts"].items()})


def soft_cap(reduced_energy: Tensor) -> Tensor:
    """Reduced energies (B,) with those far above the batch median replaced by a logarithmic continuation.

    The cap lies 100 kT above the median, where no thermally reached state lies; it enters losses only, never weights.
    """
    cap = reduced_energy.detach().median() + CAP_ABOVE_MEDIAN
    return torch.where(reduced_energy > cap, cap + torch.log1p((reduced_energy - cap).clamp(min=0)), reduced_energy)


def anneal(
    generator: BoltzmannGenerator,
    t_start: unit.Quantity | float = 1200 * unit.kelvin,
    budget: int = 2_400_000,
    **options: Any,
) -> History:
    """Data-free training: reverse KL at ``t_start``, then cooling to the target temperature with L2+.

    Parameters
    ----------
    t_start : Quantity or float
        Temperature at which every basin is in easy reach; a float means kelvin.
    budget : int
        Energy evaluations to spend.
    options :
        Passed to `Training`. Progress is shown unless ``on_record`` is given.
    """
    heat = _heat(generator, t_start)
    n_steps = max(budget // options.get("batch_size", BATCH_SIZE), 2)
    return _run_shown(Training(generator, annealing_stages(heat, n_steps), **options))


def finetune(generator: BoltzmannGenerator, loss: str = "l2+", budget: int = 1_600_000, **options: Any) -> History:
    """Data-free refinement at the target temperature.

    Parameters
    ----------
    loss : str
        A key of `boltzgen.losses.LOSSES`, other than that on data.
    budget : int
        Energy evaluations to spend.
    options :
        Passed to `Training`; ``observable`` goes with the loss "estimator-variance".

    Raises
    ------
    ValueError
        If the loss is unknown, or needs what is not given here.
    """
    n_steps = max(budget // options.get("batch_size", BATCH_SIZE), 1)
    return _run_shown(Training(generator, [refinement_stage(n_steps, loss)], **options))


def _run_shown(training: Training) -> History:
    """Run with a progress display; Ctrl-C ends the training early and leaves a usable generator."""
    from boltzgen.interrupts import Interrupts
    from boltzgen.progress import Progress

    with Progress() as progress, Interrupts() as interrupts:
        training.on_record = training.on_record or progress
        return training.run(stop=interrupts.requested)


def annealing_stages(heat: float, n_steps: int) -> list[Stage]:
    """A tenth of the steps hot with reverse KL, the rest cooling with L2+."""
    hot = n_steps // 10
    return [
        Stage("hot", "reverse-kl", hot, heat, heat),
        Stage("cooling", "l2+", n_steps - hot, heat, 1.0),
    ]


def refinement_stage(n_steps: int, loss: str = "l2+") -> Stage:
    """Refinement at the target temperature with a falling learning rate."""
    return Stage("refinement", loss, n_steps, learning_rate_end=1e-5)


def _hottest(generator: BoltzmannGenerator) -> float | None:
    """Highest temperature of a generator with a temperature range, over the target's."""
    bounds = getattr(getattr(generator.flow, "config", None), "temperature_range", None)
    return None if bounds is None else generator.heat(bounds[1])


def _predicate(basin: str | Callable[[Tensor], Tensor], molecule: Molecule | None) -> Callable[[Tensor], Tensor]:
    if not isinstance(basin, str):
        return basin
    if molecule is None:
        raise ValueError(f"the basin {basin!r} needs a molecule; give a function of the samples instead")
    from boltzgen.collective_variables import parse_basin

    return parse_basin(basin, molecule).contains


def _heat(generator: BoltzmannGenerator, temperature: unit.Quantity | float) -> float:
    if generator.molecule is None:
        return float(temperature)
    kelvin = temperature.value_in_unit(unit.kelvin) if isinstance(temperature, unit.Quantity) else float(temperature)
    return float(kelvin / generator.molecule.temperature.value_in_unit(unit.kelvin))
