"""The shards of a batch: waiting, queued, leased, sealed; who holds them, and what has been committed.

A shard is in exactly one of `waiting` (to be fed), `queued` (fed to RQ), `leased` (claimed) and `sealed`. The claim's
owner id fences every write: whoever has lost the shard can neither commit, nor renew, nor seal. A line enters the
spool once (`HSETNX`), and the counters are incremented in the same script by exactly what was written. Leases are told
by Redis' clock, so that hosts need not agree on theirs. Knows nothing of RQ, blobs or what a line says.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .fields import as_text, parse_batch
from .ids import owner_id
from .records import (
    Batch,
    BatchStatus,
    Claim,
    Closing,
    Counts,
    ErrorCount,
    LineError,
    LineResult,
    Outcome,
    Segment,
    Shard,
    ShardCommit,
    Usage,
)
from .redis_keys import ACTIVE, CARE, ENDS, batch_key
from .store import Store
from .trips import Trip

CommitReply = Literal["ok", "complete", "lost"]
SealReply = Literal["ok", "last", "lost"]
DropReply = Literal["first", "again", "open"]
CODES: dict[Outcome, str] = {"succeeded": "s", "failed": "f", "unrun": "u"}
DRAFT_TTL_S = 3600
KEPT_SHARD = 99_999_999  # Beyond all others, however they are cut.
MANY = 2**31
ERROR_KINDS = 32  # So many kinds of errors are told apart in one batch.
MAX_PARAM, MAX_MESSAGE = 64, 300
_PARTS = ("shards", "waiting", "queued", "leased", "owners", "attempts", "sealed")


def shard_keys(batch_id: str, *parts: str) -> list[str]:
    base = batch_key(batch_id)
    return [base if part == "batch" else f"{base}:{part}" for part in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """How a batch stands: `back` lost their worker and wait again; `spent` are not to be tried any more."""

    status: BatchStatus
    closing: Closing | None
    back: tuple[int, ...]
    spent: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Results of an earlier generation that stay as they are: their segment, if there are any, and their counters."""

    segment: Segment | None
    counts: Counts
    errors: tuple[ErrorCount, ...]


class Shards:
    """What workers and housekeeping do with shards. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.redis = store.redis
        self.scripts = store.scripts

    # Before they run

    def begin(
        self,
        batch_id: str,
        shards: Sequence[Shard],
        *,
        model: str,
        total: int,
        arranged: bool = False,
        estimated_tokens: int = 0,
        generation: int = 0,
        kept: Kept | None = None,
    ) -> bool:
        """Write down a validated batch\'s shards and let it run. A second time changes nothing, and says False."""
        draft = owner_id()
        shards_draft, waiting_draft = shard_keys(batch_id, f"shards:{draft}", f"waiting:{draft}")
        pipe = self.redis.pipeline(transaction=True)  # Drafts without their expiry would stay for ever.
        for start in range(0, len(shards), 1000):
            part = shards[start : start + 1000]
            fields: dict[Any, Any] = {str(s.index): f"{s.first_line}:{s.num_lines}:{s.offset}:{s.size}" for s in part}
            pipe.hset(shards_draft, mapping=fields)
            pipe.zadd(waiting_draft, {str(s.index): s.index for s in part})
        pipe.expire(shards_draft, DRAFT_TTL_S)
        pipe.expire(waiting_draft, DRAFT_TTL_S)
        pipe.execute()
        keys = [*shard_keys(batch_id, "batch", "shards", "waiting", "sealed"), shards_draft, waiting_draft]
        num_shards = len(shards) + (kept is not None and kept.segment is not None)
        lines_per_shard = sum(shard.num_lines for shard in shards) / len(shards)
        args: list[Any] = [int(time.time()), total, num_shards, model, int(arranged), estimated_tokens]
        args += [lines_per_shard, generation, *(_kept_args(kept) if kept else ())]
        return self.scripts["begin"](keys=keys, args=args) is not None

    def feed(self, batch_ids: Sequence[str], window: int) -> list[list[int]]:
        """Move waiting shards to queued until `window` of a batch are queued; the caller puts them into RQ."""
        return self._feed([(batch_id, window, window) for batch_id in batch_ids])

    def draw(self, wanted: Iterable[tuple[str, int]]) -> list[list[int]]:
        """Move so many waiting shards of each batch to queued, if there are any; the caller puts them into RQ."""
        return self._feed([(batch_id, MANY, number) for batch_id, number in wanted])

    def _feed(self, wanted: Iterable[tuple[str, int, int]]) -> list[list[int]]:
        trip = Trip(self.redis)
        for batch_id, most_queued, number in wanted:
            self._run("feed", trip, shard_keys(batch_id, "batch", "waiting", "queued"), [most_queued, number])
        return [[int(raw) for raw in reply] for reply in trip.go()]

    def tend(self, batch_ids: Sequence[str], max_attempts: int) -> list[Tended | None]:
        """Put shards with a lapsed lease back in line, and say how the batches stand; None where there is none."""
        trip = Trip(self.redis)
        for batch_id in batch_ids:
            self._run(
                "tend", trip, shard_keys(batch_id, "batch", "waiting", "leased", "owners", "attempts"), [max_attempts]
            )
        return [None if reply is None else _tended(*reply) for reply in trip.go()]

    def queued(self, batch_ids: Sequence[str]) -> list[list[int]]:
        """Shards that were fed and have not been claimed since."""
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipe.zrange(shard_keys(batch_id, "queued")[0], 0, -1)
        return [[int(raw) for raw in reply] for reply in pipe.execute()]

    def requeue(self, batch_id: str, lost: Iterable[int]) -> list[int]:
        """Put queued shards that RQ has lost back in line; those that were claimed meanwhile stay where they are."""
        return [
            int(raw) for raw in self.scripts["requeue"](keys=shard_keys(batch_id, "waiting", "queued"), args=[*lost])
        ]

    def num_leased(self, batch_id: str) -> int:
        """How many shards workers have in hand."""
        (key,) = shard_keys(batch_id, "leased")
        return int(self.redis.zcard(key))

    def unsealed(self, batch_id: str) -> list[int]:
        """Shards that are not in the blob store yet, in order."""
        geometry, sealed = shard_keys(batch_id, "shards", "sealed")
        return sorted({int(raw) for raw in self.redis.hkeys(geometry)} - {int(r) for r in self.redis.hkeys(sealed)})

    def attempts(self, batch_id: str) -> dict[int, int]:
        """Claims of each shard since it last finished a line."""
        (key,) = shard_keys(batch_id, "attempts")
        return {int(shard): int(count) for shard, count in self.redis.hgetall(key).items()}

    def attempts_of(self, batch_id: str, shard: int) -> int:
        """Claims of one shard since it last finished a line."""
        (key,) = shard_keys(batch_id, "attempts")
        return int(self.redis.hget(key, str(shard)) or 0)

    # While they run

    def claim(self, batch_id: str, shard: int, owner: str, lease_s: float, *, winding_up: bool = False) -> Claim | None:
        """Take a shard, whoever had it. None if it is not to be run (sealed, or the batch is not running).

        `winding_up` claims for filling in what never ran, whatever the batch's status.
        """
        return self._claim(batch_id, shard, owner, lease_s, int(winding_up), "")  # type: ignore[return-value]

    def claim_unless_suspect(
        self, batch_id: str, shard: int, owner: str, lease_s: float, suspect_from: int
    ) -> Claim | Literal["suspect"] | None:
        """The same, but for a shard that was claimed in vain `suspect_from` times: that one stays as it is."""
        return self._claim(batch_id, shard, owner, lease_s, 0, suspect_from)

    def _claim(self, batch_id: str, shard: int, owner: str, *args: Any) -> Claim | Literal["suspect"] | None:
        keys = [
            *shard_keys(batch_id, "batch", "shards", "waiting", "queued", "leased", "owners", "attempts", "sealed"),
            *shard_keys(batch_id, f"spool:{shard}"),
        ]
        reply = self.scripts["claim"](keys=keys, args=[shard, owner, *args])
        if not reply:
            return None if reply is None else "suspect"
        geometry, attempts, done, fields = reply
        return Claim(
            batch=parse_batch(dict(zip(fields[::2], fields[1::2], strict=True))),
            shard=parse_shard(shard, geometry),
            owner=owner,
            done=frozenset(int(index) for index in done),
            attempts=int(attempts),
        )

    def hold(self, claims: Sequence[Claim], lease_s: float) -> list[bool]:
        """Renew leases. False where the shard is no longer the caller's, or no longer to be run."""
        trip = Trip(self.redis)
        for claim in claims:
            keys = shard_keys(claim.batch.id, "batch", "leased", "owners")
            self._run("hold", trip, keys, [claim.shard.index, claim.owner, lease_s])
        return [reply == 1 for reply in trip.go()]

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        """Hand a shard back unfinished; what was committed stays. False if it was lost already."""
        keys = shard_keys(claim.batch.id, "waiting", "leased", "owners", "attempts")
        args: list[Any] = [claim.shard.index, claim.owner, int(count_attempt)]
        return bool(self.scripts["release"](keys=keys, args=args))

    def commit(self, commits: Sequence[ShardCommit]) -> list[CommitReply]:
        """Write results, in one round trip."""
        trip = Trip(self.redis)
        for commit in commits:
            keys = shard_keys(commit.batch_id, "batch", "owners", f"spool:{commit.shard}", "attempts")
            args: list[Any] = [commit.shard, commit.owner, commit.num_lines, ERROR_KINDS]
            self._run("commit", trip, keys, [*args, *_result_args(commit.results)])
        return [as_text(reply) for reply in trip.go()]  # type: ignore[misc]

    # When they are done

    def spool(self, batch_id: str, shard: int) -> list[tuple[int, str, bytes]]:
        """The committed lines of a shard in input order, as (index, outcome code, data)."""
        (key,) = shard_keys(batch_id, f"spool:{shard}")
        spool: dict[Any, Any] = self.redis.hgetall(key)
        lines = sorted((int(index), value) for index, value in spool.items())
        return [(index, value[:1].decode(), value[1:]) for index, value in lines]

    def seal(self, claim: Claim, segment: Segment) -> SealReply:
        """Note that the shard's segment is in the blob store, and drop the spool."""
        shard = claim.shard
        keys = shard_keys(claim.batch.id, "batch", "leased", "owners", "attempts", "sealed", f"spool:{shard.index}")
        args: list[Any] = [shard.index, claim.owner, shard.num_lines, _segment_text(segment), int(time.time())]
        return as_text(self.scripts["seal"](keys=keys, args=args))  # type: ignore[return-value]

    def segments(self, batch_id: str) -> list[tuple[int, Segment]]:
        """The sealed shards, in input order."""
        (key,) = shard_keys(batch_id, "sealed")
        raw: dict[Any, Any] = self.redis.hgetall(key)
        return [(index, parse_segment(value)) for index, value in sorted((int(key), raw[key]) for key in raw)]

    def segment(self, batch_id: str, shard: int) -> Segment | None:
        """The segment of a sealed shard."""
        (key,) = shard_keys(batch_id, "sealed")
        raw = self.redis.hget(key, str(shard))
        return parse_segment(raw) if raw else None  # type: ignore[arg-type]

    def geometry(self, batch_id: str) -> dict[int, Shard]:
        """All shards of a batch by their index."""
        (key,) = shard_keys(batch_id, "shards")
        raw: dict[Any, Any] = self.redis.hgetall(key)
        return {int(index): parse_shard(int(index), value) for index, value in raw.items()}

    def drop(self, batch: Batch) -> DropReply:
        """Forget the shards of an ended batch, and that it needs care; not if it has been opened again."""
        keys = [*shard_keys(batch.id, "batch"), ACTIVE[batch.kind], CARE[batch.kind], ENDS, *self.kept_keys(batch.id)]
        return as_text(self.scripts["drop"](keys=keys, args=[batch.id, batch.generation, batch.kind]))  # type: ignore[return-value]

    def kept_keys(self, batch_id: str) -> list[str]:
        """All that is kept of a batch's shards, but for their spools."""
        return shard_keys(batch_id, *_PARTS)

    def _run(self, name: str, trip: Trip, keys: list[str], args: list[Any]) -> None:
        trip.add(self.scripts[name], keys=keys, args=args)


def parse_shard(index: int, geometry: bytes) -> Shard:
    """A shard from what is kept of it."""
    first_line, num_lines, offset, size = map(int, geometry.split(b":"))
    return Shard(index=index, first_line=first_line, num_lines=num_lines, offset=offset, size=size)


def parse_segment(raw: bytes) -> Segment:
    """A segment from what is kept of it."""
    # Earlier versions wrote fewer fields.
    output, error, errors, writer, *_ = [*as_text(raw).split(":"), "", ""]
    return Segment(output=int(output), error=int(error), errors=int(errors, 16) if errors else None, writer=writer)


def _segment_text(segment: Segment) -> str:
    errors = "" if segment.errors is None else f"{segment.errors:x}"
    return f"{segment.output}:{segment.error}:{errors}:{segment.writer}"


def _tended(status: bytes, closing: bytes, back: list[Any], spent: list[Any]) -> Tended:
    return Tended(
        status=as_text(status),  # type: ignore[arg-type]
        closing=as_text(closing) or None,  # type: ignore[arg-type]
        back=tuple(map(int, back)),
        spent=tuple(map(int, spent)),
    )


def _kept_args(kept: Kept) -> tuple[Any, ...]:
    segment, counts = kept.segment, kept.counts
    counters: dict[str, Any] = {}
    for place, error in enumerate(kept.errors):
        kind, message = _error_args(LineError(code=error.code, message=error.message, param=error.param))
        kind = kind if place < ERROR_KINDS else "other"
        counters[f"error:{kind}:"] = counters.get(f"error:{kind}:", 0) + error.count
        counters.setdefault(f"first-error:{kind}:", message)
    sizes = f"{segment.output}:{segment.error}" if segment else ""
    pairs = [part for pair in counters.items() for part in pair]
    return (KEPT_SHARD, sizes, counts.completed, counts.failed, counts.unrun, len(counters) // 2, *pairs)


def _result_args(results: Sequence[LineResult]) -> list[Any]:
    """Few for each line: every argument of a script costs more than the bytes in it."""
    args: list[Any] = [len(results)]
    for result in results:
        args += (result.index, CODES[result.outcome].encode() + result.data)
    args += [_tokens(result.usage) for result in results]
    for place, result in enumerate(results, start=1):
        if result.error is not None:
            args += (place, *_error_args(result.error))
    return args


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens} {usage.cached_tokens} {usage.output_tokens} {usage.reasoning_tokens}"


def _error_args(error: LineError) -> tuple[str, str]:
    """The kind of an error and its message, as short as a counter's name should be."""
    kind = f"{error.code} {error.param or ''}"[:MAX_PARAM]
    # Half of a surrogate pair has no place in Redis.
    return kind.encode(errors="replace").decode(), error.message[:MAX_MESSAGE].encode(errors="replace").decode()
