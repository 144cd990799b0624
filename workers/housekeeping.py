"""What keeps batches moving: validation, feeding, lapsed leases, winding up, ending, expiry, telling of ends.

Every worker runs a housekeeper; what two of them must not do at once is guarded by the store. It acts on what the
store says now, so any of them may die at any time. Knows nothing of engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from redis.exceptions import OutOfMemoryError, RedisError

from ..jobs.backend import Backend
from ..jobs.finish import end_batch, give_up_on, validate_batch, wind_up
from ..jobs.queue import enqueue_shards, forget_shards, queued_job_ids, rq_job_id
from ..jobs.records import ENDED, BatchKind
from ..jobs.shards import Tended
from ..jobs.submit import sweep_broken_uploads, sweep_files
from ..jobs.uploads import sweep_uploads
from .deliverer import Deliverer

log = logging.getLogger(__name__)

# Jobs are queued by who submits them, so that there is seldom anything to do for one; and there may be thousands.
FEED_S, CARE_S, JOBS_S, LOST_S, FILES_S, BROKEN_S, WEBHOOKS_S = 0.05, 0.2, 1.0, 5.0, 60.0, 3600.0, 0.5
RETRY_S = 1.0
KINDS: tuple[BatchKind, ...] = ("batch", "job")
Task = Callable[[Backend, str], None]


class Housekeeper:
    """Call `tick` often; slow work (reading a whole batch, joining files) goes to a few threads of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="housekeeping")
        self._deliverer = Deliverer(backend)
        self._busy: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._later_lock = Lock()
        self._due: dict[str, float] = {}
        self._feed_at = 0.0
        self._missing_since: dict[tuple[str, int], float] = {}

    def run(self, stop: Event) -> None:
        """Tick until `stop` is set. A Redis that does not answer is asked again."""
        try:
            while not stop.wait(FEED_S):
                try:
                    self.tick()
                except RedisError as error:
                    log.warning("housekeeping waits for Redis: %s", error)
                    stop.wait(RETRY_S)
                except Exception:
                    # The edge of a thread: without housekeeping nothing moves, so it goes on.
                    log.exception("housekeeping failed and goes on")
                    stop.wait(RETRY_S)
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._deliverer.close()

    def tick(self) -> None:
        """Do what is due."""
        batches = self.backend.store.active("batch")
        if self._is_due("care", CARE_S):
            self._care(batches)
        self._feed("batch", batches)
        if self._is_due("jobs", JOBS_S):
            jobs = self.backend.store.active("job")
            self._care(jobs)
            self._feed("job", jobs)
        if self._is_due("lost", min(LOST_S, self.backend.settings.lease_s / 4)):
            self._requeue_lost()
        if self._is_due("files", FILES_S):
            sweep_files(self.backend, self.backend.store.expired_files(time.time()))
            self._later("uploads", _sweep_uploads)  # One may have thousands of parts.
        if self._is_due("broken", BROKEN_S):
            self._later("broken uploads", _sweep_broken_uploads)
        if self._is_due("webhooks", WEBHOOKS_S):
            self._deliverer.tick()

    def _is_due(self, name: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + interval
        return True

    def _feed(self, kind: BatchKind, batch_ids: list[str]) -> None:
        """Put waiting shards into RQ. What `feed` gives is nobody else's until it is there, so this is the place to
        clear away traces of an earlier run, such as the job of a worker that died.
        """
        if time.monotonic() < self._feed_at:
            return
        try:
            fed = self.backend.shards.feed(batch_ids, self.backend.settings.feed_window)
        except OutOfMemoryError as error:
            log.warning("no work is queued: Redis' memory is full: %s", error)
            self._feed_at = time.monotonic() + RETRY_S
            return
        for batch_id, shards in zip(batch_ids, fed, strict=True):
            if shards:
                forget_shards(self.backend.redis, kind, batch_id, shards)
                enqueue_shards(self.backend.redis, kind, batch_id, shards)

    def _care(self, batch_ids: list[str]) -> None:
        tended = self.backend.shards.tend(batch_ids, self.backend.settings.max_attempts)
        for batch_id, batch in zip(batch_ids, tended, strict=True):
            if batch is None:
                self.backend.store.forget_active(batch_id)
            else:
                self._act(batch_id, batch)

    def _act(self, batch_id: str, batch: Tended) -> None:
        if batch.back:
            log.warning("batch %s: %d shards lost their worker and are queued again", batch_id, len(batch.back))
        if batch.status in ("validating", "in_progress") and batch.expires_at <= time.time():
            self.backend.store.move(batch_id, "finalizing", closing="expired")
        elif batch.status == "validating":
            self._later(batch_id, validate_batch)
        elif batch.closing is not None and batch.status not in ENDED:
            self._later(batch_id, _drop_and_wind_up)
        elif batch.status != "in_progress":
            self._later(batch_id, end_batch)
        elif batch.spent:
            self._later(batch_id, _give_up(batch.spent))

    def _requeue_lost(self) -> None:
        """Find shards that have been fed, but for half a lease have neither waited in RQ nor been claimed.

        Their RQ job was deleted, or whoever was to queue or to claim it died.
        """
        now = time.monotonic()
        missing: dict[tuple[str, int], float] = {}
        for kind in KINDS:
            ids = self.backend.store.active(kind)
            queued = zip(ids, self.backend.shards.queued(ids), strict=True)
            keys = [(batch_id, shard) for batch_id, shards in queued for shard in shards]
            present = queued_job_ids(self.backend.redis, kind) if keys else set()
            missing |= {key: self._missing_since.get(key, now) for key in keys if rq_job_id(*key) not in present}
        self._missing_since = missing
        lost: dict[str, list[int]] = {}
        for (batch_id, shard), since in missing.items():
            if now - since >= self.backend.settings.lease_s / 2:
                lost.setdefault(batch_id, []).append(shard)
        for batch_id, shards in lost.items():
            back = self.backend.shards.requeue(batch_id, shards)
            log.warning("batch %s: %d queued shards were lost from RQ and are queued again", batch_id, len(back))

    def _later(self, batch_id: str, task: Task) -> None:
        """Run a slow task for a batch in the background, unless one is under way or has failed just now.

        What is no batch's work goes by another name.
        """
        with self._later_lock:
            if batch_id in self._busy or time.monotonic() < self._retry_at.get(batch_id, 0.0):
                return
            self._busy.add(batch_id)
        self._pool.submit(self._run, batch_id, task)

    def _run(self, batch_id: str, task: Task) -> None:
        failed = False
        try:
            task(self.backend, batch_id)
        except Exception:
            # The edge of a thread: what went wrong is logged, and a later tick tries again.
            log.exception("%s: %s failed and will be tried again", batch_id, task.__name__)
            failed = True
        with self._later_lock:
            self._busy.discard(batch_id)
            if failed:
                self._retry_at[batch_id] = time.monotonic() + RETRY_S
            else:
                self._retry_at.pop(batch_id, None)


def _sweep_uploads(backend: Backend, _: str) -> None:
    sweep_uploads(backend, time.time())


def _sweep_broken_uploads(backend: Backend, _: str) -> None:
    sweep_broken_uploads(backend)


def _drop_and_wind_up(backend: Backend, batch_id: str) -> None:
    batch = backend.store.batch(batch_id)
    forget_shards(backend.redis, batch.kind, batch_id, *backend.shards.queued([batch_id]))
    wind_up(backend, batch_id)


def _give_up(shards: Sequence[int]) -> Task:
    def give_up(backend: Backend, batch_id: str) -> None:
        for shard in shards:
            log.error("batch %s: shard %d came to nothing too often; lines of it fail", batch_id, shard)
            give_up_on(backend, batch_id, shard)

    return give_up
