"""What every part of the store does with Redis: run scripts, ask the time, read a page of a list, wait for the disk.

Knows nothing of what is stored.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ResponseError

from .errors import NotFound, StoreUnavailable
from .fields import as_text
from .redis_keys import SEQUENCE

DURABLE_WAIT_MS = 3000  # Less than the connection's own time-out of 5 s.


class Scripts:
    """The Lua scripts beside this module, registered once per connection pool.

    Those that bring what is in hand to its end are let through when Redis' memory is full (`allow-oom`), because only
    that empties it again. Those that begin something (`#!lua` alone) are then refused before their first change.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @cached_property
    def _loaded(self) -> dict[str, Script]:
        folder = Path(__file__).parent / "lua"
        return {path.stem: self._redis.register_script(path.read_text()) for path in folder.glob("*.lua")}

    def __getitem__(self, name: str) -> Script:
        return self._loaded[name]


class Connection:
    """Redis, and our scripts in it. Thread-safe; every method is one or two round trips."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.scripts = Scripts(redis)

    def page(self, key: str, limit: int, newest_first: bool, after: str | None) -> list[str]:
        """Ids of an ordered list beyond the one `after`, at most `limit`; NotFound where that is not in it."""
        start: float | str = "+inf" if newest_first else "-inf"
        if after is not None:
            score = self.redis.zscore(key, after)
            if score is None:
                raise NotFound(f"No such object: {after}", param="after")
            start = f"({score:.0f}"
        end = "-inf" if newest_first else "+inf"
        raw = self.redis.zrange(key, start, end, desc=newest_first, byscore=True, offset=0, num=limit)
        return [as_text(item) for item in raw]

    def now(self) -> float:
        """The time by Redis' clock, which is the same for all hosts."""
        seconds, micros = self.redis.time()
        return float(seconds) + micros / 1_000_000

    def server_run(self) -> str:
        """Names the life of the Redis process: another after a restart or a failover."""
        return str(self.redis.info("server")["run_id"])

    def make_durable(self) -> None:
        """Wait until Redis has what was written on disk. A server that keeps no AOF promises only what it keeps."""
        pipe = self.redis.pipeline(transaction=False)
        # WAITAOF speaks of the connection's own writes; this one follows all of ours.
        self.scripts["mark"](keys=[SEQUENCE], client=pipe)
        pipe.execute_command("WAITAOF", 1, 0, DURABLE_WAIT_MS)  # type: ignore[no-untyped-call]
        try:
            _, (num_synced, _replicas) = pipe.execute()
        except ResponseError as error:
            if "appendonly is disabled" not in str(error) and "unknown command" not in str(error).lower():
                raise
        else:
            if num_synced < 1:
                raise StoreUnavailable(f"Redis did not bring a write to disk within {DURABLE_WAIT_MS} ms")
