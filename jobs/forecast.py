"""When batches in line will end, if nothing else comes: place, time of ending, and whether the deadline holds. Pure.

What is fed is foreseen as the policy feeds it: higher priorities first, then all tenants of a class at once by their
weights, and a tenant's batches alike. In the time in which a batch gets its last token, each of the others has got as
much as its share, or all it wanted. A batch whose deadline can be met ends by then, because the policy lets it go
ahead. Knows nothing of Redis or the time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from .deadlines import Due, feasible
from .policy import Candidate, Flow, Ledgers, pressing, shares_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """`place` 1 is fed next; `ends_at` in Unix seconds. None where no rate has been measured yet."""

    place: int
    ends_at: float | None
    feasible: bool | None


class _Filled:
    """How much vessels of these sizes and widths hold, when all are filled to one level."""

    def __init__(self, vessels: Iterable[tuple[float, float]]) -> None:
        ordered = sorted((size / width, size, width) for size, width in vessels)
        self._levels = [level for level, *_ in ordered]
        self._full = list(accumulate((size for _, size, _ in ordered), initial=0.0))
        self._widths = list(accumulate((width for *_, width in ordered), initial=0.0))

    def at(self, level: float) -> float:
        full = bisect_right(self._levels, level)
        return self._full[full] + level * (self._widths[-1] - self._widths[full])


class Forecast:
    """What can be said of `candidates` as they stand. `ahead` tokens are in the workers' hands already."""

    def __init__(
        self, candidates: Sequence[Candidate], ledgers: Ledgers, *, rate: float, now: float, ahead: float = 0.0
    ) -> None:
        self._rate, self._now = rate, now
        self._ledgers = ledgers
        self._candidates = {candidate.id: candidate for candidate in candidates}
        self._places = {batch_id: place for place, batch_id in enumerate(self._in_line(), start=1)}
        self._tokens: dict[Flow, list[float]] = defaultdict(list)
        for candidate in candidates:
            self._tokens[candidate.flow].append(candidate.tokens)
        self._within = {flow: _Filled((size, 1.0) for size in sizes) for flow, sizes in self._tokens.items()}
        self._starts = self._class_starts(ahead)
        self._tenants = {priority: self._shared(priority) for priority in self._starts}
        self._met = {batch_id for priority in self._starts for batch_id in self._meetable(priority)}

    @property
    def num_met(self) -> int:
        """How many batches will meet their deadlines, if need be by going ahead of others."""
        return len(self._met)

    def of(self, batch_id: str) -> Foreseen | None:
        """The forecast of a batch; None for one that nothing waits of."""
        shared = self.by_share(batch_id)
        if shared is None or shared.ends_at is None or batch_id not in self._met:
            return shared
        ends_at = min(shared.ends_at, self._candidates[batch_id].expires_at)
        return replace(shared, ends_at=ends_at, feasible=True)

    def by_share(self, batch_id: str) -> Foreseen | None:
        """The same if the batch never goes ahead of others for the sake of its deadline."""
        candidate = self._candidates.get(batch_id)
        if candidate is None:
            return None
        place = self._places[batch_id]
        if self._rate <= 0:
            return Foreseen(place=place, ends_at=None, feasible=None)
        ends_at = self._share_ends_at(candidate)
        return Foreseen(place=place, ends_at=ends_at, feasible=ends_at <= candidate.expires_at)

    def _share_ends_at(self, candidate: Candidate) -> float:
        tenant = self._within[candidate.flow].at(candidate.tokens)
        level = tenant / self._ledgers.weight(candidate.tenant)
        tokens = self._starts[candidate.priority] + self._tenants[candidate.priority].at(level)
        return self._now + tokens / self._rate

    def _class_starts(self, ahead: float) -> dict[int, float]:
        """For each priority, the tokens that are fed before it."""
        starts, before = {}, ahead
        for priority in sorted({flow[0] for flow in self._tokens}, reverse=True):
            starts[priority] = before
            before += sum(sum(sizes) for flow, sizes in self._tokens.items() if flow[0] == priority)
        return starts

    def _shared(self, priority: int) -> _Filled:
        weight: Callable[[str], float] = self._ledgers.weight
        return _Filled((sum(sizes), weight(flow[1])) for flow, sizes in self._tokens.items() if flow[0] == priority)

    def _meetable(self, priority: int) -> list[str]:
        if self._rate <= 0:
            return []
        dues = [candidate.due for candidate in self._candidates.values() if candidate.priority == priority]
        start = self._now + self._starts[priority] / self._rate
        return [due.id for due in feasible(dues, rate=self._rate, start=start)]

    def _in_line(self) -> list[str]:
        """Batches in the order of their next turns."""
        first = {due.id: place for place, due in enumerate(self._pressing())}
        flows: dict[Flow, list[str]] = defaultdict(list)
        for standing in sorted(shares_within(self._candidates.values()).values(), key=lambda one: one.key()):
            flows[standing.candidate.flow].append(standing.candidate.id)
        turns = []
        for flow, batch_ids in flows.items():
            time, weight = self._ledgers.start(flow), self._ledgers.weight(flow[1])
            for batch_id in batch_ids:
                turns.append((-flow[0], first.get(batch_id, len(first)), time, batch_id))
                time += self._candidates[batch_id].shard_tokens / weight
        return [batch_id for *_, batch_id in sorted(turns)]

    def _pressing(self) -> list[Due]:
        by_priority: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in self._candidates.values():
            by_priority[candidate.priority].append(candidate)
        return [due for candidates in by_priority.values() for due in pressing(candidates, self._rate, self._now)]
