"""The shards in hand: their leases, the results on their way to the store, and sealing.

The store's word is final: a shard that it says is lost is let go at once, with all that was not stored.
Knows nothing of RQ or of engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from ..jobs.backend import Backend
from ..jobs.records import Claim, LineResult
from ..jobs.sealing import seal_shard
from .metrics import WorkerMetrics
from .patience import Patiently
from .shard import RunningShard, ShardKey, Ticket
from .waker import Waker

log = logging.getLogger(__name__)
SEAL_THREADS = 4
SEAL_RETRY_S = 2.0
COMMIT_LINES = 1000  # Most lines in one round trip.


class Ledger:
    """To be used from one thread. `patiently` runs a Redis call until it is answered."""

    def __init__(self, backend: Backend, waker: Waker, patiently: Patiently, metrics: WorkerMetrics) -> None:
        self._backend = backend
        self._waker = waker
        self._patiently = patiently
        self._metrics = metrics
        self._shards: dict[ShardKey, RunningShard] = {}
        self._dirty: dict[ShardKey, RunningShard] = {}
        self._dirty_since = 0.0
        self._held_at, self._held_at_date = time.monotonic(), time.time()
        self._sealers = ThreadPoolExecutor(max_workers=SEAL_THREADS, thread_name_prefix="sealing")
        self._sealed: SimpleQueue[tuple[RunningShard, bool]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[RunningShard]:
        return iter(list(self._shards.values()))

    def find(self, key: ShardKey) -> RunningShard | None:
        return self._shards.get(key)

    def open(self, claim: Claim, ticket: Ticket, num_lines: int) -> RunningShard:
        """Enter a claimed shard with so many lines to run. One without any is sealed at the next `commit`."""
        shard = RunningShard(claim=claim, ticket=ticket, num_left=num_lines)
        assert shard.key not in self._shards
        self._shards[shard.key] = shard
        if not shard.num_left:
            self._mark(shard)
        return shard

    def enter(self, shard: RunningShard, result: LineResult) -> None:
        """Note a finished line; one of a shard that has been let go is dropped."""
        if shard.stage == "running":
            shard.finished.append(result)
            shard.num_left -= 1
            self._mark(shard)

    def commit(self, *, now: bool = False) -> list[RunningShard]:
        """Store what is due, in groups. Returns the shards that turn out to be lost."""
        interval = self._backend.settings.commit_interval_s / 2  # Beside the time that the loop waits.
        if not self._dirty or not (now or time.monotonic() - self._dirty_since >= interval):
            return []
        lost = []
        while self._dirty:
            lost += self._commit_group(self._next_group())
        return lost

    def hold(self, taking: Sequence[Claim] = (), *, now: bool = False) -> list[RunningShard]:
        """Renew the leases, and those of the claims in `taking`, if it is time.

        Returns the shards that are lost, or no longer to be run. What `taking` has lost it finds out once it is here.
        """
        lease = self._backend.settings.lease
        if not (now or time.monotonic() - self._held_at >= lease.renewal or self._one_has_expired()):
            return []
        self._held_at, self._held_at_date = time.monotonic(), time.time()
        shards = list(self._shards.values())
        claims = [*(shard.claim for shard in shards), *taking]
        if not claims:
            return []
        held = self._patiently(lambda: self._backend.shards.hold(claims, lease.hold))
        # Sealing goes on whatever the batch's status: it is fenced by itself.
        return [shard for shard, mine in zip(shards, held, strict=False) if not mine and shard.stage == "running"]

    def sealed(self) -> list[RunningShard]:
        """Shards that have been sealed since the last call; they are no longer in the ledger."""
        done = []
        try:
            while True:
                shard, succeeded = self._sealed.get_nowait()
                if shard.stage == "gone":
                    continue
                if succeeded:
                    self._metrics.sealed_shards.inc()
                    self.let_go(shard)
                    done.append(shard)
                else:
                    shard.stage = "running"  # Nothing of it runs: another commit finds it complete again.
                    self._mark(shard)
        except Empty:
            return done

    def let_go(self, shard: RunningShard) -> None:
        """Forget a shard, and what has not been stored of it."""
        shard.stage = "gone"
        shard.finished.clear()
        self._dirty.pop(shard.key, None)
        del self._shards[shard.key]

    def release(self, shard: RunningShard, *, count_attempt: bool) -> None:
        """Hand a shard back to be run by someone else, now."""
        self._patiently(lambda: self._backend.shards.release(shard.claim, count_attempt=count_attempt))

    def close(self) -> None:
        """Wait for the seals under way; `sealed` gives them."""
        self._sealers.shutdown(cancel_futures=True)

    def _one_has_expired(self) -> bool:
        """Whether a batch's window has closed since the leases were renewed, as far as this host's clock can tell."""
        since, until = self._held_at_date, time.time()
        return any(since < shard.claim.batch.expires_at <= until for shard in self._shards.values())

    def _mark(self, shard: RunningShard) -> None:
        if not self._dirty:
            self._dirty_since = time.monotonic()
        self._dirty[shard.key] = shard

    def _next_group(self) -> list[RunningShard]:
        group: list[RunningShard] = []
        num_lines = 0
        while self._dirty and num_lines < COMMIT_LINES:
            key = next(iter(self._dirty))
            group.append(self._dirty.pop(key))
            num_lines += len(group[-1].finished)
        return group

    def _commit_group(self, group: list[RunningShard]) -> list[RunningShard]:
        commits = [shard.commit() for shard in group]
        replies = self._patiently(lambda: self._backend.shards.commit(commits))
        lost = []
        for shard, reply in zip(group, replies, strict=True):
            if reply != "lost":
                self._metrics.note_committed(shard.finished)
            shard.begun = shard.begun or bool(shard.finished)
            shard.finished.clear()
            if reply == "ok" and not shard.num_left:
                # All that was to be run is stored, and yet lines are missing: only a portion was tried, or a crash of
                # Redis took some back.
                self.release(shard, count_attempt=True)
                lost.append(shard)
            elif reply == "lost":
                lost.append(shard)
            elif reply == "complete":
                shard.stage = "sealing"
                self._sealers.submit(self._seal, shard)
        return lost

    def _seal(self, shard: RunningShard) -> None:
        try:
            seal_shard(self._backend, shard.claim)
            if self._backend.shards.release(shard.claim, count_attempt=True):
                log.warning("batch %s: shard %d lost lines in a crash of Redis and runs again", *shard.key)
            succeeded = True
        except Exception:
            # The edge of a thread: a full disk or a lost connection; what is to be sealed lies in the store.
            log.exception("batch %s: shard %d could not be sealed and will be tried again", *shard.key)
            succeeded = False
            time.sleep(SEAL_RETRY_S)
        self._sealed.put((shard, succeeded))
        self._waker.wake()
