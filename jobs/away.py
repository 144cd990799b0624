"""Which errors of Redis and of the blob store pass: the same call may be answered in a while.

Knows nothing of how to wait, nor for how long.
"""

from __future__ import annotations

from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .errors import BlobsUnavailable

# Down, unreachable, loading its data, full, a replica that has not been made the primary yet; or started anew between a
# call that gave it a script and the next, so that it has to be given it again.
PASSING: tuple[type[Exception], ...] = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    MasterDownError,
    ClusterDownError,
    OutOfMemoryError,
    NoScriptError,
    BlobsUnavailable,
)
# What redis-py has no class for: a disk that takes no writes, too few replicas, a script that takes its time.
_WORDS = ("MISCONF ", "NOREPLICAS ", "BUSY ")


def passes(error: Exception) -> bool:
    """Whether it is worth asking again."""
    return isinstance(error, PASSING) or (isinstance(error, ResponseError) and str(error).startswith(_WORDS))
