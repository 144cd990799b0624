"""What a dead worker leaves in RQ is cleared away before its shard is queued again."""

from __future__ import annotations

from redis import Redis
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker

from pressrun.jobs.queue import enqueue_shards, forget_shards, queue_of, rq_job_id
from pressrun.workers.rq_desk import RqDesk


def started(redis: Redis) -> StartedJobRegistry:
    return StartedJobRegistry(queue_of("batch", "m"), connection=redis, serializer=JSONSerializer)


def test_a_shard_taken_by_a_dead_worker_is_forgotten_even_if_its_execution_has_expired(redis: Redis) -> None:
    enqueue_shards(redis, "batch", "m", "batch_x", [0, 1])
    tickets = RqDesk(redis, name="dead", model="m", lease_s=1.0).take(0, 2)
    assert len(started(redis)) == 2
    redis.delete(tickets[0].execution.key)  # The hash lives shorter than the registries that name it.
    forget_shards(redis, "batch", "m", "batch_x", [0, 1])
    assert len(started(redis)) == 0
    enqueue_shards(redis, "batch", "m", "batch_x", [0, 1])
    again = RqDesk(redis, name="alive", model="m", lease_s=1.0).take(0, 2)
    assert [ticket.key for ticket in again] == [("batch_x", 0), ("batch_x", 1)]
    assert started(redis).get_job_ids() == [rq_job_id("batch_x", 0), rq_job_id("batch_x", 1)]


def test_a_shard_that_was_queued_again_is_not_deleted_by_who_lost_it(redis: Redis) -> None:
    enqueue_shards(redis, "batch", "m", "batch_x", [0])
    paused, alive = (
        RqDesk(redis, name="paused", model="m", lease_s=1.0),
        RqDesk(redis, name="alive", model="m", lease_s=1.0),
    )
    lost = paused.take(0, 1)
    forget_shards(redis, "batch", "m", "batch_x", [0])
    enqueue_shards(redis, "batch", "m", "batch_x", [0])
    paused.put_down(lost)
    (again,) = alive.take(0, 1)
    paused.put_down(lost)
    assert again.job.get_status() == "started"
    assert started(redis).get_job_ids() == [again.job.id]
    alive.put_down([again])
    assert not redis.exists(again.job.key)
    assert not [key for key in redis.keys("rq:*") if b"batch_x" in key]


def test_no_more_is_taken_than_asked_for_and_interactive_shards_are_marked(redis: Redis) -> None:
    enqueue_shards(redis, "batch", "m", "batch_x", range(5))
    enqueue_shards(redis, "job", "m", "job_x", [0])
    desk = RqDesk(redis, name="desk", model="m", lease_s=1.0)
    desk.register_birth()  # type: ignore[no-untyped-call]
    tickets = desk.take(8, 2)
    assert [(ticket.key, ticket.interactive) for ticket in tickets] == [
        (("job_x", 0), True),
        (("batch_x", 0), False),
        (("batch_x", 1), False),
    ]
    assert desk.take(0, 0) == []
    (seen,) = Worker.all(connection=redis)
    assert seen.get_state() == "busy"
    desk.succeed(tickets)
    assert Worker.all(connection=redis)[0].get_state() == "idle"
    assert redis.llen("rq:queue:pressrun-batch-m") == 3
