"""How soon a worker's threads give way to each other: soon costs a batch's lines some of their time.

Knows nothing of what the threads do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

# Somebody waits for a first token, which passes through several threads; each may find others at work.
SOON_S = 0.001
# Python's own. Every change of hands costs the caches of both threads, and a system call or two.
LATER_S = 0.005
# After an online request the next one is likely, and is to find its worker attentive.
ATTENTIVE_S = 60.0


class Tempo:
    """Call `note` often with whether online requests are in hand."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attentive_until = 0.0
        self._interval: float | None = None

    def note(self, *, online: bool) -> None:
        now = self._clock()
        if online:
            self._attentive_until = now + ATTENTIVE_S
        interval = SOON_S if now < self._attentive_until else LATER_S
        if interval != self._interval:
            sys.setswitchinterval(interval)
            self._interval = interval
