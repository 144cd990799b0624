"""Tells an engine that hangs from one that takes its time. Knows neither processes nor lines.

Only progress counts, such as tokens: an engine that steps and steps and gets nowhere hangs too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_LOOK_S = 1.0


class Watchdog:
    """Call `sees_hang` again and again. With `patience_s` 0 it sleeps."""

    def __init__(self, patience_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience_s = patience_s
        self._clock = clock
        self._looked_at = clock()
        self._progress = 0
        self._idle_s = 0.0

    def sees_hang(self, *, busy: bool, progress: int) -> bool:
        """Whether an engine has been busy for too long with `progress`, a count of what it has done, unchanged."""
        now = self._clock()
        # Who did not look for longer was stopped itself, and its engine perhaps with it.
        self._idle_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        if not busy or progress != self._progress:
            self._progress, self._idle_s = progress, 0.0
        return 0 < self.patience_s <= self._idle_s
