"""Where the configurations of a training step come from: the flow as it is, and the buffer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boltzgen.flows.compilation import CompiledFlow
from boltzgen.losses import path_log_prob
from boltzgen.losses.registry import Loss
from boltzgen.training.replay import ReplayBuffer
from boltzgen.training.shards import Shards
from boltzgen.training.stages import Stage

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["Drawing", "Drawn"]

Drawn = tuple[Tensor, Tensor, Tensor]  # positions (B, ...), log q and reduced energies (B,)


class Drawing:
    """Draws batches over all shards and processes.

    ``options`` of the methods are those of the flow: its temperature, if it knows one.

    Parameters
    ----------
    compile : bool
        Whether density and samples go through torch.compile, within `suited_threads`. They must not then have options,
        for a temperature changes.
    """

    def __init__(
        self,
        generator: BoltzmannGenerator,
        losses: Mapping[str, Loss],
        shards: Shards,
        buffer: ReplayBuffer,
        batch_size: int,
        compile: bool,
    ) -> None:
        self._generator, self._losses, self._shards, self._buffer = generator, losses, shards, buffer
        self._batch_size, self._compile = batch_size, compile
        self._compiled: CompiledFlow | None = None

    def fresh(self, stage: Stage, kT: float, options: dict[str, float]) -> Drawn:
        """New samples, without gradient; their log q and reduced energies, differentiable as the loss needs it.

        Of all shards and processes: those of other processes without gradient.
        """
        generator, loss = self._generator, self._losses[stage.loss]
        shares = self._shards.shares_of(stage.n_fresh(self._batch_size))
        if loss.detached:
            with torch.no_grad():
                positions = torch.cat([self._sample(size, stream, options) for size, stream in shares])
                reduced = generator.reduced_energy(positions, kT)
            log_q = self._log_prob(positions, options)
        else:
            parts = [generator.flow.sample_and_log_prob(size, stream, **options) for size, stream in shares]
            positions, log_q = (torch.cat(column) for column in zip(*parts, strict=True))
            reduced = generator.reduced_energy(positions, kT)
            if loss.samples == "path":
                log_q = path_log_prob(log_q, self._log_prob(positions.detach(), options))
        gather = self._shards.processes.gather
        return gather(positions.detach()), gather(log_q), gather(reduced)

    def replayed(self, stage: Stage, kT: float, options: dict[str, float]) -> Drawn | None:
        """Configurations of the buffer, with log q under the present parameters; None if there are none to use."""
        n = self._batch_size - stage.n_fresh(self._batch_size)
        if not n or not len(self._buffer):
            return None
        parts = [self._buffer.draw(size, kT, stream) for size, stream in self._shards.shares_of(n)]
        positions, reduced = (torch.cat(column) for column in zip(*parts, strict=True))
        log_q = self._log_prob(positions, options)
        gather = self._shards.processes.gather
        positions, log_q, reduced = gather(positions), gather(log_q), gather(reduced)
        defined = torch.isfinite(log_q)  # the flow may have moved away
        return positions[defined], log_q[defined], reduced[defined]

    def suited_threads(self, stage: Stage) -> contextlib.AbstractContextManager[None]:
        """As many threads as are best for the steps of a stage, for as long as this lasts.

        What the stage needs compiled is compiled here: from its first step on it runs on the same threads.
        """
        loss = self._losses[stage.loss]
        if not self._compile or not (loss.detached or loss.samples == "path" or stage.replay):
            return contextlib.nullcontext()
        if self._compiled is None:
            n = sum(size for size, _ in self._shards.shares_of(stage.n_fresh(self._batch_size)))
            self._compiled = CompiledFlow(self._generator.flow, n)
        return self._compiled.suited_threads()

    def _sample(self, n_samples: int, stream: torch.Generator, options: dict[str, float]) -> Tensor:
        """Positions without gradient."""
        if options or self._compiled is None:
            return self._generator.flow.sample_and_log_prob(n_samples, stream, **options)[0]
        return self._compiled.sample(n_samples, stream)

    def _log_prob(self, positions: Tensor, options: dict[str, float]) -> Tensor:
        """Log q at fixed positions; without gradient where it is not finite."""
        density = self._generator.flow.log_prob
        if options or self._compiled is None:
            log_q = density(positions, **options)
        else:
            log_q = self._compiled.log_prob(positions)
        finite = torch.isfinite(log_q)
        if bool(finite.all()):
            return log_q
        # The gradient of an infinity is NaN even where the loss leaves it out.
        return log_q.detach().index_put((finite,), density(positions[finite], **options))
