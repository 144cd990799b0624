"""Who has to be looked after: batches and jobs that have not ended, when each is looked at next, and which were fed.

Where a note here is lost, housekeeping finds the batch in its turn. Knows nothing of what looking after one means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .connection import Connection
from .fields import as_text
from .records import BatchKind
from .redis_keys import ACTIVE, CARE, FED


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a housekeeper has taken to look at. `name` is told apart from any other look's at the same batch."""

    name: str
    ids: tuple[str, ...]


class Care(Connection):
    """What housekeepers share. Thread-safe; every method is one or a few round trips."""

    def active(self, kind: BatchKind) -> list[str]:
        """Ids of the batches or jobs that have not ended, nearest deadline first."""
        return [as_text(raw) for raw in self.redis.zrange(ACTIVE[kind], 0, -1)]

    def is_active(self, batch_id: str) -> bool:
        """Whether a batch or job has not ended, or has not been cleaned up since."""
        return any(self.redis.zscore(key, batch_id) is not None for key in ACTIVE.values())

    def forget_active(self, batch_id: str) -> None:
        """An ended batch or job needs no more care."""
        for key in (*ACTIVE.values(), *CARE.values()):
            self.redis.zrem(key, batch_id)

    def due_for_care(self, kind: BatchKind, most: int, interval_s: float) -> Look:
        """Batches or jobs that nobody has looked at for the interval; now the caller does."""
        name, ids = self.scripts["due"](keys=[CARE[kind]], args=[most, interval_s])
        return Look(name=as_text(name), ids=tuple(map(as_text, ids)))

    def look_at(self, *batch_ids: str) -> None:
        """Have housekeeping look at batches next. Where this is lost, it does so in its turn."""
        self.scripts["look"](keys=[CARE["batch"]], args=[*batch_ids])

    def let_rest(self, look: Look, until: Mapping[str, float]) -> None:
        """Have nobody look at batches before the given times, unless `look_at` asks for it, or did since `look`."""
        if until:
            args = [look.name, *(part for pair in until.items() for part in pair)]
            self.scripts["rest"](keys=[CARE["batch"]], args=args)

    def remember_care(self, kind: BatchKind) -> None:
        """Look after all that are active: who made one may have died before it said so."""
        self.redis.zunionstore(CARE[kind], {CARE[kind]: 1, ACTIVE[kind]: 0}, aggregate="MAX")

    def begin_feeding(self, batch_ids: Iterable[str]) -> None:
        """Note that shards of batches are about to be fed, so that they are missed if they never come to RQ."""
        ids = list(batch_ids)
        if ids:
            self.scripts["fed"](keys=[FED], args=ids)

    def fed(self) -> list[str]:
        """Batches of which shards were fed and may be queued still."""
        return [as_text(raw) for raw in self.redis.zrange(FED, 0, -1)]

    def fed_within(self, seconds: float) -> list[str]:
        """Those that were fed so lately."""
        return [as_text(raw) for raw in self.redis.zrangebyscore(FED, int(self.now() - seconds), "+inf")]

    def end_feeding(self, batch_ids: Iterable[str], after_s: float) -> None:
        """Forget that batches were fed of which nothing is queued now, if they were not within `after_s`."""
        ids = list(batch_ids)
        if ids:
            self.scripts["unfeed"](keys=[FED], args=[after_s, *ids])
