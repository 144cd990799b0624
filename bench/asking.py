"""Requests that somebody waits for, at random times, and how long each waited: shared by both levels of bench/mixed.py.

Knows nothing of whom they are asked of.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Protocol

from .streams import quantile
from .workloads import LOWEST_TOKEN, Workload

SHARES = {"p50": 50, "p95": 95, "max": 100}


@dataclass(slots=True, kw_only=True)
class Asking:
    """Draws requests, `rate` a second on average. Waits for first tokens, and gaps between tokens, are in seconds.

    What each wait was made of is in milliseconds by the name of its `phases`, if that is known.
    """

    rate: float
    num_prompt: int
    num_output: int
    vocab_size: int
    random: random.Random
    waits: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def pause(self) -> float:
        """Seconds until the next request."""
        return self.random.expovariate(self.rate)

    def prompt(self) -> list[int]:
        """A prompt of its own for every request."""
        return [self.random.randrange(LOWEST_TOKEN, self.vocab_size) for _ in range(self.num_prompt)]

    def figures(self) -> dict[str, float]:
        """Milliseconds to the first token, and between tokens."""
        found = {"ttft": self.waits, "gap": self.gaps}
        return {
            f"{name}_{label}_ms": 1e3 * quantile(times, share)
            for name, times in found.items()
            for label, share in SHARES.items()
            if times
        } | {"requests": len(self.waits)}

    def phase_figures(self) -> list[dict[str, Any]]:
        """Milliseconds of each phase of the way, in its order."""
        names = list(dict.fromkeys(name for phases in self.phases for name in phases))
        times = {name: [phases.get(name, 0.0) for phases in self.phases] for name in names}
        return [
            {"phase": name} | {f"{label}_ms": quantile(times[name], share) for label, share in SHARES.items()}
            for name in names
        ]


class Level(Protocol):
    """Something that answers batches and requests. Tokens of both are below `vocab_size`."""

    @property
    def vocab_size(self) -> int: ...

    def run(self, batch: Workload | None, asking: Asking | None, seconds: float = 0.0) -> float:
        """Seconds until the batch was done, or until so much time is over; requests are then let end.

        Raises SystemExit where anything fails.
        """
