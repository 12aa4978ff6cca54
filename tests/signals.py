"""Ctrl-C at a known place: the n-th time that work asks whether it is to stop."""

import os
import signal

from boltzgen.interrupts import Interrupts


def interrupted_when_asked(n: int, number: int = signal.SIGINT) -> type[Interrupts]:
    """`Interrupts` that send a real signal to this process when they, together, are asked for the n-th time."""

    class InterruptedWhenAsked(Interrupts):
        asked = 0

        def requested(self) -> bool:
            InterruptedWhenAsked.asked += 1
            if InterruptedWhenAsked.asked == n:
                os.kill(os.getpid(), number)
            return super().requested()

    return InterruptedWhenAsked
