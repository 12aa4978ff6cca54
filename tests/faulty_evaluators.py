"""Evaluators with a known energy that fail on marked samples; imported by worker processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Marks: the first coordinate of a sample.
KILL, EXIT_ONCE, RAISE, HANG, SLOW = 1001.0, 1002.0, 1003.0, 1004.0, 1005.0


@dataclass(frozen=True)
class Faulty:
    """Makes evaluators of a harmonic energy, sum of squares, with forces -2x.

    Attributes
    ----------
    folder : str
        Where each worker leaves a file named by its process id when it has begun to evaluate, and where EXIT_ONCE
        leaves its mark.
    seconds : float
        Time of each evaluation.
    """

    folder: str
    seconds: float = 0.0

    def __call__(self):
        return self.evaluate

    def evaluate(self, frame: np.ndarray, forces: bool):
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(self.seconds)
        mark = frame[0, 0]
        if mark == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if mark == EXIT_ONCE and not (Path(self.folder) / "exited").exists():
            (Path(self.folder) / "exited").touch()
            os._exit(3)
        if mark == RAISE:
            raise ValueError("no such thing")
        if mark == HANG:
            time.sleep(1000)
        return float((frame**2).sum()), -2 * frame if forces else None


def cannot_be_made():
    """A factory that fails."""
    raise MemoryError("no memory on the device")


def dies_when_made():
    """A factory that takes its process along."""
    os._exit(9)
