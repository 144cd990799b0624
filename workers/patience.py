"""Waiting for a Redis or a blob store that does not answer: with back-off, and not for ever.

What is retried here must be safe to do twice, because an answer that was lost may stand for a write that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError

from ..jobs.away import passes
from ..jobs.errors import BlobsUnavailable, StoreUnavailable

T = TypeVar("T")
log = logging.getLogger(__name__)

PATIENCE_S = 300.0


class Patiently(Protocol):
    """`patiently` with its patience decided."""

    def __call__(self, action: Callable[[], T]) -> T: ...


def patiently(
    action: Callable[[], T], *, patience_s: Callable[[], float] = lambda: PATIENCE_S, for_room: bool = True
) -> T:
    """Do `action` until it is answered. Raises StoreUnavailable after `patience_s()` seconds (asked every time).

    Where it is not `for_room` that the caller waits, a Redis whose memory is full is an OutOfMemoryError at once.
    """
    started, pause_s = time.monotonic(), 0.05
    while True:
        try:
            return action()
        except (RedisError, BlobsUnavailable) as error:
            if not passes(error) or (isinstance(error, OutOfMemoryError) and not for_room):
                raise
            waited_s = time.monotonic() - started
            if isinstance(error, AuthenticationError) or waited_s >= patience_s():
                raise StoreUnavailable(f"no answer for {waited_s:.0f} s: {error}") from error
            log.warning("waiting for an answer: %s", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
