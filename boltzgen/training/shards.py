"""The parts of a batch, each with random numbers of its own, and which of them a process draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boltzgen.training.processes import Processes, SharingError
from boltzgen.training.stages import Stage

if TYPE_CHECKING:
    from boltzgen.generator import BoltzmannGenerator

__all__ = ["Shards"]


class Shards:
    """Parts of a batch that do not depend on how many processes share them.

    Parameters
    ----------
    number : int, optional
        As many as there are processes if absent.

    Raises
    ------
    SharingError
        If the shards cannot be shared evenly by the processes.
    """

    def __init__(self, generator: BoltzmannGenerator, processes: Processes, number: int | None = None) -> None:
        self.processes, self.number = processes, number or processes.size
        if self.number % processes.size:
            raise SharingError(f"{self.number} shards cannot be shared evenly by {processes.size} processes")
        own, seeds, device = self.number // processes.size, [0], generator.device
        if self.number > 1:
            seeds = torch.randint(2**62, (self.number,), generator=generator.rng, device=device).tolist()
        self._streams = {
            shard: generator.rng if shard == 0 else torch.Generator(device).manual_seed(seeds[shard])
            for shard in range(processes.rank * own, (processes.rank + 1) * own)
        }

    def check(self, stages: Sequence[Stage], batch_size: int) -> None:
        """Processes exchange tensors of one shape: refuse a batch that cannot be shared evenly."""
        for stage in stages:
            n = stage.n_fresh(batch_size)
            if self.processes.size > 1 and (n % self.number or (batch_size - n) % self.number):
                raise SharingError(
                    f"stage {stage.name!r}: {n} fresh and {batch_size - n} replayed configurations cannot be "
                    f"shared evenly by {self.number} shards: use another number of processes"
                )

    def shares_of(self, n: int) -> list[tuple[int, torch.Generator]]:
        """How many of n configurations each shard of this process draws, and from which random numbers."""
        return [(n // self.number + (shard < n % self.number), stream) for shard, stream in self._streams.items()]

    def states(self) -> Tensor:
        """States (shards, n) of the random numbers of all shards."""
        return self.processes.gather(torch.stack([stream.get_state() for stream in self._streams.values()]))

    def load(self, states: Tensor) -> None:
        """Go on from `states`."""
        for shard, stream in self._streams.items():
            stream.set_state(states[shard].cpu())
