"""Models that nobody serves any more are forgotten, unless something waits for them or somebody serves them again."""

from __future__ import annotations

import time
from collections.abc import Iterable

from pressrun.jobs.backend import Backend
from pressrun.jobs.model_cards import KNOWN_S, SERVED
from pressrun.jobs.queue import enqueue_shards, model_of, queue_of, queues, rq_queue
from pressrun.jobs.records import ModelCard
from pressrun.jobs.retired import OLD_MODELS, forget_retired
from pressrun.jobs.standing import Standing


def serve_once(backend: Backend, model: str, *, ago: float) -> None:
    """A worker served the model and was given a shard of a batch, some time ago."""
    backend.store.touch_model(ModelCard(id=model, max_model_len=8, created=1, worker=f"of {model}"))
    backend.live.open(model)
    backend.live.beat(model, "w", taking=True)
    enqueue_shards(backend.redis, "batch", model, "batch_1", [0])
    backend.redis.delete(rq_queue(backend.redis, queue_of("batch", model)).key)
    backend.store.forget_model(f"of {model}")
    backend.redis.hset(SERVED, model, int(time.time() - ago))


def names_in_metrics(backend: Backend) -> set[str]:
    samples = [sample for metric in Standing(backend).read() for sample in metric.samples]
    return {sample.labels["model_name"] for sample in samples if "model_name" in sample.labels}


def keys_of(backend: Backend, models: Iterable[str]) -> list[bytes]:
    return [key for model in models for key in backend.redis.keys(f"pressrun:*{model}*")]


def test_a_model_that_nobody_served_for_a_day_is_forgotten_everywhere(backend: Backend) -> None:
    serve_once(backend, "old", ago=KNOWN_S + 1)
    serve_once(backend, "lately", ago=KNOWN_S - 60)
    backend.redis.sadd(OLD_MODELS, "old", "lately")
    assert names_in_metrics(backend) >= {"old", "lately"}
    assert not backend.live.was_served("old")
    assert forget_retired(backend) == ["old"]
    assert forget_retired(backend) == []
    assert "old" not in names_in_metrics(backend)
    assert [model_of(queue.name) for queue in queues(backend.redis)] == ["lately"]
    assert backend.store.served().keys() >= {"lately"}
    assert "old" not in backend.store.served()
    assert keys_of(backend, ["old"]) == []
    assert not backend.redis.exists(OLD_MODELS)
    assert backend.live.was_served("lately")


def test_a_model_that_something_waits_for_is_remembered(backend: Backend) -> None:
    for model in ("queued", "taken", "ready"):
        serve_once(backend, model, ago=KNOWN_S + 1)
    enqueue_shards(backend.redis, "job", "queued", "job_1", [0])
    backend.redis.rpush(rq_queue(backend.redis, queue_of("batch", "taken")).intermediate_queue_key, "batch_1-0")
    backend.redis.hset("pressrun:ready:ready", "batch_1", "{}")
    assert forget_retired(backend) == []
    assert backend.store.served().keys() >= {"queued", "taken", "ready"}


def test_a_model_that_is_served_again_at_that_moment_stays(backend: Backend) -> None:
    serve_once(backend, "old", ago=KNOWN_S + 1)
    known = backend.store.known_models()
    backend.live.open("old")
    backend.store.known_models = lambda: known  # type: ignore[method-assign]
    assert forget_retired(backend) == []
    assert backend.live.was_served("old")
