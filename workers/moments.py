"""When an online request passed which point of its way through a worker, and so how long each part of the way took.

Times are of the clock that all processes of one host share. Knows nothing of how they are told.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..engine.request import Output, Passage

Phases = dict[str, float]  # Milliseconds by the phase's name, in the order of the way.


@dataclass(slots=True, kw_only=True)
class Moments:
    """A request is `taken` from the line, `ready` once it has a prompt, `sent` to the engine's process, and `heard` of
    when the first of its tokens has come back; `passage` is what the engine's process says of it.
    """

    taken_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    sent_at: float | None = None
    heard_at: float | None = None
    passage: Passage | None = None

    def ready(self) -> None:
        self.ready_at = time.monotonic()

    def sent(self) -> None:
        """To the engine; the last time counts, after the death of one."""
        self.sent_at = time.monotonic()

    def hear(self, outputs: Iterable[Output]) -> None:
        """Some of its outputs have come back; only the first time counts."""
        if self.heard_at is None:
            self.heard_at = time.monotonic()
            self.passage = next((output.passage for output in outputs if output.passage is not None), None)

    def phases(self) -> Phases:
        """How long each part took that it went through, the last one until now."""
        passage = self.passage
        points = [
            ("prompt", self.ready_at),
            ("sending", self.sent_at),
            ("inbox", None if passage is None else passage.came_at),
            ("engine", None if passage is None else passage.left_at),
            ("return", self.heard_at),
            ("text", time.monotonic()),
        ]
        phases, before = {}, self.taken_at
        for name, at in points:
            if at is not None:
                phases[name], before = (at - before) * 1000, at
        return phases
