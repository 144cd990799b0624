"""Watches Redis while things go wrong: when lines were finished, and when shards were in nobody's living hands.

Reads beside everything that is cut, and looks away while Valkey is dead.
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

LOOK_S = 0.05


class Watch:
    """A thread that looks at all batches until it is closed."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._finished_at: list[float] = []
        self._held_since: dict[tuple[bytes, bytes], tuple[float, float]] = {}
        self.longest_in_dead_hands_s = 0.0
        self._done = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def first_finished_after(self, at: float) -> float | None:
        """When lines were next finished."""
        place = bisect.bisect_left(self._finished_at, at)
        return self._finished_at[place] if place < len(self._finished_at) else None

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            try:
                self._look()
            except RedisError:
                self._held_since.clear()

    def _look(self) -> None:
        ids: Any = self._redis.zrange("pressrun:batches", 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for raw in ids:
            key = f"pressrun:{{{raw.decode()}}}"
            pipe.hmget(key, "completed", "failed", "unrun")
            pipe.zrange(f"{key}:leased", 0, -1, withscores=True)
        replies, now = pipe.execute(), time.monotonic()
        done = sum(int(count or 0) for counts in replies[::2] for count in counts)
        if done > self._done:
            self._finished_at.append(now)
        self._done = done  # A crash may take some back.
        self._note_leases(ids, replies[1::2], now)

    def _note_leases(self, ids: list[bytes], leased: list[list[tuple[bytes, float]]], now: float) -> None:
        """A lease that is not renewed is in dead hands from its last renewal on, until somebody else takes it."""
        seen = {}
        for batch_id, shards in zip(ids, leased, strict=True):
            for shard, until in shards:
                key = batch_id, shard
                before = self._held_since.get(key)
                seen[key] = (until, now) if before is None or before[0] != until else before
                self.longest_in_dead_hands_s = max(self.longest_in_dead_hands_s, now - seen[key][1])
        self._held_since = seen
