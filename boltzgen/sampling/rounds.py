"""The rounds of a sampler: how many are done, the frames that they gave, and what they cost; in a file if asked for."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from boltzgen.checkpoint_file import Checkpointed
from boltzgen.energy.fingerprint import fingerprint
from boltzgen.errors import CheckpointError, PotentialError
from boltzgen.sampling.particles import Particles
from boltzgen.sampling.walkers import Walkers

__all__ = ["NoFrameError", "SamplingRounds", "Spent", "Stateful", "digest"]


class NoFrameError(PotentialError):
    """A sampler ended before the first frame that it was to keep."""


class Stateful(Protocol):
    """What a sampler changes from round to round."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, of tensors, numbers and strings."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave."""


def digest(values: np.ndarray | str) -> str:
    """A short hash of text, or of the very numbers of an array."""
    content = values.encode() if isinstance(values, str) else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


class Spent:
    """Evaluations with forces and seconds since this was made.

    Parameters
    ----------
    particles : Particles
        Whose evaluations count.
    """

    def __init__(self, particles: Particles) -> None:
        self._particles = particles
        self.restart()

    @property
    def evaluations(self) -> int:
        return self._particles.evaluations - self._before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def restart(self) -> None:
        """Nothing is spent yet."""
        self._before, self._began = self._particles.evaluations, time.perf_counter()

    def add(self, evaluations: int, seconds: float) -> None:
        """What was spent before an interruption."""
        self._before -= evaluations
        self._began -= seconds


class SamplingRounds:
    """A sampler between two of its rounds.

    Parameters
    ----------
    n_rounds : int
    spent : Spent
        Since the sampler was called; it gets what was spent before an interruption.
    particles : Particles
    checkpoint : path-like or None
        Read if it exists; written every minute and by `finish`.
    settings : {name: number or string}
        What a checkpoint must share, beside the molecule, its temperature, and the start.
    start : (3, N, B) tensor
        nm; coordinates that the walkers are made from.
    energy : callable
        Of such coordinates: energies (B,) in kJ/mol. A checkpoint must share those of the start, for there are energies
        that are not those of the molecule's System.

    Attributes
    ----------
    done : int
        Rounds.
    frames : {name: list of arrays}
        What `keep` was given, by round.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of another run.
    OutputError
        If it cannot be written.
    """

    def __init__(
        self,
        n_rounds: int,
        spent: Spent,
        particles: Particles,
        checkpoint: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        start: Tensor,
        energy: Callable[[Tensor], Tensor],
    ) -> None:
        self.n_rounds, self.done = n_rounds, 0
        self.frames: dict[str, list[np.ndarray]] = {}
        self._spent, self._parts = spent, dict[str, Stateful]()
        identity = {} if checkpoint is None else {**settings, **_identity(particles, start)}
        self._checkpoint = Checkpointed(checkpoint, identity, self._state)
        self._energies = torch.zeros(0) if checkpoint is None else energy(start).cpu()
        self._found = 0

    @property
    def go_on(self) -> bool:
        """Whether `drive` will put the walkers where they were: they may be made anywhere."""
        return self._checkpoint.exists

    def drive(self, walkers: Walkers, also: Stateful | None = None) -> None:
        """Say what moves, and what else changes from round to round; it is put where it was, if there is a checkpoint.

        Raises
        ------
        CheckpointError
            If the energy was another.
        """
        self._parts = {"walkers": walkers} | ({} if also is None else {"also": also})
        self._checkpoint.restore(self._restore)

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

    def finish(self) -> None:
        """Write the state, if it has changed."""
        if self.done > self._found or not self.done:
            self._checkpoint.write()

    def require_frames(self, steps_each: int) -> None:
        """Refuse to have none.

        Raises
        ------
        NoFrameError
            Saying whether more steps would help.
        """
        if self.frames:
            return
        n_steps, path = self.done * steps_each, self._checkpoint.path
        if not self.left:
            raise NoFrameError(f"no frame was saved in {n_steps} steps: too few for save_interval and burn_in")
        kept = "" if path is None else f"; the same call goes on from {path}"
        raise NoFrameError(f"the sampling was ended after {n_steps} steps, before its first frame{kept}")

    def _state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "evaluations": self._spent.evaluations,
            "seconds": self._spent.seconds,
            "energies at the start": self._energies,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "frames": {name: torch.from_numpy(np.stack(values)) for name, values in self.frames.items()},
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        known, found = self._energies, state["energies at the start"]
        if known.shape != found.shape or not torch.allclose(known, found, rtol=1e-4, atol=0.01, equal_nan=True):
            raise CheckpointError("the energies of its start are others")
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self.frames = {name: list(values.numpy()) for name, values in state["frames"].items()}
        self.done = self._found = int(state["done"])
        if not self.left:
            self._spent.restart()  # to read what was done costs nothing
        self._spent.add(int(state["evaluations"]), float(state["seconds"]))


def _identity(particles: Particles, start: Tensor) -> dict[str, str]:
    """Of the molecule and where its walkers start."""
    molecule = particles.molecule
    try:
        system = fingerprint(molecule.system)
    except PotentialError:
        system = ""
    return {
        "system": system,
        "kT": str(molecule.kT),
        "target": particles.target,
        "start": digest(start.cpu().numpy()),
        "device": start.device.type,
    }
