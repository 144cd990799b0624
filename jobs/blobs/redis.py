"""Blobs as Redis strings: for native jobs and small deployments. A blob is held in memory while it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from redis import Redis

from ..errors import BlobExists, BlobMissing

CHUNK = 2**20
PREFIX = "pressrun:blob:"


class RedisBlobs:
    """Every key is one string below `pressrun:blob:`. With `ttl_s` a blob vanishes that long after it was written."""

    def __init__(self, redis: Redis, *, ttl_s: int | None = None) -> None:
        self.redis = redis
        self.ttl_s = ttl_s

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        data = b"".join(chunks)
        self.redis.set(PREFIX + key, data, ex=self.ttl_s)
        return len(data)

    def put_new(self, key: str, chunks: Iterable[bytes]) -> int:
        data = b"".join(chunks)
        if not self.redis.set(PREFIX + key, data, ex=self.ttl_s, nx=True):
            raise BlobExists(key)
        return len(data)

    def join(self, pieces: Iterable[tuple[str, int]], target: str) -> int:
        return self.put(target, (chunk for key, _ in pieces for chunk in self.open(key)))

    def open(self, key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        total = self.size(key)
        end = total if size is None else min(offset + size, total)

        def read() -> Iterator[bytes]:
            for start in range(offset, end, CHUNK):
                stop = min(start + CHUNK, end)
                chunk: Any = self.redis.getrange(PREFIX + key, start, stop - 1)
                if len(chunk) != stop - start:
                    raise BlobMissing(key)  # Deleted under its reader.
                yield chunk

        return read()

    def size(self, key: str) -> int:
        if not self.redis.exists(PREFIX + key):
            raise BlobMissing(key)
        return int(self.redis.strlen(PREFIX + key))

    def presign(self, key: str, *, filename: str, seconds: int) -> str | None:
        return None

    def list(self, prefix: str) -> Iterator[str]:
        found = self.redis.scan_iter(match=f"{PREFIX}{prefix}/*", count=1000)
        return iter(sorted({key.decode().removeprefix(PREFIX) for key in found}))

    def keep(self, key: str, seconds: int | None = None) -> None:
        """Let a blob live so long from now, whatever `ttl_s` says; None: until it is deleted."""
        if seconds is None:
            self.redis.persist(PREFIX + key)
        else:
            self.redis.expire(PREFIX + key, seconds)

    def delete(self, key: str) -> None:
        self.redis.delete(PREFIX + key)

    def tidy(self, prefix: str, older_than_s: float) -> None:
        """A string is written by one command: nothing can be left of it."""
