"""Files, batches and models in Redis.

Keys of one batch share the hash tag `{batch id}`; every change of a batch's state is one Lua script, so that a
process may die between any two calls. `shards.py` keeps what lies below a batch. Knows nothing of blobs or HTTP.

| key | what |
|---|---|
| `pressrun:file:{id}` | a file's fields |
| `pressrun:files`, `pressrun:batches` | the default tenant's ids in order of creation |
| `pressrun:files:{tenant}`, `pressrun:batches:{tenant}` | those of any other |
| `pressrun:stored:{tenant}` | bytes of each of its files, and their `total` |
| `pressrun:file-expiry` | file ids by the time they expire |
| `pressrun:unfinished-files` | ids of files whose bytes are on their way, by the time they began |
| `pressrun:active:batch`, `:job` | batches and jobs that have not ended, by deadline |
| `pressrun:care:batch`, `:job` | the same, by the time at which housekeeping looks at them next |
| `pressrun:fed` | batches that shards are queued of, by the time when they were fed last |
| `pressrun:{id}` | a batch: its fields, status and counters |
| `pressrun:models` | model cards by worker, with the time of their last heartbeat |
| `pressrun:served` | the time when each model was last served |
| `pressrun:ends` | how many batches and jobs have ended, by kind and status |
| `pressrun:answer-tokens` | by model, how long answers were in the batches that ended last |
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ResponseError

from .errors import Conflict, NotFound, QuotaExceeded, StoreUnavailable
from .ids import new_id
from .records import (
    DEFAULT_TENANT,
    EMBEDDINGS,
    ENDED,
    MOVES,
    Batch,
    BatchError,
    BatchKind,
    BatchStatus,
    Counts,
    ErrorCount,
    File,
    ModelCard,
    Page,
    Speed,
    Tenant,
    Usage,
)
from .tenants import TENANTS, Tenants, limit_field

FILES, BATCHES, MODELS, SERVED = "pressrun:files", "pressrun:batches", "pressrun:models", "pressrun:served"
ACTIVE: dict[BatchKind, str] = {"batch": "pressrun:active:batch", "job": "pressrun:active:job"}
CARE: dict[BatchKind, str] = {"batch": "pressrun:care:batch", "job": "pressrun:care:job"}
ANSWER_TOKENS, ENDS, FED = "pressrun:answer-tokens", "pressrun:ends", "pressrun:fed"
FILE_EXPIRY, UNFINISHED, SEQUENCE = "pressrun:file-expiry", "pressrun:unfinished-files", "pressrun:sequence"
MODEL_TTL_S = 30
KNOWN_S = 86400  # A model that no worker has served for so long is as one that never was.
LEARN = 0.3  # The weight of the newest batch in how long answers are.
DURABLE_WAIT_MS = 3000  # Less than the connection's own time-out of 5 s.


class Scripts:
    """The Lua scripts beside this module, registered once per connection pool.

    Those that bring what is in hand to its end are let through when Redis' memory is full (`allow-oom`), because only
    that empties it again. Those that begin something (`#!lua` alone) are then refused before their first change.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @cached_property
    def _loaded(self) -> dict[str, Script]:
        folder = Path(__file__).parent / "lua"
        return {path.stem: self._redis.register_script(path.read_text()) for path in folder.glob("*.lua")}

    def __getitem__(self, name: str) -> Script:
        return self._loaded[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a housekeeper has taken to look at. `name` is told apart from any other look's at the same batch."""

    name: str
    ids: tuple[str, ...]


def file_key(file_id: str) -> str:
    return f"pressrun:file:{file_id}"


def file_fields(file: File) -> dict[Any, Any]:
    """What is written down of a file."""
    return {name: str(value) for name, value in asdict(file).items() if value is not None}


def batch_key(batch_id: str) -> str:
    return f"pressrun:{{{batch_id}}}"


class Store:
    """Objects that clients see. Thread-safe; every method is one or a few round trips."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.scripts = Scripts(redis)
        self.tenants = Tenants(redis, self.scripts)

    def tenant(self, name: str) -> Tenant:
        """What a tenant gets, and what it may hold at most."""
        return self.tenants.get(name)

    # Files

    def begin_upload(self, file_id: str) -> None:
        """Note that a file's bytes are on their way, so that they are found if its description never follows."""
        self.redis.zadd(UNFINISHED, {file_id: self._now()})

    def broken_uploads(self, older_than_s: float, limit: int = 1000) -> list[str]:
        """Ids of files that were begun so long ago and never came to a description."""
        until = self._now() - older_than_s
        return [_text(raw) for raw in self.redis.zrangebyscore(UNFINISHED, "-inf", until, start=0, num=limit)]

    def add_file(self, file: File, *, limited: bool = False) -> None:
        """Write a file's description; writing the same one again changes nothing.

        `limited` raises QuotaExceeded where its tenant has no room for it: results are written whatever there is.
        """
        keys = [file_key(file.id), file_list(file.tenant), SEQUENCE, FILE_EXPIRY, stored_key(file.tenant), TENANTS]
        expires_at = "" if file.expires_at is None else file.expires_at
        limit = limit_field("max_stored_bytes", file.tenant) if limited else ""
        fields = [part for pair in file_fields(file).items() for part in pair]
        refusal = self.scripts["add_file"](
            keys=[*keys, UNFINISHED], args=[file.id, file.bytes, expires_at, limit, *fields]
        )
        if refusal is not None:
            raise no_room(file, *map(int, refusal))

    def file(self, file_id: str) -> File:
        """The file, or NotFound; an expired file is not found."""
        file = self.known_file(file_id)
        if file is None or (file.expires_at is not None and file.expires_at <= time.time()):
            raise NotFound(f"No such File object: {file_id}", param="id")
        return file

    def known_file(self, file_id: str) -> File | None:
        """What is known of a file, expired or not."""
        fields = self.redis.hgetall(file_key(file_id))
        return _file(fields) if fields else None

    def files(
        self,
        *,
        tenant: str = DEFAULT_TENANT,
        purpose: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
        after: str | None = None,
    ) -> Page[File]:
        """A tenant's files of `purpose` (None: all) beyond the file `after`, at most `limit`."""
        items: list[File] = []
        num_read = max(limit, 99) + 1  # A purpose that few files have is not looked for one by one.
        while True:
            page = self._page(file_list(tenant), num_read, newest_first, after)
            items += [file for file in self._live_files(page) if purpose in (None, file.purpose)]
            if len(items) > limit:
                return Page(items=items[:limit], has_more=True)
            if len(page) < num_read:
                return Page(items=items, has_more=False)
            after = page[-1]

    def _live_files(self, ids: Iterable[str]) -> list[File]:
        """Those of the files that exist and have not expired, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        for file_id in ids:
            pipe.hgetall(file_key(file_id))
        files, now = [_file(fields) for fields in pipe.execute() if fields], time.time()
        return [file for file in files if file.expires_at is None or file.expires_at > now]

    def retire_file(self, file_id: str) -> None:
        """Make a file expire now, or raise NotFound. Its bytes are the caller's to delete."""
        if not self.scripts["retire"](keys=[file_key(file_id), FILE_EXPIRY], args=[file_id, int(time.time())]):
            raise NotFound(f"No such File object: {file_id}", param="id")

    def forget_file(self, file_id: str) -> None:
        """Drop what is known of a file. Harmless where nothing is."""
        raw: Any = self.redis.hget(file_key(file_id), "tenant")
        tenant = DEFAULT_TENANT if raw is None else _text(raw)
        keys = [file_key(file_id), file_list(tenant), FILE_EXPIRY, stored_key(tenant), UNFINISHED]
        self.scripts["forget_file"](keys=keys, args=[file_id])

    def stored_bytes(self, tenant: str) -> int:
        """The bytes of all files of a tenant that were stored since they are counted."""
        return int(self.redis.hget(stored_key(tenant), "total") or 0)

    def inputs_in_use(self) -> set[str]:
        """Ids of the files that batches which have not ended are made of."""
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in self.active("batch"):
            # One that was opened again is also made of what it had come to before.
            pipe.hmget(batch_key(batch_id), "input_file_id", "output_file_id", "error_file_id")
        return {_text(raw) for found in pipe.execute() for raw in found if raw}

    def expired_files(self, now: float, limit: int = 1000) -> list[str]:
        """Ids of files whose time has come."""
        return [_text(raw) for raw in self.redis.zrangebyscore(FILE_EXPIRY, "-inf", now, start=0, num=limit)]

    # Batches

    def create_batch(self, batch: Batch) -> bool:
        """Write a new batch; on return it survives the death of this process and of Redis' (where AOF is on).

        One that is there stays as it is, however far it has come, and the answer is False.
        """
        listed = batch.kind == "batch"
        place: Any = self.redis.incr(SEQUENCE) if listed else None
        pipe = self.redis.pipeline(transaction=False)
        fields = [part for pair in _batch_fields(batch).items() for part in pair]
        self.scripts["create"](keys=[batch_key(batch.id)], args=fields, client=pipe)
        if listed:
            pipe.zadd(_list(BATCHES, batch.tenant), {batch.id: place}, nx=True)
        # Last: what is found here runs.
        pipe.zadd(ACTIVE[batch.kind], {batch.id: batch.expires_at})
        pipe.zadd(CARE[batch.kind], {batch.id: 0})
        is_new: bool = pipe.execute()[0] == 1
        if listed:
            self.make_durable()
        return is_new

    def batch(self, batch_id: str) -> Batch:
        """The batch or job, or NotFound."""
        fields = self.redis.hgetall(batch_key(batch_id))
        if not fields:
            raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
        return parse_batch(fields)

    def batches(self, *, tenant: str = DEFAULT_TENANT, limit: int = 20, after: str | None = None) -> Page[Batch]:
        """A tenant's batches, newest first, beyond the batch `after`; native jobs are not listed."""
        ids = self._page(_list(BATCHES, tenant), limit + 1, True, after)
        pipe = self.redis.pipeline(transaction=False)
        for batch_id in ids[:limit]:
            pipe.hgetall(batch_key(batch_id))
        return Page(items=[parse_batch(fields) for fields in pipe.execute() if fields], has_more=len(ids) > limit)

    def active(self, kind: BatchKind) -> list[str]:
        """Ids of the batches or jobs that have not ended, nearest deadline first."""
        return [_text(raw) for raw in self.redis.zrange(ACTIVE[kind], 0, -1)]

    def is_active(self, batch_id: str) -> bool:
        """Whether a batch or job has not ended, or has not been cleaned up since."""
        return any(self.redis.zscore(key, batch_id) is not None for key in ACTIVE.values())

    def forget_active(self, batch_id: str) -> None:
        """An ended batch or job needs no more care."""
        for key in (*ACTIVE.values(), *CARE.values()):
            self.redis.zrem(key, batch_id)

    def due_for_care(self, kind: BatchKind, most: int, interval_s: float) -> Look:
        """Batches or jobs that nobody has looked at for the interval; now the caller does."""
        name, ids = self.scripts["due"](keys=[CARE[kind]], args=[most, interval_s])
        return Look(name=_text(name), ids=tuple(map(_text, ids)))

    def look_at(self, *batch_ids: str) -> None:
        """Have housekeeping look at batches next. Where this is lost, it does so in its turn."""
        self.scripts["look"](keys=[CARE["batch"]], args=[*batch_ids])

    def let_rest(self, look: Look, until: Mapping[str, float]) -> None:
        """Have nobody look at batches before the given times, unless `look_at` asks for it, or did since `look`."""
        if until:
            args = [look.name, *(part for pair in until.items() for part in pair)]
            self.scripts["rest"](keys=[CARE["batch"]], args=args)

    def begin_feeding(self, batch_ids: Iterable[str]) -> None:
        """Note that shards of batches are about to be fed, so that they are missed if they never come to RQ."""
        ids = list(batch_ids)
        if ids:
            self.scripts["fed"](keys=[FED], args=ids)

    def fed(self) -> list[str]:
        """Batches of which shards were fed and may be queued still."""
        return [_text(raw) for raw in self.redis.zrange(FED, 0, -1)]

    def fed_within(self, seconds: float) -> list[str]:
        """Those that were fed so lately."""
        return [_text(raw) for raw in self.redis.zrangebyscore(FED, int(self._now() - seconds), "+inf")]

    def end_feeding(self, batch_ids: Iterable[str], after_s: float) -> None:
        """Forget that batches were fed of which nothing is queued now, if they were not within `after_s`."""
        ids = list(batch_ids)
        if ids:
            self.scripts["unfeed"](keys=[FED], args=[after_s, *ids])

    def remember_care(self, kind: BatchKind) -> None:
        """Look after all that are active: who made one may have died before it said so."""
        self.redis.zunionstore(CARE[kind], {CARE[kind]: 1, ACTIVE[kind]: 0}, aggregate="MAX")

    def move(self, batch_id: str, to: BatchStatus, *, generation: int | None = None, **fields: str) -> bool:
        """Move a batch along `MOVES`, writing `fields` with it.

        False if it was in a status that forbids it, or is not of the `generation` that is meant. An end is an event,
        whose id is written in the same moment: whoever cares for the ended batch tells of it.
        """
        if to in ENDED:
            fields["event_id"] = new_id("evt_")
        origins = [origin for origin, allowed in MOVES.items() if to in allowed]
        pairs = [part for pair in fields.items() for part in pair]
        meant = "" if generation is None else generation
        args = [to, int(time.time()), ",".join(origins), meant, *pairs]
        was = self.scripts["move"](keys=[batch_key(batch_id)], args=args)
        if was is None:
            raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
        return _text(was) in origins

    def end(self, batch: Batch, to: BatchStatus, files: Iterable[File], **fields: str) -> bool:
        """Move a batch to its end, as `move` does, and show its files in the same moment.

        False if it has ended already, or is of another generation: then nothing of `files` was written down.
        """
        fields["event_id"] = new_id("evt_")
        origins = [origin for origin, allowed in MOVES.items() if to in allowed]
        pairs = [part for pair in fields.items() for part in pair]
        args = [to, int(time.time()), ",".join(origins), batch.generation, len(pairs), *pairs]
        keys = [batch_key(batch.id), file_list(batch.tenant), SEQUENCE, FILE_EXPIRY, stored_key(batch.tenant)]
        for file in files:
            described = [part for pair in file_fields(file).items() for part in pair]
            args += [file.id, file.bytes, file.expires_at or "", len(described), *described]
            keys.append(file_key(file.id))
        was = self.scripts["end"](keys=keys, args=args)
        if was is None:
            raise NotFound(f"No batch found with id '{batch.id}'.", param="id")
        return _text(was) in origins

    def cancel(self, batch_id: str) -> Batch:
        """Ask a batch to end; on return that survives, as `create_batch` does. Repeating it is harmless.

        Raises Conflict where the batch has ended otherwise.
        """
        self.move(batch_id, "cancelling", closing="cancelled")
        batch = self.batch(batch_id)
        if batch.kind == "batch" and batch.status not in ENDED:
            self.look_at(batch_id)
        if batch.status in ENDED and batch.status != "cancelled":
            raise Conflict(f"Cannot cancel a {batch.kind} with status '{batch.status}'.")
        if batch.kind == "batch":
            self.make_durable()
        return batch

    def fail(
        self,
        batch_id: str,
        errors: Iterable[BatchError],
        total: int,
        *,
        to: BatchStatus = "failed",
        generation: int | None = None,
    ) -> None:
        """End a batch whose input cannot be run."""
        text = json.dumps([asdict(error) for error in errors])
        self.move(batch_id, to, generation=generation, errors=text, total=str(total))

    def retry_of(self, batch_id: str) -> str:
        """Which lines a batch was opened again for, as `reopen.lua` has noted it."""
        return _text(self.redis.hget(batch_key(batch_id), "retry") or "")

    def request_stats(self) -> dict[str, int]:
        """Numbers for /health: what is known and not yet ended."""
        return {"active": sum(self.redis.zcard(key) for key in ACTIVE.values())}

    # Models

    def touch_model(self, card: ModelCard) -> None:
        """Say that a worker serves a model, for the next `MODEL_TTL_S` seconds."""
        now = self._now()
        pipe = self.redis.pipeline(transaction=False)
        pipe.hset(MODELS, card.worker, json.dumps([now, asdict(card)]))
        pipe.hset(SERVED, card.id, f"{now:.0f}")
        pipe.execute()

    def forget_model(self, worker: str) -> None:
        """Say that a worker serves nothing any more."""
        self.redis.hdel(MODELS, worker)

    def models(self) -> list[ModelCard]:
        """One card for every model that a live worker serves."""
        cards: dict[str, ModelCard] = {}
        for card in self._cards():
            cards.setdefault(card.id, card)
        return list(cards.values())

    def served(self) -> dict[str, float]:
        """Every model that was ever served, and when it last was."""
        return {_text(model): float(at) for model, at in self.redis.hgetall(SERVED).items()}

    def known_models(self) -> set[str]:
        """The models that work is taken for: it waits for their workers, should none be there now."""
        since = self._now() - KNOWN_S
        lately = {model for model, at in self.served().items() if at >= since}
        return lately | {card.id for card in self._cards()}  # Workers of an earlier version say only that they live.

    def speed(self, model: str) -> Speed:
        """What a model's live workers do together; one that has measured nothing yet is taken to be like the others."""
        rates = [card.tokens_per_s for card in self._cards() if card.id == model]
        known = [rate for rate in rates if rate > 0]
        return Speed(tokens_per_s=sum(known) / len(known) * len(rates) if known else 0.0, num_workers=len(rates))

    def live_workers(self) -> list[ModelCard]:
        """The card of every live worker."""
        return self._cards()

    def _cards(self) -> list[ModelCard]:
        """The cards of live workers."""
        cards = []
        now = self._now()
        for worker, raw in sorted(self.redis.hgetall(MODELS).items()):
            seen, fields = json.loads(raw)
            if seen < now - MODEL_TTL_S:
                self.redis.hdel(MODELS, worker)
                continue
            # A worker of a later version may say more.
            cards.append(ModelCard(**{name: fields[name] for name in fields if name in ModelCard.__dataclass_fields__}))
        return cards

    def answer_tokens(self) -> dict[str, float]:
        """How long answers are, by model: the mean of the batches that ended last."""
        return {_text(model): float(mean) for model, mean in self.redis.hgetall(ANSWER_TOKENS).items()}

    def learn_answer_tokens(self, batch: Batch) -> None:
        """Remember how long the answers of an ended batch were: an estimate, so if two do so at once one may win."""
        if batch.model and batch.counts.completed and batch.endpoint != EMBEDDINGS:
            mean = batch.usage.output_tokens / batch.counts.completed
            before = float(self.redis.hget(ANSWER_TOKENS, batch.model) or mean)
            self.redis.hset(ANSWER_TOKENS, batch.model, f"{before + LEARN * (mean - before):.2f}")

    def _page(self, key: str, limit: int, newest_first: bool, after: str | None) -> list[str]:
        start: float | str = "+inf" if newest_first else "-inf"
        if after is not None:
            score = self.redis.zscore(key, after)
            if score is None:
                raise NotFound(f"No such object: {after}", param="after")
            start = f"({score:.0f}"
        end = "-inf" if newest_first else "+inf"
        raw = self.redis.zrange(key, start, end, desc=newest_first, byscore=True, offset=0, num=limit)
        return [_text(item) for item in raw]

    def _now(self) -> float:
        """The time by Redis' clock, which is the same for all hosts."""
        seconds, micros = self.redis.time()
        return float(seconds) + micros / 1_000_000

    def server_run(self) -> str:
        """Names the life of the Redis process: another after a restart or a failover."""
        return str(self.redis.info("server")["run_id"])

    def make_durable(self) -> None:
        """Wait until Redis has what was written on disk. A server that keeps no AOF promises only what it keeps."""
        pipe = self.redis.pipeline(transaction=False)
        # WAITAOF speaks of the connection's own writes; this one follows all of ours.
        self.scripts["mark"](keys=[SEQUENCE], client=pipe)
        pipe.execute_command("WAITAOF", 1, 0, DURABLE_WAIT_MS)  # type: ignore[no-untyped-call]
        try:
            _, (num_synced, _replicas) = pipe.execute()
        except ResponseError as error:
            if "appendonly is disabled" not in str(error) and "unknown command" not in str(error).lower():
                raise
        else:
            if num_synced < 1:
                raise StoreUnavailable(f"Redis did not bring a write to disk within {DURABLE_WAIT_MS} ms")


def _list(of: str, tenant: str) -> str:
    """Where a tenant's ids are listed. The default tenant's is the list of the time before there were others."""
    return of if tenant == DEFAULT_TENANT else f"{of}:{tenant}"


def file_list(tenant: str) -> str:
    return _list(FILES, tenant)


def no_room(file: File, most: int, stored: int) -> QuotaExceeded:
    """What a tenant hears that stores too much."""
    message = f"The file's {file.bytes} bytes do not fit beside the {stored} stored: at most {most} may be."
    return QuotaExceeded(f"{message} Delete files that are not needed.", param="file", code="storage_limit_exceeded")


def stored_key(tenant: str) -> str:
    """The bytes of each of a tenant's files, and their total."""
    return f"pressrun:stored:{tenant}"


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def _file(raw: Mapping[Any, Any]) -> File:
    fields: dict[str, Any] = {_text(key): _text(value) for key, value in raw.items()}
    for name in ("bytes", "created_at", "expires_at"):
        if name in fields:
            fields[name] = int(fields[name])
    return File(**fields)


_PLAIN = (
    "id", "kind", "endpoint", "input_file_id", "completion_window", "status", "model", "reserved_output_id",
    "reserved_error_id", "output_file_id", "error_file_id", "closing", "closed_before", "tenant", "event_id",
    "input_url", "input_etag", "output_prefix", "delivery_error", "trace", "segment_writer",
    "results_name",
)  # fmt: skip
_CLEARED = ("output_file_id", "error_file_id", "closing", "closed_before", "delivery_error")  # Empty is none.
# What a version before this one has not written is 0 or false.
_NUMBERS = (
    "created_at", "expires_at", "num_shards", "priority", "estimated_tokens", "earlier_tokens", "generation",
)  # fmt: skip
_FLAGS = ("arranged", "strict", "paused")


def _batch_fields(batch: Batch) -> dict[Any, Any]:
    fields: dict[Any, Any] = {name: getattr(batch, name) for name in _PLAIN if getattr(batch, name) is not None}
    fields |= {name: int(getattr(batch, name)) for name in (*_NUMBERS, *_FLAGS)}
    fields |= asdict(batch.counts) | asdict(batch.usage) | batch.times
    if batch.metadata is not None:
        fields["metadata"] = json.dumps(batch.metadata)
    if batch.output_ttl_s is not None:
        fields["output_ttl_s"] = batch.output_ttl_s
    return fields


def parse_batch(raw: Mapping[Any, Any]) -> Batch:
    """A batch from its fields."""
    fields: dict[str, Any] = {_text(key): _text(value) for key, value in raw.items()}
    times = {name: int(value) for name, value in fields.items() if name.endswith("_at") and name != "expires_at"}
    times.pop("created_at")
    numbers: dict[str, Any] = {name: int(fields.get(name, 0)) for name in _NUMBERS}
    flags: dict[str, Any] = {name: fields.get(name) == "1" for name in _FLAGS}
    return Batch(
        **{name: fields[name] for name in _PLAIN if name in fields and (fields[name] or name not in _CLEARED)},
        **numbers,
        **flags,
        output_ttl_s=int(fields["output_ttl_s"]) if "output_ttl_s" in fields else None,
        common_errors=_common_errors(fields),
        metadata=json.loads(fields["metadata"]) if "metadata" in fields else None,
        errors=tuple(BatchError(**error) for error in json.loads(fields.get("errors", "[]"))),
        counts=Counts(**{name: int(fields[name]) for name in Counts.__dataclass_fields__}),
        usage=Usage(**{name: int(fields[name]) for name in Usage.__dataclass_fields__}),
        times=times,
    )


def _common_errors(fields: Mapping[str, str]) -> tuple[ErrorCount, ...]:
    """What `commit.lua` has counted, commonest first: `error:{code} {param}:` and, as `first-error:…`, the message."""
    counted = []
    for name, count in fields.items():
        if name.startswith("error:"):
            code, _, param = name[len("error:") : -1].partition(" ")
            message = fields.get(f"first-{name}", "")
            counted.append(ErrorCount(code=code, param=param or None, message=message, count=int(count)))
    return tuple(sorted(counted, key=lambda error: (-error.count, error.code, error.param or "")))
