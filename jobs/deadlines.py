"""Which deadlines can still be met, and which work must begin now for that. Pure: arguments in, answers out.

Work is tokens, done by all workers together at `rate` tokens a second. Where not all deadlines can be met, as many as
possible are (Moore and Hodgson 1968): the work that is given up first is the largest of what comes too late. What can
be met is left to run at its fair share for as long as it can wait, so that a near deadline costs others no more than it
must. Knows nothing of tenants, Redis or the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MARGIN = 1.1  # Estimates of tokens err.
LEAD_S = 15.0  # What a worker has in hand comes first.


class Due(NamedTuple):
    """So many tokens that are wanted by a time, in Unix seconds.

    A tuple that sorts by its time, because thousands are sorted at every look at the line.
    """

    at: float
    id: str
    tokens: float


def feasible(work: Iterable[Due], *, rate: float, start: float) -> list[Due]:
    """The most of `work` that can all be done in time from `start` on, in the order of its deadlines."""
    if rate <= 0:
        return []
    ordered = sorted(work)
    clock, kept, given_up = start, list[tuple[float, str]](), set[str]()
    for at, name, tokens in ordered:
        clock += tokens / rate
        heapq.heappush(kept, (-tokens, name))
        if clock > at:
            less, largest = heapq.heappop(kept)
            clock += less / rate
            given_up.add(largest)
    return [due for due in ordered if due.id not in given_up]


def urgent(work: Sequence[Due], *, rate: float, now: float) -> list[Due]:
    """Of `feasible` work, what must begin now, nearest deadline first: later, and one of the deadlines is missed."""
    latest, pressing = float("inf"), 0
    for place in range(len(work), 0, -1):
        due = work[place - 1]
        latest = min(latest, due.at) - MARGIN * due.tokens / rate
        if latest <= now + LEAD_S:
            pressing = place
            break
    return list(work[:pressing])
