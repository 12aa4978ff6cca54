"""The rounds of a sampler: how many are done, the frames that they gave, and what they cost; in a file if asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from boltzgen.checkpoint_file import Checkpointed
from boltzgen.errors import CheckpointError, PotentialError
from boltzgen.sampling.particles import Particles
from boltzgen.sampling.walkers import Walkers

__all__ = ["SamplingRounds", "Spent", "Stateful"]


class Stateful(Protocol):
    """What a sampler changes from round to round."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, of tensors, numbers and strings."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""


class Spent:
    """Evaluations with forces and seconds since this was made.

    Parameters
    ----------
    particles : Particles
        Whose evaluations count.
    """

    def __init__(self, particles: Particles) -> None:
        self._particles = particles
        self._before, self._began = particles.evaluations, time.perf_counter()

    @property
    def evaluations(self) -> int:
        return self._particles.evaluations - self._before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def add(self, evaluations: int, seconds: float) -> None:
        """What was spent before an interruption."""
        self._before -= evaluations
        self._began -= seconds


class SamplingRounds:
    """A sampler between two of its rounds.

    Parameters
    ----------
    n_rounds : int
    walkers : Walkers
    also : Stateful or None
        What changes from round to round beside them.
    spent : Spent
        Since the sampler was called; it gets what was spent before an interruption.
    checkpoint : path-like or None
        Read if it exists; written every minute and by `write`.
    settings : {name: number or string}
        What a checkpoint must share.

    Attributes
    ----------
    done : int
        Rounds.
    spent : Spent
    frames : {name: list of arrays}
        What `keep` was given, by round.

    Raises
    ------
    CheckpointError
        If the file is damaged, of other settings, or of walkers that started elsewhere or with another energy.
    """

    def __init__(
        self,
        n_rounds: int,
        walkers: Walkers,
        also: Stateful | None,
        spent: Spent,
        checkpoint: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.n_rounds, self.done = n_rounds, 0
        self.frames: dict[str, list[np.ndarray]] = {}
        self._parts: dict[str, Stateful] = {"walkers": walkers} | ({} if also is None else {"also": also})
        self.spent = spent
        self._energies = walkers.energies.clone()
        self._checkpoint = Checkpointed(checkpoint, {"n_rounds": n_rounds, **settings}, self._state, self._restore)

    @property
    def left(self) -> int:
        """Rounds that are not done."""
        return self.n_rounds - self.done

    def rounds(self, steps: Iterable[int]) -> Iterator[int]:
        """The number of each round, for as many as there are steps."""
        for _ in self._checkpoint.written(steps):
            yield self.done
            self.done += 1

    def keep(self, **frames: np.ndarray) -> None:
        """Add the frames of a round."""
        for name, values in frames.items():
            self.frames.setdefault(name, []).append(values)

    def finish(self, steps_each: int) -> None:
        """Write the state.

        Raises
        ------
        PotentialError
            If there is no frame.
        """
        self._checkpoint.write()
        if self.frames:
            return
        n_steps, path = self.done * steps_each, self._checkpoint.path
        if not self.left:
            raise PotentialError(f"no frame was saved in {n_steps} steps: too few for save_interval and burn_in")
        kept = "" if path is None else f"; the same call goes on from {path}"
        raise PotentialError(f"the sampling was ended after {n_steps} steps, before its first frame{kept}")

    def write(self) -> None:
        """Write the state, where nothing else is kept."""
        self._checkpoint.write()

    def _state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "evaluations": self.spent.evaluations,
            "seconds": self.spent.seconds,
            "energies at the start": self._energies,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "frames": {name: torch.from_numpy(np.stack(values)) for name, values in self.frames.items()},
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        known, found = self._energies.cpu(), state["energies at the start"]
        if known.shape != found.shape or not torch.allclose(known, found, rtol=1e-3, atol=1.0, equal_nan=True):
            raise CheckpointError("its walkers started from other configurations, or their energy was another")
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self.frames = {name: list(values.numpy()) for name, values in state["frames"].items()}
        self.done = int(state["done"])
        self.spent.add(int(state["evaluations"]), float(state["seconds"]))
