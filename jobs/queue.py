"""Putting shards into RQ. A queued RQ job is a pointer (batch, shard), never the lines.

Jobs are enqueued by name, so this needs no worker code; JSON, because whoever can write to Redis could have a pickle
run anything. Retries and leases are the store's (docs/decisions/0003), so RQ is asked for none.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from .records import BatchKind

BATCH_QUEUE = "pressrun-batch"
INTERACTIVE_QUEUE = "pressrun-interactive"
QUEUE_OF: dict[BatchKind, str] = {"batch": BATCH_QUEUE, "job": INTERACTIVE_QUEUE}
TASK = "pressrun.workers.shard.run_shard"
RESULT_TTL_S = 60
FAILURE_TTL_S = 86400


def rq_job_id(batch_id: str, shard: int) -> str:
    return f"{batch_id}-{shard}"


def rq_queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def enqueue_shards(redis: Redis, kind: BatchKind, batch_id: str, shards: Iterable[int]) -> None:
    """Queue shards of one batch for the workers, in order, in one round trip."""
    enqueue(redis, kind, [(batch_id, shard) for shard in shards])


def enqueue(redis: Redis, kind: BatchKind, shards: Iterable[tuple[str, int]], pipe: Pipeline | None = None) -> None:
    """Queue shards, as (batch, shard), for the workers, in order, in one round trip, or when `pipe` is executed."""
    queue = rq_queue(redis, QUEUE_OF[kind])
    queue.enqueue_many(
        [
            Queue.prepare_data(
                TASK,
                args=(batch_id, shard),
                job_id=rq_job_id(batch_id, shard),
                timeout=-1,
                result_ttl=RESULT_TTL_S,
                failure_ttl=FAILURE_TTL_S,
                description=f"{batch_id} shard {shard}",
            )
            for batch_id, shard in shards
        ],
        pipeline=pipe,
    )


def queue_length(redis: Redis, kind: BatchKind) -> int:
    """How many shards wait in RQ now."""
    return int(redis.llen(rq_queue(redis, QUEUE_OF[kind]).key))


def queued_job_ids(redis: Redis, kind: BatchKind) -> set[str]:
    """What waits in RQ now."""
    return set(rq_queue(redis, QUEUE_OF[kind]).get_job_ids())


def forget_shards(redis: Redis, kind: BatchKind, batch_id: str, shards: Iterable[int]) -> None:
    """Take shards of one batch out of RQ wherever they are, so that they can be queued afresh or never."""
    forget(redis, kind, [(batch_id, shard) for shard in shards])


def forget(redis: Redis, kind: BatchKind, shards: Iterable[tuple[str, int]]) -> None:
    """Take shards, as (batch, shard), out of RQ wherever they are.

    Not by `Job.delete`: that raises where a dead worker's execution has expired but is still named by a registry.
    """
    queue = rq_queue(redis, QUEUE_OF[kind])
    jobs = [Job(rq_job_id(*shard), connection=redis, serializer=JSONSerializer) for shard in shards]
    pipe = redis.pipeline(transaction=False)
    for job in jobs:
        pipe.zrange(job.execution_registry.key, 0, -1)
    for job, execution_ids in zip(jobs, pipe.execute(), strict=True):
        executions = [Execution(raw.decode(), job.id, connection=redis) for raw in execution_ids]
        for execution in executions:
            pipe.zrem(queue.started_job_registry.key, execution.composite_key)
        for registry in (queue.failed_job_registry, queue.finished_job_registry):
            pipe.zrem(registry.key, job.id)
        for key in (queue.key, queue.intermediate_queue_key):
            pipe.lrem(key, 0, job.id)
        kept = (job.key, job.dependents_key, job.dependencies_key, job.execution_registry.key, Result.get_key(job.id))  # type: ignore[no-untyped-call]
        pipe.delete(*kept, *(execution.key for execution in executions))
    pipe.execute()
