"""Whose shard is fed next. Pure: what waits and who had how much go in, an order comes out.

1. A higher priority goes first, always.
2. Within one, work that would miss its deadline if it waited any longer (`deadlines.py`), nearest deadline first.
3. Then fair shares in tokens. Every tenant has a virtual time, the tokens it was given by its weight; the earliest is
   served next, so that tenants advance together (start-time fair queueing, Goyal, Vin and Cheng 1996). One who was idle
   starts at the time of those who waited meanwhile: idleness earns nothing. Batches of one tenant share its part alike.

A tenant's turns in one priority are a *flow*, with a time of its own: what it gets in one class costs it nothing in
another. Knows nothing of Redis, RQ or the time.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .deadlines import Due, feasible, urgent

Flow = tuple[int, str]  # Priority and tenant.


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A batch with `num_shards` waiting, of about `shard_tokens` each. `had` is what it was given of its tenant's part:
    tokens, from where the tenant's other batches stood when it came.
    """

    id: str
    tenant: str
    priority: int
    created_at: int
    expires_at: int
    num_shards: int
    shard_tokens: float
    had: float | None = None

    @property
    def flow(self) -> Flow:
        return self.priority, self.tenant

    @property
    def tokens(self) -> float:
        return self.num_shards * self.shard_tokens

    @property
    def due(self) -> Due:
        return Due(id=self.id, tokens=self.tokens, at=self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledgers:
    """What flows were given: their virtual times, and for each priority the time at which one that was idle starts."""

    times: Mapping[Flow, float] = field(default_factory=dict)
    floors: Mapping[int, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, tenant: str) -> float:
        return self.weights.get(tenant, 1.0)

    def start(self, flow: Flow) -> float:
        floor = self.floors.get(flow[0], 0.0)
        return max(self.times.get(flow, floor), floor)


@dataclass(slots=True, eq=False)
class _Standing:
    """A candidate as its turns go by."""

    candidate: Candidate
    left: int
    had: float

    def key(self) -> tuple[float, int, str]:
        return self.had, self.candidate.created_at, self.candidate.id


class Turns:
    """The order of turns among `candidates`, one shard a turn.

    `rate` is in tokens a second, 0 if it is unknown; `now` and deadlines are in Unix seconds.
    """

    def __init__(self, candidates: Iterable[Candidate], ledgers: Ledgers, *, rate: float, now: float) -> None:
        self._ledgers, self._rate, self._now = ledgers, rate, now
        self._classes: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            self._classes[candidate.priority].append(candidate)
        self._order = sorted(self._classes)
        self._current: _Class | None = None

    def take(self, number: int) -> list[str]:
        """The batches whose turns are next, at most `number`; a batch may come more than once."""
        taken: list[str] = []
        while len(taken) < number and (self._current or self._order):
            if self._current is None:
                # Sorting a class costs something, and lower ones may never have their turn.
                self._current = _Class(self._classes[self._order.pop()], self._ledgers, self._rate, self._now)
            batch_id = self._current.next()
            if batch_id is None:
                self._current = None
            else:
                taken.append(batch_id)
        return taken


class _Class:
    """The turns within one priority."""

    def __init__(self, candidates: list[Candidate], ledgers: Ledgers, rate: float, now: float) -> None:
        standings = shares_within(candidates)
        self._weight = ledgers.weight
        self._pressing = deque(standings[due.id] for due in pressing(candidates, rate, now))
        self._times = {flow: ledgers.start(flow) for flow in {candidate.flow for candidate in candidates}}
        self._batches: dict[Flow, list[tuple[tuple[float, int, str], _Standing]]] = defaultdict(list)
        for standing in standings.values():
            self._batches[standing.candidate.flow].append((standing.key(), standing))
        for batches in self._batches.values():
            heapq.heapify(batches)
        self._flows = [(time, flow) for flow, time in self._times.items()]
        heapq.heapify(self._flows)

    def next(self) -> str | None:
        """The batch of the next turn; None when nothing waits."""
        while self._pressing and not self._pressing[0].left:
            self._pressing.popleft()
        if self._pressing:
            return self._give(self._pressing[0])
        while self._flows:
            time, flow = heapq.heappop(self._flows)
            if time < self._times[flow]:  # It was given something as pressing meanwhile.
                heapq.heappush(self._flows, (self._times[flow], flow))
                continue
            standing = self._first(flow)
            if standing is None:
                continue
            batch_id = self._give(standing)
            heapq.heappush(self._batches[flow], (standing.key(), standing))
            heapq.heappush(self._flows, (self._times[flow], flow))
            return batch_id
        return None

    def _first(self, flow: Flow) -> _Standing | None:
        """Take out the batch of a flow that had least."""
        batches = self._batches[flow]
        while batches:
            key, standing = heapq.heappop(batches)
            if not standing.left:
                continue
            if key == standing.key():
                return standing
            heapq.heappush(batches, (standing.key(), standing))
        return None

    def _give(self, standing: _Standing) -> str:
        candidate = standing.candidate
        standing.left -= 1
        standing.had += candidate.shard_tokens
        self._times[candidate.flow] += candidate.shard_tokens / self._weight(candidate.tenant)
        return candidate.id


def shares_within(candidates: Iterable[Candidate]) -> dict[str, _Standing]:
    """How batches stand within their tenants: one that is new starts level with the one that had least."""
    candidates = list(candidates)
    known = [(candidate.flow, candidate.had) for candidate in candidates if candidate.had is not None]
    least: dict[Flow, float] = {}
    for flow, had in known:
        least[flow] = min(had, least.get(flow, had))
    return {
        one.id: _Standing(one, one.num_shards, least.get(one.flow, 0.0) if one.had is None else one.had)
        for one in candidates
    }


def raised_floors(candidates: Iterable[Candidate], ledgers: Ledgers) -> dict[int, float]:
    """For each priority that has work, the virtual time of the flow that is furthest behind of those that wait."""
    floors: dict[int, float] = {}
    for flow in {candidate.flow for candidate in candidates}:
        floors[flow[0]] = min(ledgers.start(flow), floors.get(flow[0], float("inf")))
    return floors


def pressing(candidates: Iterable[Candidate], rate: float, now: float) -> list[Due]:
    """What must go first for its deadline's sake, among candidates of one priority."""
    met = feasible((candidate.due for candidate in candidates), rate=rate, start=now)
    return urgent(met, rate=rate, now=now)
