"""Ctrl-C and SIGTERM: the first asks a training to finish its step, the second stops at once."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupts", "RunInterrupted"]

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped by a signal, and can go on from its checkpoint.

    Attributes
    ----------
    signal_number : int
    checkpoint : Path
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted; the state is in {checkpoint}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class Interrupts:
    """While entered, the first signal is remembered and the second raises ``KeyboardInterrupt``.

    Signals can be handled in the main thread only; elsewhere this does nothing.

    Attributes
    ----------
    received : int or None
        Number of the first signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        log.warning("finishing this step; Ctrl-C again stops at once")
