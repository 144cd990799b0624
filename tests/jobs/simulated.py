"""Workers and processes that tests can halt between any two calls to Redis or the blob store, and kill there."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

from redis import Redis
from redis.client import Pipeline

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.blobs import Blobs
from pressrun.jobs.errors import UserError
from pressrun.jobs.ids import owner_id
from pressrun.jobs.lines import answered, refused, requests_of
from pressrun.jobs.queue import queue_of, rq_queue
from pressrun.jobs.records import BatchKind, Claim, Line, LineResult, ShardCommit, Usage
from pressrun.jobs.sealing import seal_shard

T = TypeVar("T")
Gate = Callable[[], None]


class Died(BaseException):
    """The process was killed here. No handler may catch it, and nothing it tries afterwards reaches Redis."""


class Process:
    """A thread that runs from gate to gate, only when told to."""

    def __init__(self, backend: Backend, action: Callable[[Backend], None]) -> None:
        self.ended = False
        self.error: BaseException | None = None
        self._backend = gated(backend, self._gate)
        self._blobs = cast(GatedBlobs, self._backend.blobs)
        self._action = action
        self._dead = False
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        threading.Thread(target=self._main, daemon=True).start()

    @property
    def writing(self) -> str:
        """The blob whose last write it stands before; '' where it stands before another call."""
        return self._blobs.writing

    def step(self, number: int = 1) -> None:
        """Run up to the next call, so many times."""
        for _ in range(number):
            if not self.ended:
                self._turn.release()
                self._back.acquire()

    def finish(self) -> None:
        while not self.ended:
            self.step()

    def kill(self) -> None:
        """SIGKILL: the call that it stands before is never made."""
        self._dead = True
        self.finish()

    def _main(self) -> None:
        self._turn.acquire()
        try:
            if not self._dead:
                self._action(self._backend)
        except Died:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._back.release()

    def _gate(self) -> None:
        if not self._dead:
            self._back.release()
            self._turn.acquire()
        if self._dead:
            raise Died


class GatedRedis(Redis):
    """A client that passes a gate before every call."""

    gate: Gate

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.gate()
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # type: ignore[override]
        pipe = GatedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.gate = self.gate
        return pipe


class GatedPipeline(Pipeline):
    gate: Gate

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        self.gate()
        return super().execute(raise_on_error)


class GatedBlobs:
    """A blob store with a gate before every call, and one in every write that has read all that it writes."""

    def __init__(self, blobs: Blobs, gate: Gate) -> None:
        self.blobs = blobs
        self.gate = gate
        self.writing = ""

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        self.gate()
        return self.blobs.put(key, self._to_the_last_write(key, chunks))

    def put_new(self, key: str, chunks: Iterable[bytes]) -> int:
        self.gate()
        return self.blobs.put_new(key, self._to_the_last_write(key, chunks))

    def join(self, pieces: Iterable[tuple[str, int]], target: str) -> int:
        def gated() -> Iterator[tuple[str, int]]:
            for piece in pieces:
                self.gate()
                yield piece

        return self.blobs.join(self._to_the_last_write(target, gated()), target)

    def _to_the_last_write(self, key: str, items: Iterable[T]) -> Iterator[T]:
        yield from items
        self.writing = key
        self.gate()
        self.writing = ""

    def presign(self, key: str, *, filename: str, seconds: int) -> str | None:
        return self.blobs.presign(key, filename=filename, seconds=seconds)

    def open(self, key: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        self.gate()
        return self.blobs.open(key, offset, size)

    def size(self, key: str) -> int:
        self.gate()
        return self.blobs.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        self.gate()
        return self.blobs.list(prefix)

    def delete(self, key: str) -> None:
        self.gate()
        self.blobs.delete(key)

    def tidy(self, prefix: str, older_than_s: float) -> None:
        self.gate()
        self.blobs.tidy(prefix, older_than_s)


def gated(backend: Backend, gate: Gate) -> Backend:
    """The same backend as another process has it, with a gate before every call."""
    redis = GatedRedis(connection_pool=backend.redis.connection_pool)
    redis.gate = gate
    other = backend_on(backend.settings, redis)
    return replace(other, blobs=GatedBlobs(other.blobs, gate))


def answer(line: Line, run: int = 1) -> LineResult:
    """An answer that tells in which run it was made, in its text and in its usage."""
    return answered(line, {"run": run, "asked": line.body}, Usage(input_tokens=1, cached_tokens=0, output_tokens=run))


def missing(backend: Backend, claim: Claim) -> list[Line]:
    """The lines of a claimed shard that have no result yet."""
    lines = requests_of(backend.blobs_of(claim.batch), claim.batch, claim.shard)
    return [line for line in lines if line.index not in claim.done]


def commit(backend: Backend, claim: Claim, results: Iterable[LineResult]) -> str:
    """Store results of one claim."""
    shard = ShardCommit(
        batch_id=claim.batch.id,
        shard=claim.shard.index,
        owner=claim.owner,
        num_lines=claim.shard.num_lines,
        results=tuple(results),
    )
    return backend.shards.commit([shard])[0]


def run_shard(backend: Backend, batch_id: str, shard: int, seed: int = 1) -> None:
    """Do what a worker does with a shard. `seed` decides how lines end, and in which portions they are stored."""
    chance = random.Random(seed)
    claim = backend.shards.claim(batch_id, shard, owner_id(), 60.0)
    if claim is None:
        return
    lines = missing(backend, claim)
    chance.shuffle(lines)
    reply = "ok" if lines else commit(backend, claim, [])
    while lines and reply == "ok":
        portion = [lines.pop() for _ in range(chance.randint(1, len(lines)))]
        results = [answer(line, seed) if chance.random() < 0.7 else refused(line, UserError("no")) for line in portion]
        reply = commit(backend, claim, results)
        if chance.random() < 0.2:
            reply = commit(backend, claim, results)  # The first answer was lost on the way.
        if reply == "ok" and chance.random() < 0.1:
            backend.shards.release(claim, count_attempt=chance.random() < 0.5)
            return
    if reply == "complete":
        seal_shard(backend, claim)


def queued_shards(
    backend: Backend, kind: BatchKind = "batch", model: str = "m", most: int = 10_000
) -> list[tuple[str, int]]:
    """Take what is in an RQ queue, as (batch, shard)."""
    queue = rq_queue(backend.redis, queue_of(kind, model))
    taken: Any = backend.redis.lpop(queue.key, most) or []
    return [(batch_id.decode(), int(shard)) for batch_id, _, shard in (rq_id.rpartition(b"-") for rq_id in taken)]
