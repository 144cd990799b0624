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
    # Made once, because most stay the same from look to look, and every look asks thousands of them.
    flow: Flow = field(init=False, repr=False, compare=False)
    due: Due = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flow", (self.priority, self.tenant))
        object.__setattr__(self, "due", Due(self.expires_at, self.id, self.tokens))

    @property
    def tokens(self) -> float:
        return self.num_shards * self.shard_tokens


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
    """A candidate as its turns go by; it began where `start` says."""

    candidate: Candidate
    left: int
    had: float
    start: float

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
        self._starts: dict[str, float] = {}

    def take(self, number: int) -> list[str]:
        """The batches whose turns are next, at most `number`; a batch may come more than once."""
        taken: list[str] = []
        while len(taken) < number and (self._current or self._order):
            if self._current is None:
                # Sorting a class costs something, and lower ones may never have their turn.
                priority = self._order.pop()
                self._current = _Class(priority, self._classes[priority], self._ledgers, self._rate, self._now)
            standing = self._current.next()
            if standing is None:
                self._current = None
            else:
                taken.append(standing.candidate.id)
                self._starts[taken[-1]] = standing.start
        return taken

    def start(self, batch_id: str) -> float:
        """Where a batch that had a turn began among those of its tenant."""
        return self._starts[batch_id]


class _Class:
    """The turns within one priority."""

    def __init__(self, priority: int, candidates: list[Candidate], ledgers: Ledgers, rate: float, now: float) -> None:
        self._weight = ledgers.weight
        # By tenant; of thousands few have a turn until the line is read again, so no more is arranged than has to be.
        self._waiting: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            self._waiting[candidate.tenant].append(candidate)
        self._opened: dict[str, _Tenant] = {}
        due = pressing(candidates, rate, now)
        tenants = {candidate.id: candidate.tenant for candidate in candidates} if due else {}
        self._pressing = deque((tenants[one.id], one.id) for one in due)
        self._times = {tenant: ledgers.start((priority, tenant)) for tenant in self._waiting}
        self._turns = [(time, tenant) for tenant, time in self._times.items()]
        heapq.heapify(self._turns)

    def next(self) -> _Standing | None:
        """Who has the next turn; None when nothing waits."""
        while self._pressing:
            tenant, batch_id = self._pressing[0]
            standing = self._open(tenant).standings[batch_id]
            if standing.left:
                return self._give(standing)
            self._pressing.popleft()
        while self._turns:
            time, tenant = heapq.heappop(self._turns)
            if time < self._times[tenant]:  # It was given something as pressing meanwhile.
                heapq.heappush(self._turns, (self._times[tenant], tenant))
                continue
            first = self._open(tenant).first()
            if first is None:
                continue
            self._give(first)
            self._open(tenant).put_back(first)
            heapq.heappush(self._turns, (self._times[tenant], tenant))
            return first
        return None

    def _open(self, tenant: str) -> _Tenant:
        """A tenant's batches, arranged when the first of them is looked at."""
        if tenant not in self._opened:
            self._opened[tenant] = _Tenant(self._waiting[tenant])
        return self._opened[tenant]

    def _give(self, standing: _Standing) -> _Standing:
        candidate = standing.candidate
        standing.left -= 1
        standing.had += candidate.shard_tokens
        self._times[candidate.tenant] += candidate.shard_tokens / self._weight(candidate.tenant)
        return standing


class _Tenant:
    """The batches of a tenant within one priority, those first that had least."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.standings = shares_within(candidates)
        self._heap = [(standing.key(), standing) for standing in self.standings.values()]
        heapq.heapify(self._heap)

    def first(self) -> _Standing | None:
        """Take out the batch that had least of those that wait; None when none does."""
        while self._heap:
            key, standing = heapq.heappop(self._heap)
            if not standing.left:
                continue
            if key == standing.key():
                return standing
            self.put_back(standing)  # It had a turn as pressing meanwhile.
        return None

    def put_back(self, standing: _Standing) -> None:
        heapq.heappush(self._heap, (standing.key(), standing))


def shares_within(candidates: Iterable[Candidate]) -> dict[str, _Standing]:
    """How batches stand within their tenants: one that is new starts level with the one that had least."""
    candidates = list(candidates)
    known = [(candidate.flow, candidate.had) for candidate in candidates if candidate.had is not None]
    least: dict[Flow, float] = {}
    for flow, had in known:
        least[flow] = min(had, least.get(flow, had))
    standings = {}
    for one in candidates:
        had = least.get(one.flow, 0.0) if one.had is None else one.had
        standings[one.id] = _Standing(one, one.num_shards, had, start=had)
    return standings


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
