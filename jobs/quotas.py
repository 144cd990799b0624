"""What a tenant's batches and jobs hold of its limits: places among the active ones, and tokens that they may need.

What a batch holds stands under its id, so that taking it twice is taking it once and giving it back twice is giving it
back once; there is no counter that a death could leave wrong. Whoever ends a batch gives back what it held before the
batch is forgotten by housekeeping, so that a death in between only delays it. And nobody is refused for what is held by
a batch that has ended: before a refusal, those are looked for.

| key | what |
|---|---|
| `pressrun:held:{tenant}` | a hash: the tenant's active batches and jobs → `{kind}:{tokens}:{time}` |

Knows nothing of how tokens are counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .errors import QuotaExceeded
from .records import ENDED, Batch, BatchError, BatchKind
from .redis_keys import batch_key
from .store import Store
from .tenants import TENANTS, limit_field
from .trips import Trip

# A batch that is not there has ended, or is being created by a process that will not take so long.
CREATION_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a tenant holds now."""

    num_batches: int
    num_jobs: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Full:
    """There is no room: `limit` is what may be held, `held` what others of the tenant's hold."""

    limit: int
    held: int


class Quotas:
    """Taking and giving back. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.redis = store.redis

    def open_batch(self, tenant: str, batch_id: str) -> None:
        """Take a place for a batch that is to be created, or raise QuotaExceeded."""
        full = self._take(tenant, batch_id, "batch", 0, "max_active_batches")
        if full is not None:
            message = f"{full.held} batches of yours have not ended; at most {full.limit} may be active at a time."
            raise QuotaExceeded(message, code="active_batch_limit_exceeded")

    def open_job(self, tenant: str, job_id: str, model: str, tokens: int) -> None:
        """Take the tokens of a job that is to be created, or raise QuotaExceeded."""
        full = self._take(tenant, job_id, "job", tokens, "max_enqueued_tokens")
        if full is not None:
            raise QuotaExceeded(_reached(model, tenant, full, tokens), code="token_limit_exceeded")

    def add_open_job(self, trip: Trip, tenant: str, job_id: str, tokens: int) -> None:
        """Take the tokens of a job as a part of a trip. A reply means no room, if nothing has ended (`open_job`)."""
        self._add(trip, tenant, job_id, "job", tokens, "max_enqueued_tokens")

    def take_tokens(self, batch: Batch, model: str, tokens: int) -> BatchError | None:
        """Take the tokens of a batch that has been read; otherwise, what it is to fail with."""
        full = self._take(batch.tenant, batch.id, batch.kind, tokens, "max_enqueued_tokens")
        if full is None:
            return None
        return BatchError(code="token_limit_exceeded", message=_reached(model, batch.tenant, full, tokens))

    def give_back(self, tenant: str, batch_id: str) -> None:
        """A batch or job has ended, or has not been created after all."""
        self.redis.hdel(_held(tenant), batch_id)

    def held(self, tenant: str) -> Held:
        """What the tenant holds now, without what batches hold that have ended."""
        self._drop_ended(tenant)
        everything: Any = self.redis.hvals(_held(tenant))
        values = [raw.decode().split(":") for raw in everything]
        num_jobs = sum(kind == "job" for kind, _, _ in values)
        tokens = sum(int(tokens) for _, tokens, _ in values)
        return Held(num_batches=len(values) - num_jobs, num_jobs=num_jobs, tokens=tokens)

    def _take(self, tenant: str, batch_id: str, kind: BatchKind, tokens: int, limit: str) -> _Full | None:
        full = self._try(tenant, batch_id, kind, tokens, limit)
        if full is not None and self._drop_ended(tenant):
            full = self._try(tenant, batch_id, kind, tokens, limit)
        return full

    def _try(self, tenant: str, batch_id: str, kind: BatchKind, tokens: int, limit: str) -> _Full | None:
        trip = Trip(self.redis)
        self._add(trip, tenant, batch_id, kind, tokens, limit)
        (reply,) = trip.go()
        return None if reply is None else _Full(limit=int(reply[0]), held=int(reply[1]))

    def _add(self, trip: Trip, tenant: str, batch_id: str, kind: BatchKind, tokens: int, limit: str) -> None:
        what = "tokens" if limit == "max_enqueued_tokens" else "batches"
        args: list[Any] = [batch_id, kind, int(time.time()), tokens, limit_field(limit, tenant), what]
        trip.add(self.store.scripts["quota"], keys=[TENANTS, _held(tenant)], args=args)

    def _drop_ended(self, tenant: str) -> bool:
        """Give back what ended batches hold; whether there was any."""
        held: dict[Any, Any] = self.redis.hgetall(_held(tenant))
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in held:
            pipe.hget(batch_key(batch_id.decode()), "status")
        oldest = time.time() - CREATION_S
        ended = [
            batch_id
            for (batch_id, value), status in zip(held.items(), pipe.execute(), strict=True)
            if (status.decode() in ENDED if status else int(value.rpartition(b":")[2]) < oldest)
        ]
        return bool(ended) and self.redis.hdel(_held(tenant), *ended) > 0


def _held(tenant: str) -> str:
    return f"pressrun:held:{tenant}"


def _reached(model: str, tenant: str, full: _Full, tokens: int) -> str:
    """OpenAI's words, and the numbers behind them."""
    return (
        f"Enqueued token limit reached for {model} in organization {tenant}. Limit: {full.limit} enqueued tokens. "
        f"This needs about {tokens}, and {full.held} are enqueued. Try again once some batches have ended."
    )
