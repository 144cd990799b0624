"""The line of batches that wait for one model's workers, and what their tenants were given of these: the policy's
arguments, kept in Redis.

Nothing here decides what is run exactly once. It is told again whenever a batch is looked at, so that what a dying
process left untold is told by the next look. Knows nothing of RQ, nor of other models (`lineups.py`).

| key | what |
|---|---|
| `pressrun:ready:{model}` | batches with waiting shards, as one line of text each |
| `pressrun:flow-times:{model}` | virtual times of flows |
| `pressrun:floors:{model}` | by priority, where a flow starts that was idle |
| `pressrun:bills` | by batch: tokens that were charged for it, and where it started among its tenant's |

An earlier version had one line for all models, under the same names without one. What it says is left behind: batches
come into their model's line at the next look, and tenants start level there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from .fields import as_text
from .forecast import Forecast, Foreseen
from .policy import Candidate, Flow, Ledgers
from .progress import Progress
from .store import Store
from .trips import Trip

BILLS = "pressrun:bills"
BUSY_SHARE = 0.05  # Of a process' time goes into reading the line, so that a long one is read less often.


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Who waited for a model at `read_at`, by `time.time()`; `rate` and `num_workers` are of its workers.

    `ahead` tokens were fed before and have not finished.
    """

    candidates: tuple[Candidate, ...]
    ledgers: Ledgers
    rate: float
    num_workers: int
    ahead: float
    read_at: float

    def forecast(self) -> Forecast:
        return Forecast(self.candidates, self.ledgers, rate=self.rate, now=self.read_at, ahead=self.ahead)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the line, as it lies in Redis with its bill, and what it says."""

    row: bytes
    bill: bytes | None
    candidate: Candidate
    tokens_out: float


class Lineup:
    """Of one model. Thread-safe."""

    def __init__(self, store: Store, model: str) -> None:
        self.model = model
        self._store = store
        self._redis = store.redis
        self._ready = ready_key(model)
        self._times, self._floors = model_keys(model)
        self._lock = Lock()
        self._line: Line | None = None
        self._forecast: Forecast | None = None
        self._read_again_at = 0.0
        self._entries: dict[bytes, _Entry] = {}

    def note(self, batches: Iterable[Progress], starts: Mapping[str, float] | None = None) -> None:
        """Put batches into the line or take them out, as they stand, and charge what they owe."""
        batches = list(batches)
        ready = {batch.id: _packed(batch) for batch in batches if batch.in_line}
        gone = [batch.id for batch in batches if not batch.in_line]
        trip = Trip(self._redis)
        if ready:
            trip.pipe.hset(self._ready, mapping=ready)  # type: ignore[arg-type]
        if gone:
            trip.pipe.hdel(self._ready, *gone)
        self._bill(batches, starts or {}, trip)
        trip.go()

    def raise_floors(self, floors: Mapping[int, float]) -> None:
        """Say where flows of each priority start that were idle; what is said to be lower than it was is not heard."""
        args = [part for floor in floors.items() for part in floor]
        self._store.scripts["bill"](keys=[self._times, self._floors, BILLS], args=[len(floors), *args])

    def settle(self, batch: Progress) -> None:
        """Charge an ended batch for what it has really used, and forget it."""
        trip = Trip(self._redis)
        self._bill([batch], {}, trip)
        trip.go()
        self.forget(batch.id)

    def forget(self, batch_id: str) -> None:
        """A batch that is over, or gone, has no place in the line."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hdel(self._ready, batch_id)
        pipe.hdel(BILLS, batch_id)
        pipe.execute()

    def read(self) -> Line:
        """The line as it was a moment ago; the longer it takes to read, the less often it is read."""
        with self._lock:
            if self._line is None or time.monotonic() >= self._read_again_at:
                started = time.monotonic()
                self._line, self._forecast = self._read(), None
                now = time.monotonic()
                self._read_again_at = now + (now - started) / BUSY_SHARE
            return self._line

    def read_anew(self) -> None:
        """Have the next `read` look again."""
        with self._lock:
            self._line = None

    def forecast(self) -> Forecast:
        """When the batches in line will end, as far as can be told now."""
        line = self.read()
        with self._lock:
            if self._forecast is None or self._line is not line:
                started = time.monotonic()
                self._forecast = line.forecast()
                self._read_again_at += (time.monotonic() - started) / BUSY_SHARE
            return self._forecast

    def foresee(self, candidate: Candidate) -> Foreseen | None:
        """The forecast of a batch that is not in line yet, if it takes away no deadline that another one will meet."""
        line = self.read()
        others = [other for other in line.candidates if other.id != candidate.id]
        without = replace(line, candidates=tuple(others)).forecast()
        joined = replace(line, candidates=(*others, candidate)).forecast()
        return joined.of(candidate.id) if joined.num_met > without.num_met else joined.by_share(candidate.id)

    def _bill(self, batches: Sequence[Progress], starts: Mapping[str, float], trip: Trip) -> None:
        owing = [batch for batch in batches if batch.tokens_owed > 0]
        if not owing:
            return
        weights = tenant_weights(self._store)
        args: list[Any] = [0]
        for batch in owing:
            flow = f"{batch.priority} {batch.tenant}"
            weight, start = weights.get(batch.tenant, 1.0), starts.get(batch.id, 0.0)
            args += [batch.id, flow, batch.priority, weight, batch.tokens_owed, start]
        trip.add(self._store.scripts["bill"], keys=[self._times, self._floors, BILLS], args=args)

    def _read(self) -> Line:
        pipe = self._redis.pipeline(transaction=False)
        for key in (self._ready, self._times, self._floors):
            pipe.hgetall(key)
        ready, times, floors = pipe.execute()
        bills = dict(zip(ready, self._redis.hmget(BILLS, list(ready)), strict=True)) if ready else {}
        self._entries = {key: self._entry(key, value, bills.get(key)) for key, value in ready.items()}
        speed = self._store.speed(self.model)
        return Line(
            candidates=tuple(entry.candidate for entry in self._entries.values()),
            ledgers=Ledgers(
                times={_flow(as_text(key)): float(value) for key, value in times.items()},
                floors={int(key): float(value) for key, value in floors.items()},
                weights=tenant_weights(self._store),
            ),
            rate=speed.tokens_per_s,
            num_workers=speed.num_workers,
            ahead=sum(entry.tokens_out for entry in self._entries.values()),
            read_at=time.time(),
        )

    def _entry(self, key: bytes, row: bytes, bill: bytes | None) -> _Entry:
        """What a row says. Most say what they did before, and thousands are not taken apart at every look."""
        before = self._entries.get(key)
        if before is not None and (before.row, before.bill) == (row, bill):
            return before
        fields = (as_text(key), *as_text(row).split(" ", 6))
        return _Entry(row, bill, _candidate(fields, bill), float(fields[6]))


def model_keys(model: str) -> tuple[str, str]:
    """What is kept of a model's tenants: virtual times, and floors."""
    return f"pressrun:flow-times:{model}", f"pressrun:floors:{model}"


def ready_key(model: str) -> str:
    """Where the batches stand that wait for a model."""
    return f"pressrun:ready:{model}"


def tenant_weights(store: Store) -> Mapping[str, float]:
    """The weights of tenants that have one; the others weigh 1."""
    return store.tenants.weights()


def _packed(batch: Progress) -> str:
    numbers = (batch.priority, batch.created_at, batch.expires_at, batch.waiting)
    # The tenant comes last: its name may hold spaces.
    return " ".join(map(str, (*numbers, f"{batch.shard_tokens:.1f}", f"{batch.tokens_out:.1f}", batch.tenant)))


def _candidate(row: Sequence[str], bill: bytes | None) -> Candidate:
    batch_id, priority, created_at, expires_at, waiting, shard_tokens, _, tenant = row
    return Candidate(
        id=batch_id,
        tenant=tenant,
        priority=int(priority),
        created_at=int(created_at),
        expires_at=int(expires_at),
        num_shards=int(waiting),
        shard_tokens=float(shard_tokens),
        had=sum(map(float, bill.split())) if bill else None,
    )


def _flow(text: str) -> Flow:
    priority, _, tenant = text.partition(" ")
    return int(priority), tenant
