"""What keeps batches moving: validation, feeding, lapsed leases, winding up, ending, expiry.

Every worker runs a housekeeper; what two of them must not do at once is guarded by the store. It acts on what the
store says now, so any of them may die at any time. Knows nothing of engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from redis.exceptions import RedisError

from ..jobs.backend import Backend
from ..jobs.errors import NotFound
from ..jobs.finish import end_batch, fill_shard, validate_batch, wind_up
from ..jobs.queue import enqueue_shards, forget_shards, queued_job_ids, rq_job_id
from ..jobs.records import ENDED, Batch, BatchKind
from ..jobs.submit import delete_file

log = logging.getLogger(__name__)

FEED_S, CARE_S, LOST_S, FILES_S = 0.05, 0.2, 5.0, 60.0
Task = Callable[[Backend, str], None]


class Housekeeper:
    """Call `tick` often; slow work (reading a whole batch, joining files) goes to a few threads of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="housekeeping")
        self._busy: set[str] = set()
        self._busy_lock = Lock()
        self._due: dict[str, float] = {}

    def run(self, stop: Event) -> None:
        """Tick until `stop` is set. A Redis that does not answer is asked again."""
        while not stop.wait(FEED_S):
            try:
                self.tick()
            except RedisError as error:
                log.warning("housekeeping waits for Redis: %s", error)
                stop.wait(1.0)
        self._pool.shutdown(cancel_futures=True)

    def tick(self) -> None:
        """Do what is due."""
        active = self.backend.store.active()
        self._feed(active)
        if self._is_due("care", CARE_S):
            for batch_id in active:
                self._care(batch_id)
        if self._is_due("lost", LOST_S):
            self._requeue_lost(active)
        if self._is_due("files", FILES_S):
            for file_id in self.backend.store.expired_files(time.time()):
                delete_file(self.backend, file_id)

    def _is_due(self, name: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + interval
        return True

    def _feed(self, active: list[str]) -> None:
        for batch_id in active:
            shards = self.backend.shards.feed(batch_id, self.backend.settings.feed_window)
            if shards:
                enqueue_shards(self.backend.redis, _kind(batch_id), batch_id, shards)

    def _care(self, batch_id: str) -> None:
        try:
            batch = self.backend.store.batch(batch_id)
        except NotFound:
            self.backend.store.forget_active(batch_id)
            return
        if batch.status in ("validating", "in_progress") and batch.expires_at <= time.time():
            self.backend.store.move(batch_id, "finalizing", closing="expired")
            batch = self.backend.store.batch(batch_id)
        if batch.status == "validating":
            self._later(batch_id, validate_batch)
        elif batch.closing is not None and batch.status not in ENDED:
            self._later(batch_id, _drop_and_wind_up)
        elif batch.status == "in_progress":
            self._recover(batch)
        else:
            self._later(batch_id, end_batch)

    def _recover(self, batch: Batch) -> None:
        """Put shards of silent workers back in line, and give up those that never get anywhere."""
        back = self.backend.shards.reclaim(batch.id)
        if not back:
            return
        log.warning("batch %s: %d shards lost their worker and are queued again", batch.id, len(back))
        forget_shards(self.backend.redis, batch.kind, batch.id, back)
        attempts = self.backend.shards.attempts(batch.id)
        for shard in back:
            if attempts.get(shard, 0) >= self.backend.settings.max_attempts:
                log.error("batch %s: shard %d failed %d times in a row", batch.id, shard, attempts[shard])
                fill_shard(self.backend, batch.id, shard, "worker_lost")

    def _requeue_lost(self, active: list[str]) -> None:
        """Find shards that the store holds for queued but RQ does not have: their RQ job was lost or deleted."""
        present: dict[BatchKind, set[str]] = {}
        for batch_id in active:
            kind = _kind(batch_id)
            suspects = self.backend.shards.queued_before(batch_id, time.time() - self.backend.settings.lease_s)
            if not suspects:
                continue
            if kind not in present:
                present[kind] = queued_job_ids(self.backend.redis, kind)
            lost = [shard for shard in suspects if rq_job_id(batch_id, shard) not in present[kind]]
            if lost:
                log.warning("batch %s: %d queued shards were lost from RQ and are queued again", batch_id, len(lost))
                forget_shards(self.backend.redis, kind, batch_id, lost)
                self.backend.shards.reclaim(batch_id, lost)

    def _later(self, batch_id: str, task: Task) -> None:
        """Run a slow task for a batch in the background, unless one is under way."""
        with self._busy_lock:
            if batch_id in self._busy:
                return
            self._busy.add(batch_id)
        self._pool.submit(self._run, batch_id, task)

    def _run(self, batch_id: str, task: Task) -> None:
        try:
            task(self.backend, batch_id)
        except Exception:
            # The edge of a thread: what went wrong is logged, and the next tick tries again.
            log.exception("batch %s: %s failed and will be tried again", batch_id, task.__name__)
            time.sleep(1.0)
        finally:
            with self._busy_lock:
                self._busy.discard(batch_id)


def _drop_and_wind_up(backend: Backend, batch_id: str) -> None:
    batch = backend.store.batch(batch_id)
    forget_shards(backend.redis, batch.kind, batch_id, backend.shards.queued_before(batch_id, time.time()))
    wind_up(backend, batch_id)


def _kind(batch_id: str) -> BatchKind:
    return "job" if batch_id.startswith("job_") else "batch"
