"""How long each part of an online request's way took until it began to be answered, as its answer's `Server-Timing`.

What happened in a worker is told by the worker, each part by one clock; what is left of the time in which the API
waited is Redis' part, and that of the way to and from it.

https://www.w3.org/TR/server-timing/
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.types import Scope

RECEIVED = "received_at"


def note_received(scope: Scope) -> float:
    """A request has come now, by the monotonic clock."""
    received_at = time.monotonic()
    scope.setdefault("state", {})[RECEIVED] = received_at
    return received_at


def server_timing(received_at: float, asked_at: float, heard_at: float, phases: Mapping[str, float]) -> dict[str, str]:
    """The header. Times are of the monotonic clock; `phases` are the worker's, in milliseconds."""
    waited = (heard_at - asked_at) * 1000
    named = {"api": (asked_at - received_at) * 1000, "redis": max(0.0, waited - sum(phases.values())), **phases}
    return {"Server-Timing": ", ".join(f"{name};dur={value:.3f}" for name, value in named.items())}
