"""Watches Redis while things go wrong: when lines were finished, when none could be, and when shards were in nobody's
living hands.

None can be finished where none is owed, and while Valkey or S3 starts again, which is theirs to do. Reads beside
everything that is cut, and looks away while Valkey is dead.
"""

from __future__ import annotations

import bisect
import http.client
import threading
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

LOOK_S, LONGEST_ANSWER_S = 0.05, 0.5
ENDED = (b"completed", b"failed", b"expired", b"cancelled")


class Spans:
    """Stretches of time in which something was so. Those that are added begin in order."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, start: float, end: float) -> None:
        self._spans.append((start, end))

    def within(self, since: float, until: float) -> list[tuple[float, float]]:
        cut = ((max(since, start), min(until, end)) for start, end in list(self._spans))
        return [(start, end) for start, end in cut if start < end]


class Watch:
    """Threads that look at all batches, and at S3 if there is one at `s3_port`, until they are closed."""

    def __init__(self, redis: Redis, s3_port: int | None) -> None:
        self._redis = redis
        self._finished_at: list[float] = []
        self._idle = Spans()  # No batch waited for a line or its validation, or Valkey was away.
        self._s3_away = Spans()
        self._looked_at = time.monotonic()
        self._held_since: dict[tuple[bytes, bytes], tuple[float, float]] = {}
        self.longest_in_dead_hands_s = 0.0
        self._done = 0
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._run)]
        if s3_port is not None:
            self._threads.append(threading.Thread(target=self._watch_s3, args=[s3_port]))
        for thread in self._threads:
            thread.start()

    def first_finished_after(self, at: float) -> float | None:
        """When lines were next finished."""
        place = bisect.bisect_left(self._finished_at, at)
        return self._finished_at[place] if place < len(self._finished_at) else None

    def waited_s(self, since: float, until: float) -> float:
        """The seconds between two moments in which something could be finished."""
        seconds = until - since
        for start, end in sorted(self._idle.within(since, until) + self._s3_away.within(since, until)):
            seconds -= max(0.0, end - max(start, since))
            since = max(since, end)
        return seconds

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            try:
                self._look()
            except RedisError:
                self._held_since.clear()
                now = time.monotonic()
                self._idle.add(self._looked_at, now)
                self._looked_at = now

    def _watch_s3(self, port: int) -> None:
        looked_at = time.monotonic()
        while not self._closing.wait(LOOK_S):
            is_up, now = _answers(port), time.monotonic()
            if not is_up:
                self._s3_away.add(looked_at, now)
            looked_at = now

    def _look(self) -> None:
        ids: Any = self._redis.zrange("pressrun:batches", 0, -1)
        pipe = self._redis.pipeline(transaction=False)
        for raw in ids:
            key = f"pressrun:{{{raw.decode()}}}"
            pipe.hmget(key, "status", "total", "completed", "failed", "unrun")
            pipe.zrange(f"{key}:leased", 0, -1, withscores=True)
        replies, now = pipe.execute(), time.monotonic()
        self._note_lines(replies[::2], now)
        self._note_leases(ids, replies[1::2], now)
        self._looked_at = now

    def _note_lines(self, batches: list[list[bytes | None]], now: float) -> None:
        done = sum(_done(batch) for batch in batches)
        if done > self._done:
            self._finished_at.append(now)
        elif not any(_is_owed(batch) for batch in batches):
            self._idle.add(self._looked_at, now)
        self._done = done  # A crash may take some back.

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


def _answers(port: int) -> bool:
    """Whether S3 takes requests there; that it refuses one without a signature is an answer too."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_ANSWER_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _done(batch: list[bytes | None]) -> int:
    return sum(int(count or 0) for count in batch[2:])


def _is_owed(batch: list[bytes | None]) -> bool:
    """Whether a batch waits for its validation or for lines."""
    status, total = batch[0], int(batch[1] or 0)
    return status == b"validating" or (status not in ENDED and _done(batch) < total)
