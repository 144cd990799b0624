"""The store of a deployment, for a command that looks into it and ends. What Redis says is one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..jobs.errors import StoreUnavailable
from ..jobs.settings import Settings

if TYPE_CHECKING:
    from ..jobs.backend import Backend


@contextmanager
def connected(settings: Settings) -> Iterator[Backend]:
    """The backend at the Redis that the settings name. Raises StoreUnavailable where that does not answer."""
    from redis.exceptions import RedisError

    from ..jobs.backend import connect

    backend = connect(settings)
    try:
        yield backend
    except RedisError as error:
        raise StoreUnavailable(f"Redis does not answer: {error}") from error
    finally:
        backend.close()
