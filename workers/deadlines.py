"""Which lines in the engine have had their time: each its own, or the longest that any may have.

Knows nothing of what becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .runs import Flying


class Deadlines:
    """The clock of a line starts once, until it is forgotten. `longest_s` None: only lines that say so have an end."""

    def __init__(self, longest_s: float | None, *, clock: Callable[[], float]) -> None:
        self._longest_s = math.inf if longest_s is None else longest_s
        self._clock = clock
        self._due: dict[Flying, float] = {}
        self._next = math.inf  # None is due before.

    def start(self, flying: Flying) -> None:
        own = flying.prepared.timeout_s
        limit = min(self._longest_s, math.inf if own is None else own)
        if limit < math.inf and flying not in self._due:
            self._due[flying] = self._clock() + limit
            self._next = min(self._next, self._due[flying])

    def forget(self, flying: Flying) -> None:
        self._due.pop(flying, None)

    def overdue(self) -> list[Flying]:
        """The lines whose time is up, until they are forgotten."""
        now = self._clock()
        if now < self._next:
            return []
        self._next = min(self._due.values(), default=math.inf)
        return [flying for flying, due in self._due.items() if due <= now]
