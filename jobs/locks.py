"""The lock of a batch: one process at a time validates or ends it. Knows nothing of what is done under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TypeVar

from redis.exceptions import LockNotOwnedError
from redis.lock import Lock

from .backend import Backend
from .redis_keys import batch_key

T = TypeVar("T")
LONGEST_RENEWAL_S = 1.0


@contextmanager
def batch_lock(backend: Backend, batch_id: str) -> Iterator[Lock | None]:
    """The right to validate or end a batch, for as long as it is renewed; None where another process has it."""
    lock = backend.redis.lock(f"{batch_key(batch_id)}:lock", timeout=backend.settings.lease.ending, blocking=False)
    if not lock.acquire():
        yield None
        return
    try:
        yield lock
    finally:
        # Where it lapsed, another process has it or had it: nothing of ours is left to release.
        with suppress(LockNotOwnedError):
            lock.release()


def renew(lock: Lock) -> None:
    """Keep the lock; LockNotOwnedError where it has lapsed, so that the work stops before it meets another's."""
    lock.reacquire()


def while_locked(items: Iterable[T], lock: Lock) -> Iterator[T]:
    """The items, with the lock kept however long it takes to be rid of them."""
    keep = renewing(lock)
    for item in items:
        keep()
        yield item


def renewing(lock: Lock) -> Callable[[], None]:
    """Keeps the lock, if it is called often."""
    renewed = monotonic()
    interval_s = min(LONGEST_RENEWAL_S, (lock.timeout or math.inf) / 5)

    def keep() -> None:
        nonlocal renewed
        if monotonic() - renewed > interval_s:
            renew(lock)
            renewed = monotonic()

    return keep
