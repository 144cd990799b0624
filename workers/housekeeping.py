"""What keeps batches moving: validation, lapsed leases, winding up, ending, expiry, telling of ends (feeding.py feeds).

Housekeepers share what there is to look at: each takes the batches that nobody has looked at for longest, a bounded
number at a time, so that many batches make the rounds longer and no look dearer. Every worker runs a housekeeper; what
two of them must not do at once is guarded by the store. It acts on what the store says now, so any of them may die at
any time. Knows nothing of engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event, Lock

from redis.exceptions import OutOfMemoryError, RedisError

from ..jobs.backend import Backend
from ..jobs.beginning import validate_batch
from ..jobs.care import Look
from ..jobs.filling import give_up_on, wind_up
from ..jobs.finish import end_batch
from ..jobs.interactive import enqueue_jobs
from ..jobs.leftovers import sweep_segments
from ..jobs.progress import progress_of
from ..jobs.queue import forget_shards, queued_job_ids, rq_job_id
from ..jobs.records import ENDED, BatchKind
from ..jobs.retired import forget_retired
from ..jobs.shards import Tended
from ..jobs.submit import sweep_broken_uploads, sweep_files
from ..jobs.uploads import sweep_uploads
from .deliverer import Deliverer
from .feeding import Feeder
from .metrics import WorkerMetrics

log = logging.getLogger(__name__)

# Jobs are queued by who submits them, so that there is seldom anything to do for one; and there may be thousands.
TICK_S, CARE_S, JOBS_S, FILES_S, BROKEN_S, WEBHOOKS_S = 0.05, 0.2, 1.0, 60.0, 3600.0, 0.5
RETRY_S = 1.0
REST_S = 30.0  # A batch that nobody has in hand needs no care: who changes it asks for a look.
MOST_BATCHES, MOST_JOBS = 100, 2000  # To look at in one tick.
KINDS: tuple[BatchKind, ...] = ("batch", "job")
Task = Callable[[Backend, str], None]


class Housekeeper:
    """Call `tick` often; slow work (reading a whole batch, joining files) goes to a few threads of its own."""

    def __init__(self, backend: Backend, metrics: WorkerMetrics | None = None) -> None:
        self.backend = backend
        self.metrics = metrics or WorkerMetrics()
        self._lease = backend.settings.lease
        self._fed: set[str] = set()
        self._feeder = Feeder(backend)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="housekeeping")
        self._deliverer = Deliverer(backend, self.metrics)
        self._busy: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._later_lock = Lock()
        self._due: dict[str, float] = {}
        self._more_at = 0.0
        self._missing_since: dict[tuple[str, int], float] = {}

    def run(self, stop: Event) -> None:
        """Tick until `stop` is set. A Redis that does not answer is asked again."""
        try:
            while not stop.wait(TICK_S):
                try:
                    with self.metrics.ticks.time():
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
        store = self.backend.store
        self._care_for_batches(store.due_for_care("batch", MOST_BATCHES, CARE_S))
        self._where_there_is_room(self._feeder.feed)
        jobs_s = min(JOBS_S, self._lease.sweep)
        if self._is_due("jobs", jobs_s):
            jobs = store.due_for_care("job", MOST_JOBS, jobs_s / 2).ids
            self._care(jobs)
            self._where_there_is_room(lambda: self._feed_jobs(jobs))
        if self._is_due("lost", self._lease.sweep):
            self._requeue_lost()
        if self._is_due("files", FILES_S):
            sweep_files(self.backend, store.expired_files(time.time()))
            self._later("uploads", _sweep_uploads)  # One may have thousands of parts.
        if self._is_due("broken", BROKEN_S):
            self._later("broken uploads", _sweep_broken_uploads)
            self._later("segments", _sweep_segments)
            self._later("retired models", _forget_retired)
        if self._is_due("webhooks", WEBHOOKS_S):
            self._deliverer.tick()

    def _is_due(self, name: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + interval
        return True

    def _where_there_is_room(self, action: Callable[[], object]) -> None:
        """Begin more work, or leave it for a moment while Redis' memory is full: what is in hand must go on then."""
        if time.monotonic() < self._more_at:
            return
        try:
            action()
        except OutOfMemoryError as error:
            log.warning("no work is queued: Redis' memory is full: %s", error)
            self._more_at = time.monotonic() + RETRY_S

    def _feed_jobs(self, job_ids: Sequence[str]) -> None:
        """Put into RQ again what has come back in line; jobs wait for no turn."""
        for job_id, shards in zip(job_ids, self.backend.shards.feed(job_ids, 1), strict=True):
            if shards:
                job = self.backend.store.batch(job_id)
                model = job.model or ""
                forget_shards(self.backend.redis, "job", model, job_id, shards)
                enqueue_jobs(self.backend.store, model, [(job_id, job.priority)])

    def _care_for_batches(self, look: Look) -> None:
        if not look.ids:
            return
        self._care(look.ids)
        standing, now = progress_of(self.backend.store, look.ids), time.time()
        self._where_there_is_room(lambda: self.backend.lineups.note(standing))
        self._where_there_is_room(lambda: self._watch({batch.id for batch in standing if batch.queued}))
        idle = (batch for batch in standing if batch.status == "in_progress" and not batch.queued + batch.leased)
        self.backend.store.let_rest(look, {batch.id: min(now + REST_S, batch.expires_at) for batch in idle})

    def _care(self, batch_ids: Sequence[str]) -> None:
        tended = self.backend.shards.tend(batch_ids, self.backend.settings.max_attempts)
        for batch_id, batch in zip(batch_ids, tended, strict=True):
            if batch is None:
                self.backend.lineups.forget(batch_id)
                self.backend.store.forget_active(batch_id)
            else:
                self._act(batch_id, batch)

    def _act(self, batch_id: str, batch: Tended) -> None:
        self.metrics.lapsed_leases.inc(len(batch.back))
        if batch.back:
            log.warning("batch %s: %d shards lost their worker and are queued again", batch_id, len(batch.back))
        if batch.status == "validating":
            self._later(batch_id, _validate)
        elif batch.closing is not None and batch.status not in ENDED:
            self._later(batch_id, _drop_and_wind_up)
        elif batch.status != "in_progress":
            self._later(batch_id, end_batch)
        elif batch.spent:
            self._later(batch_id, _give_up(batch.spent))

    def _requeue_lost(self) -> None:
        """Find shards that have been fed, but for a while have neither waited in RQ nor been claimed.

        Their RQ job was deleted, or whoever was to queue or to claim it died.
        """
        now = time.monotonic()
        missing: dict[tuple[str, int], float] = {}
        jobs: set[str] = set()
        for kind in KINDS:
            self._where_there_is_room(partial(self.backend.store.remember_care, kind))
            ids = self._watched() if kind == "batch" else self.backend.store.active(kind)
            queued = dict(zip(ids, self.backend.shards.queued(ids), strict=True))
            if kind == "batch":
                idle = [batch_id for batch_id, shards in queued.items() if not shards]
                self.backend.store.end_feeding(idle, self._lease.whole)
            else:
                jobs |= queued.keys()
            keys = [(batch_id, shard) for batch_id, shards in queued.items() for shard in shards]
            present = queued_job_ids(self.backend.redis, kind) if keys else set()
            missing |= {key: self._missing_since.get(key, now) for key in keys if rq_job_id(*key) not in present}
        self._missing_since = missing
        lost: dict[str, list[int]] = {}
        for (batch_id, shard), since in missing.items():
            if now - since >= self._lease.missing:
                lost.setdefault(batch_id, []).append(shard)
        for batch_id, shards in lost.items():
            if batch_id not in jobs:  # They stand in no line, and are all looked at every second anyway.
                self.backend.store.look_at(batch_id)
            back = self.backend.shards.requeue(batch_id, shards)
            log.warning("batch %s: %d queued shards were lost from RQ and are queued again", batch_id, len(back))

    def _watch(self, batch_ids: set[str]) -> None:
        """Have batches watched whose shards were queued by a version that did not say so, or in a crash of Redis."""
        if batch_ids - self._fed:
            self.backend.store.begin_feeding(batch_ids - self._fed)
            self._fed |= batch_ids

    def _watched(self) -> list[str]:
        """The batches that were fed. Who fed them lately may have died before it asked for a look at them."""
        ids, lately = self.backend.store.fed(), self.backend.store.fed_within(2 * self._lease.sweep)
        self._fed = set(ids)
        if lately:
            self.backend.store.look_at(*lately)
        return ids

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


def _validate(backend: Backend, batch_id: str) -> None:
    validate_batch(backend, batch_id)
    if backend.store.batch(batch_id).kind == "batch":  # A job stands in no line.
        backend.store.look_at(batch_id)  # It may be fed now.


def _sweep_uploads(backend: Backend, _: str) -> None:
    sweep_uploads(backend, time.time())


def _sweep_broken_uploads(backend: Backend, _: str) -> None:
    sweep_broken_uploads(backend)


def _sweep_segments(backend: Backend, _: str) -> None:
    sweep_segments(backend)


def _forget_retired(backend: Backend, _: str) -> None:
    for model in forget_retired(backend):
        log.info("model %s: nobody has served it for a day and nothing waits for it; it is forgotten", model)


def _drop_and_wind_up(backend: Backend, batch_id: str) -> None:
    batch = backend.store.batch(batch_id)
    forget_shards(backend.redis, batch.kind, batch.model or "", batch_id, *backend.shards.queued([batch_id]))
    wind_up(backend, batch_id)


def _give_up(shards: Sequence[int]) -> Task:
    def give_up(backend: Backend, batch_id: str) -> None:
        for shard in shards:
            log.error("batch %s: shard %d came to nothing too often; lines of it fail", batch_id, shard)
            give_up_on(backend, batch_id, shard)

    return give_up
