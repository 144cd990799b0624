"""An API server with real workers behind it, for tests of online requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from ..workers.conftest import MODEL, Farm, farm_on
from .conftest import Api, clients, served

__all__ = ["MODEL", "Online", "online"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """A server, and the workers that it asks."""

    api: Api
    farm: Farm

    @property
    def redis(self) -> Redis:
        return self.farm.backend.redis

    def num_known(self) -> int:
        """Online requests that Redis knows of."""
        return len(self.redis.keys(f"pressrun:live:{{{MODEL}}}:request:*"))


@contextmanager
def server_of(farm: Farm) -> Iterator[Online]:
    """A server for workers that are there."""
    with served(farm.backend.settings) as address, clients(address, farm.backend.settings) as api:
        yield Online(api=api, farm=farm)


@contextmanager
def online(redis: Redis, url: str, folder: Path, **changes: Any) -> Iterator[Online]:
    """A server without a worker yet."""
    farm = farm_on(redis, url, folder, **changes)
    try:
        with server_of(farm) as running:
            yield running
    finally:
        for worker in farm.workers:
            worker.end()
