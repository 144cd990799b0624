"""How Python runs a worker's threads: how soon they give way to each other, and how often garbage is looked for.

Together they cost a batch's lines a tenth of their time where nobody needs them. Knows nothing of what the threads do.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

# Somebody waits for a first token, which passes through several threads; each may find others at work.
SOON_S = 0.001
# Python's own. Every change of hands costs the caches of both threads, and a system call or two.
LATER_S = 0.005
# After an online request the next one is likely, and is to find its worker attentive.
ATTENTIVE_S = 60.0
# Python begins to look after 700 objects, which are some twenty lines that all still live.
NEW_OBJECTS, ROUNDS = 20_000, 20


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


def settle() -> None:
    """Have the garbage collector leave alone what is there now, and look seldom at the rest.

    For a process that has loaded what it needs: what it makes from now on lives as long as a line, and refers to itself
    only by mistake.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, ROUNDS, ROUNDS)
