"""Delivers webhooks beside the housekeeper, a few at a time, so that a slow endpoint holds nothing else up.

Every worker has a deliverer; the store sees to it that each delivery is one's at a time. Knows nothing of batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from ..jobs.backend import Backend
from ..jobs.deliveries import Taken, take
from ..jobs.posting import attempt

log = logging.getLogger(__name__)

NUM_THREADS = 16


class Deliverer:
    """Call `tick` now and then; it does not wait for endpoints."""

    def __init__(self, backend: Backend, *, clock: Callable[[], float] = time.time) -> None:
        self.backend = backend
        self.clock = clock
        self._pool = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="webhooks")
        self._num_flying = 0
        self._lock = Lock()

    def tick(self) -> None:
        """Take what is due, as far as there are threads for it."""
        with self._lock:
            room = NUM_THREADS - self._num_flying
        taken = take(self.backend, room, self.clock()) if room else []
        with self._lock:
            self._num_flying += len(taken)
        for one in taken:
            self._pool.submit(self._attempt, one)

    def close(self) -> None:
        """Wait for posts under way, which have a deadline; what has not begun is another's to take."""
        self._pool.shutdown(cancel_futures=True)

    def _attempt(self, taken: Taken) -> None:
        try:
            attempt(self.backend, taken, self.clock())
        except Exception:
            # The edge of a thread: the delivery is taken again when its time is up.
            log.exception("webhook %s could not be delivered and will be tried again", taken.delivery.event_id)
        finally:
            with self._lock:
                self._num_flying -= 1
