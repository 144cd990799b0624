"""Putting shards into RQ. A queued RQ job is a pointer (batch, shard), never the lines.

Every model has two queues of its own, of batches and of jobs, which only its workers listen to. Jobs are enqueued by
name, so this needs no worker code; JSON, because whoever can write to Redis could have a pickle run anything. Retries
and leases are the store's (docs/decisions/0003), so RQ is asked for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from .records import BatchKind

# Earlier versions queued the shards of all models under these names alone. Nobody takes them from there any more:
# housekeeping misses them in their model's queue and queues them in it.
SHARED_QUEUES: dict[BatchKind, str] = {"batch": "pressrun-batch", "job": "pressrun-interactive"}
TASK = "pressrun.workers.shard.run_shard"
RESULT_TTL_S = 60
FAILURE_TTL_S = 86400


def rq_job_id(batch_id: str, shard: int) -> str:
    return f"{batch_id}-{shard}"


def queue_of(kind: BatchKind, model: str) -> str:
    """The name of a model's queue. What RQ's commands and keys could take for something of theirs is escaped."""
    return f"{SHARED_QUEUES[kind]}-{quote(model, safe='')}"


def model_of(queue: str) -> str | None:
    """The model that a queue is of; None for a queue that is of no single one."""
    for shared in SHARED_QUEUES.values():
        if queue.startswith(f"{shared}-"):
            return unquote(queue[len(shared) + 1 :])
    return None


def rq_queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def enqueue_shards(redis: Redis, kind: BatchKind, model: str, batch_id: str, shards: Iterable[int]) -> None:
    """Queue shards of one batch for its model's workers, in order, in one round trip."""
    enqueue(redis, kind, model, [(batch_id, shard) for shard in shards])


def enqueue(
    redis: Redis, kind: BatchKind, model: str, shards: Iterable[tuple[str, int]], pipe: Pipeline | None = None
) -> None:
    """Queue shards, as (batch, shard), for a model's workers, in order, at once or when `pipe` is executed."""
    queue = rq_queue(redis, queue_of(kind, model))
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


def queue_lengths(redis: Redis, kind: BatchKind, models: Iterable[str]) -> list[int]:
    """How many shards of each model wait in RQ now."""
    pipe = redis.pipeline(transaction=False)
    for model in models:
        pipe.llen(rq_queue(redis, queue_of(kind, model)).key)
    return list(map(int, pipe.execute()))


def queues(redis: Redis) -> list[Queue]:
    """All queues of ours that anything was ever put into."""
    shared = tuple(SHARED_QUEUES.values())
    return [queue for queue in Queue.all(connection=redis) if queue.name.startswith(shared)]


def queued_job_ids(redis: Redis, kind: BatchKind) -> set[str]:
    """What waits in RQ now, of all models."""
    pipe = redis.pipeline(transaction=False)
    for queue in queues(redis):
        if queue.name.startswith(f"{SHARED_QUEUES[kind]}-"):
            pipe.lrange(queue.key, 0, -1)
    return {raw.decode() for ids in pipe.execute() for raw in ids}


def forget_shards(redis: Redis, kind: BatchKind, model: str, batch_id: str, shards: Iterable[int]) -> None:
    """Take shards of one batch out of RQ wherever they are, so that they can be queued afresh or never."""
    forget(redis, kind, model, [(batch_id, shard) for shard in shards])


def forget(redis: Redis, kind: BatchKind, model: str, shards: Iterable[tuple[str, int]]) -> None:
    """Take shards, as (batch, shard), out of RQ wherever they are, an earlier version's queue included.

    Not by `Job.delete`: that raises where a dead worker's execution has expired but is still named by a registry.
    """
    places = [rq_queue(redis, name) for name in (queue_of(kind, model), SHARED_QUEUES[kind])]
    jobs = [Job(rq_job_id(*shard), connection=redis, serializer=JSONSerializer) for shard in shards]
    pipe = redis.pipeline(transaction=False)
    for job in jobs:
        pipe.zrange(job.execution_registry.key, 0, -1)
    for job, execution_ids in zip(jobs, pipe.execute(), strict=True):
        executions = [Execution(raw.decode(), job.id, connection=redis) for raw in execution_ids]
        for queue in places:
            _strike_out(queue, job, executions, pipe)
        kept = (job.key, job.dependents_key, job.dependencies_key, job.execution_registry.key, Result.get_key(job.id))  # type: ignore[no-untyped-call]
        pipe.delete(*kept, *(execution.key for execution in executions))
    pipe.execute()


def _strike_out(queue: Queue, job: Job, executions: Sequence[Execution], pipe: Pipeline) -> None:
    """Take a job out of a queue and its registries."""
    for execution in executions:
        pipe.zrem(queue.started_job_registry.key, execution.composite_key)
    for registry in (queue.failed_job_registry, queue.finished_job_registry):
        pipe.zrem(registry.key, job.id)
    for key in (queue.key, queue.intermediate_queue_key):
        pipe.lrem(key, 0, job.id)
