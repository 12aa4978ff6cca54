"""The loop that all trainings on the energy run: draw, evaluate, compare, step.

A training is a list of stages run one after the other by `Training`, whose whole state (weights, averages,
optimiser, random numbers, buffer, counters, history) can be written down between any two steps and taken up again.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from openmm import unit
from torch import Tensor, nn

from boltzgen.losses import data_free_loss
from boltzgen.losses.controlled import ControlledForwardKL
from boltzgen.training.averages import Averages
from boltzgen.training.batches import Batch, RecentBatches
from boltzgen.training.cooling import Cooling
from boltzgen.training.drawing import Drawing
from boltzgen.training.history import Event, History
from boltzgen.training.processes import Processes, SharingError, is_torchrun
from boltzgen.training.replay import ReplayBuffer
from boltzgen.training.safeguard import Safeguard
from boltzgen.training.shards import Shards
from boltzgen.training.stages import BATCH_SIZE, Stage
from boltzgen.training.state import restore, set_counts, state_of, total_counts
from boltzgen.training.watch import BasinWatch

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator
    from boltzgen.molecule import Molecule

__all__ = ["CAP_ABOVE_MEDIAN", "MAX_GRADIENT_NORM", "Training", "soft_cap"]

log = logging.getLogger(__name__)

CAP_ABOVE_MEDIAN = 100.0  # kT; thermal fluctuations of 60 coordinates are 5 kT, so no typical state is touched
MAX_GRADIENT_NORM = 50.0
COMPILE_FROM = 1e7  # evaluations; compiling takes a minute or two and saves 20 us each
LEARNED_RATE = 10.0  # of a loss's own parameters (log Z), over that of the flow: one number moves further than a weight
CONFIRMED = 3  # records in a row with the wanted ESS, before a training stops on it


class Training:
    """Runs stages of training on a generator.

    Parameters
    ----------
    generator : BoltzmannGenerator
    stages : list of Stage
    batch_size : int
        Of all processes together.
    observable : callable, optional
        The function f of positions (B, N, 3), to (B,), of the loss "estimator-variance", which trains towards |f| p.
    basins : {name: expression or predicate}, optional
        Populations to follow: such as "0 < phi < 150", or functions of positions (B, N, 3) to bool (B,).
    buffer : ReplayBuffer, optional
        Of the configurations to use again, for stages with ``replay``; one of the usual size if absent.
    seconds : float, optional
        Wall time after which the training stops, with what it has.
    target_ess : float, optional
        Stop as soon as the last batches reach this ESS at the target temperature, three records in a row. They come
        from the weights as they are; the averages that the generator gets in the end are usually better.
    shards : int, optional
        Parts of a batch, each with random numbers of its own; as many as there are processes if absent. Results depend
        on the number of shards, and up to rounding not on how many processes share them.
    compile : "auto", True or False
        Whether density and samples go through torch.compile: "auto" does so in trainings of ten million evaluations and
        more. Where it cannot run, they stay eager and the log says why.
    on_record : callable, optional
        Called with each record and this training.
    on_checkpoint : callable, optional
        Called with this training every ``checkpoint_seconds`` and when interrupted.

    Attributes
    ----------
    history : History
    step : int
        Over all stages.
    skipped : int
        Steps that were left out because their gradient was not finite, or far beyond the usual.
    average : Averages
    shards, recent, watch, safeguard, cooling :
        The parts that `boltzgen.training.state` writes down beside the parameters.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        stages: list[Stage],
        *,
        batch_size: int = BATCH_SIZE,
        observable: Callable[[Tensor], Tensor] | None = None,
        basins: Mapping[str, str | Callable[[Tensor], Tensor]] | None = None,
        buffer: ReplayBuffer | None = None,
        seconds: float | None = None,
        target_ess: float | None = None,
        shards: int | None = None,
        compile: bool | str = "auto",
        record_every: int = 25,
        on_record: Callable[[dict[str, Any], Training], None] | None = None,
        on_checkpoint: Callable[[Training], object] | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.losses = {stage.loss: data_free_loss(stage.loss, observable is not None) for stage in stages}
        for stage in stages:
            if stage.replay and not self.losses[stage.loss].off_policy:
                raise ValueError(f"the loss {stage.loss!r} cannot use replayed configurations: it needs fresh samples")
        self.generator = generator
        self.observable = observable
        self.stages = stages
        self.batch_size = batch_size
        self.basins = {name: _predicate(basin, generator.molecule) for name, basin in (basins or {}).items()}
        self.buffer = ReplayBuffer() if buffer is None else buffer
        self.max_seconds, self.target_ess = seconds, target_ess
        self.record_every = record_every
        self.on_record = on_record
        self.on_checkpoint = on_checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.compile = self.evaluations >= COMPILE_FROM if compile == "auto" else bool(compile)
        self.history = History()
        self.step = 0  # over all stages
        self.seconds = 0.0
        self.skipped = 0
        self.processes = Processes()
        if self.processes.size == 1 and is_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
            log.warning("every process trains on its own: call boltzgen.training.start_processes() first")
        self.shards = Shards(generator, self.processes, shards)
        self.shards.check(stages, batch_size)
        self._hottest = _hottest(generator)
        compiles = self.compile and self._hottest is None
        self._drawing = Drawing(generator, self.losses, self.shards, self.buffer, batch_size, compiles)
        self._parameters = list(generator.flow.parameters())
        self.processes.same_start(self._parameters)
        self.objectives = {name: loss.start(self._parameters) for name, loss in self.losses.items()}
        if self.processes.size > 1 and any(isinstance(m, ControlledForwardKL) for m in self.loss_modules().values()):
            raise SharingError("the loss 'controlled-forward-kl' follows gradients of single samples: use one process")
        self.optimizer = torch.optim.Adam(self._parameters, lr=stages[0].learning_rate_start)
        learned = [p for module in self.loss_modules().values() for p in module.parameters()]
        if learned:
            self.optimizer.add_param_group({"params": learned, "rate": LEARNED_RATE})
        self.average = Averages(self._parameters)
        self.safeguard = Safeguard(self._parameters, self.optimizer, self.average.values, self.loss_modules())
        self.recent = RecentBatches()
        self.watch = BasinWatch()
        self.cooling: Cooling | None = None
        self.seed = generator.seed
        if self._hottest is not None and self.loss_modules():
            raise ValueError("a loss that learns log Z needs one temperature: train without a temperature range")

    @property
    def n_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.n_steps for stage in self.stages)

    @property
    def evaluations(self) -> int:
        """Energy evaluations of all stages together."""
        return sum(stage.n_steps * stage.n_fresh(self.batch_size) for stage in self.stages)

    def loss_modules(self) -> dict[str, nn.Module]:
        """The losses that have a state."""
        return {name: module for name, module in self.objectives.items() if isinstance(module, nn.Module)}

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

        Raises
        ------
        TrainingDivergedError
            If the training failed again and again from its last good state.
        """
        self.average.take_back()
        self.history.interrupted = False
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        recorded, loss = self.step, math.nan
        while self.step < self.n_steps:
            if self.processes.agree(stop is not None and stop()):
                self.history.interrupted = True
                break
            if self._is_done():
                break
            stage, within = self.locate(self.step)
            heat = self._heat_of(stage, within)
            with self._drawing.suited_threads(stage):
                loss = self._one_step(stage, within, heat)
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % self.record_every == 0 or self.step == self.n_steps:
                self._record(stage, heat, loss)
                recorded = self.step
            if self.on_checkpoint and self.processes.agree(time.monotonic() - saved > self.checkpoint_seconds):
                self.on_checkpoint(self)
                saved = time.monotonic()
        if recorded != self.step:
            self._record(stage, heat, loss)
        if self.on_checkpoint:
            self.on_checkpoint(self)
        set_counts(self, total_counts(self))
        self.average.put(keep=self.step < self.n_steps)
        return self.history

    def _is_done(self) -> bool:
        """Whether the wall time is over or the wanted ESS reached; said in the history."""
        reason = None
        last = self.history.records[-CONFIRMED:]
        if self.max_seconds is not None and self.seconds > self.max_seconds:
            reason = f"the wall time of {self.max_seconds:g} s is over"
        elif self.target_ess is not None and len(last) == CONFIRMED and self._reached(self.target_ess, last):
            reason = f"the last batches have an ESS of {self.target_ess:.0%} or more"
        if not self.processes.agree(reason is not None):
            return False
        if not self.history.happened("stop"):
            self._note("stop", f"stopped with {self.n_steps - self.step:,} steps left: {reason}")
        return True

    @staticmethod
    def _reached(ess: float, records: list[dict[str, Any]]) -> bool:
        return all(record["heat"] == 1.0 and record["ess_fraction"] >= ess for record in records)

    def _heat_of(self, stage: Stage, within: int) -> float:
        """Temperature of a step over the target's, as its stage has it."""
        if stage.ess_bound is None:
            self.cooling = None
        elif self.cooling is None or self.cooling.stage is not stage:
            self.cooling = Cooling(stage, self.generator.kT, self.watch)
        heat = stage.heat(within) if self.cooling is None else self.cooling.heat
        decides = self.recent.are_new()
        if decides and self.basins:
            for message in self.watch.check(self.recent, self.generator.kT * heat):
                self._note("alarm", message)
        if self.cooling is None:
            return heat
        for kind, message in self.cooling.update(self.recent if decides else None, within):
            self._note(kind, message)
        return self.cooling.heat

    def _one_step(self, stage: Stage, within: int, stage_heat: float) -> float:
        heat = self._heat(stage_heat)
        kT = self.generator.kT * heat
        options = {"heat": heat} if self._hottest is not None else {}
        rate = stage.learning_rate(within) * self.safeguard.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        replayed = self._drawing.replayed(stage, kT, options)
        positions, log_q, reduced = self._drawing.fresh(stage, kT, options)
        if heat == stage_heat:
            self._remember(positions, log_q, reduced, kT)
        valid = torch.isfinite(reduced) & torch.isfinite(log_q)
        n_fresh = int(valid.sum())
        if n_fresh < len(valid) // 4:
            self._fail(f"only {n_fresh} of {len(valid)} samples had a finite energy")
            return math.nan
        if n_fresh < len(valid):
            positions, log_q, reduced = positions[valid], log_q[valid], reduced[valid]
        if replayed is not None:
            pairs = zip((positions, log_q, reduced), replayed, strict=True)
            positions, log_q, reduced = (torch.cat(pair) for pair in pairs)
        log_p = -soft_cap(reduced)
        kind = self.losses[stage.loss]
        if kind.observable and self.observable is not None:
            log_p = log_p + self.observable(positions).abs().log()
        objective = self.objectives[stage.loss]
        loss = objective(log_p, log_q) if replayed is None else objective(log_p, log_q, n_fresh=n_fresh)
        self._descend(loss)
        return float(loss.detach())

    def _remember(self, positions: Tensor, log_q: Tensor, reduced: Tensor, kT: float) -> None:
        """Keep a batch, for monitoring and for stages that use it again."""
        log_q, reduced = log_q.detach(), reduced.detach()
        defined = torch.isfinite(log_q) & ~torch.isnan(reduced)
        positions, log_q, reduced = positions[defined], log_q[defined], reduced[defined]
        if not len(positions):
            return
        finite = torch.isfinite(reduced)
        alignment = self.generator.alignment
        offset = torch.zeros_like(reduced) if alignment is None else alignment(positions).detach()
        energy = torch.where(finite, (reduced - offset) * kT, reduced)
        inside = {name: predicate(positions) for name, predicate in self.basins.items()}
        self.recent.add(Batch(energy, torch.where(finite, offset, 0.0), log_q, inside))
        if any(stage.replay for stage in self.stages):
            self.buffer.add(positions[finite], energy[finite], offset[finite], log_q[finite])

    def _descend(self, loss: Tensor) -> None:
        """One step of the optimiser, unless the gradient is none to follow."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.sum_gradients(self._parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM))
        if not self.safeguard.is_good(float(loss.detach()), norm):
            self._fail(f"the gradient norm was {norm:g}")
            return
        self.optimizer.step()
        self.average.update(self.step)
        self.safeguard.took(norm)

    def _fail(self, reason: str) -> None:
        self.skipped += 1
        log.warning("step %d skipped: %s (%d so far)", self.step, reason, self.skipped)
        done = self.safeguard.failed(reason)
        if done is not None:
            self.recent.clear()
            self._note("divergence", done)

    def _note(self, kind: str, message: str) -> None:
        event = Event(self.step, kind, message)
        self.history.events.append(event)
        log.warning("%s", event)

    def _heat(self, heat: float) -> float:
        """Temperature of a step over the target's: the stage's.

        A generator with a temperature range takes every second step at a temperature drawn between the stage's and the
        highest, uniform in its logarithm: one temperature a step, for the losses compare samples of one log Z.
        """
        if self._hottest is None or self.step % 2 == 0 or heat >= self._hottest:
            return heat
        stream = torch.Generator().manual_seed(hash((self.seed, self.step)) % 2**63)
        share = float(torch.rand((), generator=stream))
        return float(heat * (self._hottest / heat) ** share)

    def _record(self, stage: Stage, heat: float, loss: float) -> None:
        molecule, kT = self.generator.molecule, self.generator.kT * heat
        target = molecule.temperature.value_in_unit(unit.kelvin) if molecule is not None else 1.0
        seen = len(self.recent) > 0
        populations = self.recent.populations(kT) if seen else dict.fromkeys(self.basins, (math.nan, math.nan))
        record = {
            "stage": stage.name,
            "step": self.step,
            "temperature": heat * target,
            "heat": heat,
            "loss": loss,
            "ess_fraction": self.recent.ess_fraction(kT) if seen else 0.0,
            "energy_evaluations": self.processes.sum(self.generator.potential.counts.energy),
            "seconds": self.seconds,
            "populations": {name: population for name, (population, _) in populations.items()},
        }
        self.history.records.append(record)
        if self.on_record and self.processes.is_first:
            self.on_record(record, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers and strings only."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an equal training.

        Raises
        ------
        CheckpointError
            If the stages, the batch size, the shards, the buffer, the basins or the compilation differ, named.
        """
        restore(self, state)


def soft_cap(reduced_energy: Tensor) -> Tensor:
    """Reduced energies (B,) with those far above the batch median replaced by a logarithmic continuation.

    The cap lies 100 kT above the median, where no thermally reached state lies; it enters losses only, never weights.
    """
    cap = reduced_energy.detach().median() + CAP_ABOVE_MEDIAN
    return torch.where(reduced_energy > cap, cap + torch.log1p((reduced_energy - cap).clamp(min=0)), reduced_energy)


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
