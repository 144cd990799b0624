"""Delivers webhooks beside the housekeeper, a few at a time, and to one endpoint fewer, so that a slow one holds up
neither batches nor others.

Every worker has a deliverer; the store sees to it that each delivery is one's at a time. Knows nothing of batches.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from ..jobs.backend import Backend
from ..jobs.deliveries import Taken, put_back, take
from ..jobs.posting import attempt
from .metrics import WorkerMetrics

log = logging.getLogger(__name__)

NUM_THREADS, MOST_TO_ONE = 16, 4
MOST_LOOKED_AT = 100
PAUSE_S = 2  # What is put back comes behind all that is due now.


class Deliverer:
    """Call `tick` now and then; it does not wait for endpoints."""

    def __init__(
        self, backend: Backend, metrics: WorkerMetrics | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.backend = backend
        self.metrics = metrics or WorkerMetrics()
        self.clock = clock
        self._pool = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="webhooks")
        self._flying: Counter[str] = Counter()
        self._lock = Lock()

    def tick(self) -> None:
        """Take what is due, as far as there are threads for it."""
        now = self.clock()
        for taken in take(self.backend, MOST_LOOKED_AT, now) if self._has_room() else ():
            if self._begin(taken.delivery.endpoint_id):
                self._pool.submit(self._attempt, taken)
            else:
                put_back(self.backend, taken, int(now) + PAUSE_S)

    def close(self) -> None:
        """Wait for posts under way, which have a deadline; what has not begun is another's to take."""
        self._pool.shutdown(cancel_futures=True)

    def _has_room(self) -> bool:
        with self._lock:
            return self._flying.total() < NUM_THREADS

    def _begin(self, endpoint_id: str) -> bool:
        with self._lock:
            may_fly = self._flying.total() < NUM_THREADS and self._flying[endpoint_id] < MOST_TO_ONE
            self._flying[endpoint_id] += may_fly
        return may_fly

    def _end(self, endpoint_id: str) -> None:
        with self._lock:
            self._flying[endpoint_id] -= 1
            if not self._flying[endpoint_id]:
                del self._flying[endpoint_id]

    def _attempt(self, taken: Taken) -> None:
        try:
            self.metrics.note_attempt(attempt(self.backend, taken, self.clock()))
        except Exception:
            # The edge of a thread: the delivery is taken again when its time is up.
            log.exception("webhook %s could not be delivered and will be tried again", taken.delivery.event_id)
        finally:
            self._end(taken.delivery.endpoint_id)
