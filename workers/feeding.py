"""Putting batches' shards into RQ, in the policy's order and no more than will soon be taken.

What waits in RQ can no longer be overtaken, so it is kept short: as much as the workers take while nobody looks. Every
model has a line and a window of its own, sized by its workers: one without any is not fed, and its batches wait. Every
worker has a feeder for all models; one at a time feeds. Should one stall until another takes over, what it does late is
only that a few shards more are queued, each of them once. Knows nothing of lines.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis.exceptions import LockNotOwnedError

from ..jobs.backend import Backend
from ..jobs.lineup import Line
from ..jobs.policy import Turns, raised_floors
from ..jobs.progress import progress_of
from ..jobs.queue import enqueue, forget, queue_lengths

LOCK = "pressrun:feeding"
FIRST, LEAST = 8, 2  # Shards for each worker.
GROWTH, SHRINK = 4, 0.99  # By a look at which none, and some, were left.
MODELS_S = 1.0  # How often it is asked which models have workers.


class Window:
    """How many shards may wait in RQ: many more whenever none were left, and slowly fewer otherwise."""

    def __init__(self) -> None:
        self._size: float | None = None

    def size(self, num_left: int, *, num_workers: int, most: int) -> int:
        """The size now; it stays between `LEAST` and `most` shards a worker."""
        workers = max(1, num_workers)
        if self._size is None:
            self._size = FIRST * workers
        else:
            self._size *= SHRINK if num_left else GROWTH
        self._size = min(max(self._size, LEAST * workers), most * workers)
        return int(self._size)


class Feeder:
    """Feeds all models that have workers. Call `feed` often."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._feeders: dict[str, _ModelFeeder] = {}
        self._ask_again_at = 0.0

    def feed(self) -> list[str]:
        """Queue what there is room for. Returns the batches that were fed."""
        rooms = self._rooms()
        if not rooms:
            return []
        with self._alone() as alone:
            return [batch_id for feeder, room in rooms for batch_id in feeder.feed(room)] if alone else []

    def _rooms(self) -> list[tuple[_ModelFeeder, int]]:
        """The models for which something waits and more has room in RQ, and how much."""
        models = self._served()
        waiting = self._backend.lineups.lengths(models)
        models = [model for model, number in zip(models, waiting, strict=True) if number]
        left = queue_lengths(self._backend.redis, "batch", models)
        feeders = [self._feeders[model] for model in models]
        rooms = [(feeder, feeder.room(num_left)) for feeder, num_left in zip(feeders, left, strict=True)]
        return [(feeder, room) for feeder, room in rooms if room > 0]

    def _served(self) -> list[str]:
        """The models that have workers. One that lost them is fed from a fresh window when it has some again."""
        if time.monotonic() >= self._ask_again_at:
            self._ask_again_at = time.monotonic() + MODELS_S
            served = sorted(card.id for card in self._backend.store.models())
            self._feeders = {model: self._feeders.get(model) or _ModelFeeder(self._backend, model) for model in served}
        return list(self._feeders)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        lock = self._backend.redis.lock(LOCK, timeout=self._backend.settings.lease.feeding, blocking=False)
        if not lock.acquire():
            yield False
            return
        try:
            yield True
        finally:
            with suppress(LockNotOwnedError):
                lock.release()


class _ModelFeeder:
    """Feeds the workers of one model."""

    def __init__(self, backend: Backend, model: str) -> None:
        self._backend = backend
        self._model = model
        self._lineup = backend.lineups.of(model)
        self._window = Window()
        self._line: Line | None = None
        self._turns: Turns | None = None

    def room(self, num_left: int) -> int:
        """How many shards may be queued beside the `num_left` that wait in RQ; none where no worker takes them."""
        workers = self._lineup.read().num_workers
        if not workers:
            return 0
        return self._window.size(num_left, num_workers=workers, most=self._backend.settings.feed_window) - num_left

    def feed(self, room: int) -> list[str]:
        """Queue so many shards, if there are any. Returns the batches that were fed."""
        order = self._next(room)
        wanted = Counter(order)
        # Before the draw: who dies after it is known to have begun.
        self._backend.store.begin_feeding(wanted)
        drawn = self._backend.shards.draw(wanted.items())
        shards = {batch_id: deque(taken) for batch_id, taken in zip(wanted, drawn, strict=True)}
        queued = [(batch_id, shards[batch_id].popleft()) for batch_id in order if shards[batch_id]]
        if queued:
            # They are nobody else's until they are in RQ, so this is the place to clear away traces of an earlier run,
            # such as the job of a worker that died.
            forget(self._backend.redis, "batch", self._model, queued)
            enqueue(self._backend.redis, "batch", self._model, queued)
        if len(queued) < room:
            self._lineup.read_anew()  # There is more by now, or less than it seemed.
        self._tell(list(wanted))
        return list(wanted)

    def _next(self, room: int) -> list[str]:
        line = self._lineup.read()
        if line is not self._line or self._turns is None:
            self._line = line
            self._lineup.raise_floors(raised_floors(line.candidates, line.ledgers))
            self._turns = Turns(line.candidates, line.ledgers, rate=line.rate, now=time.time())
        return self._turns.take(room)

    def _tell(self, batch_ids: list[str]) -> None:
        """What was fed is charged for, and who has nothing left leaves the line."""
        if self._turns is None or not batch_ids:
            return
        starts = {batch_id: self._turns.start(batch_id) for batch_id in batch_ids}
        self._lineup.note(progress_of(self._backend.store, batch_ids), starts)
        self._backend.store.look_at(*batch_ids)
