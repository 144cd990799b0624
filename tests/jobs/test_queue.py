"""The queues of models in RQ: each has names of its own, whatever it is called."""

from __future__ import annotations

import pytest
from redis import Redis
from rq import Queue

from pressrun.jobs.queue import (
    SHARED_QUEUES,
    enqueue_shards,
    forget_shards,
    model_of,
    queue_lengths,
    queue_of,
    queued_job_ids,
    queues,
)

NAMES = ["m", "meta-llama/Llama-3.1-8B", "a,b", "a b", "x:intermediate", "a%2Cb", "grün", "{m}", "-", "m-"]


@pytest.mark.parametrize("model", NAMES)
def test_a_queues_name_tells_its_model_and_nothing_else(model: str) -> None:
    for kind in SHARED_QUEUES:
        name = queue_of(kind, model)
        assert model_of(name) == model
        assert name.isascii()
        assert not set(", :/{}") & set(name)
    assert [model_of(name) for name in SHARED_QUEUES.values()] == [None, None]


def test_models_whose_names_are_alike_have_queues_of_their_own(redis: Redis) -> None:
    for number, model in enumerate(NAMES):
        enqueue_shards(redis, "batch", model, f"batch_{number}", range(number + 1))
        enqueue_shards(redis, "job", model, f"job_{number}", [0])
    assert queue_lengths(redis, "batch", NAMES) == [number + 1 for number in range(len(NAMES))]
    assert queue_lengths(redis, "job", NAMES) == [1] * len(NAMES)
    assert queued_job_ids(redis, "job") == {f"job_{number}-0" for number in range(len(NAMES))}
    assert {(model_of(queue.name)) for queue in queues(redis)} == set(NAMES)
    forget_shards(redis, "batch", NAMES[2], "batch_2", range(3))
    assert queue_lengths(redis, "batch", NAMES[1:4]) == [2, 0, 4]


def test_queues_that_are_not_ours_are_left_alone(redis: Redis) -> None:
    Queue("pressrunners", connection=redis).enqueue("os.getpid")
    Queue("other", connection=redis).enqueue("os.getpid")
    assert (queues(redis), queued_job_ids(redis, "batch")) == ([], set())
