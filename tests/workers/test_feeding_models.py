"""Feeding several models: each by its own workers, none in another's way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from pressrun.jobs import lineup
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.progress import progress_of
from pressrun.jobs.queue import SHARED_QUEUES, queue_lengths, rq_queue
from pressrun.jobs.records import Batch, ModelCard
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.submit import create_job
from pressrun.workers import feeding
from pressrun.workers.feeding import FIRST, Feeder

from ..jobs.conftest import chat_line, upload_batch
from ..jobs.simulated import queued_shards, run_shard
from .test_housekeeping import ended, fed, housekeepers, new_backend, until

SHARD_LINES = 4


@pytest.fixture(autouse=True)
def models_are_asked_for_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "MODELS_S", 0.0)


@pytest.fixture
def backend(redis: Redis, tmp_path: Path) -> Backend:
    backend = new_backend(redis, tmp_path, feed_window=64)
    backend.store.forget_model("w")
    return backend


def serve(backend: Backend, model: str, num_workers: int = 1) -> None:
    for number in range(num_workers):
        card = ModelCard(id=model, max_model_len=100, created=1, worker=f"{model} {number}")
        backend.store.touch_model(card)


def in_line(backend: Backend, model: str, num_shards: int, **fields: str | int) -> Batch:
    batch = upload_batch(backend, [chat_line(f"c{i}", model=model) for i in range(num_shards * SHARD_LINES)])
    backend.redis.hset(batch_key(batch.id), mapping={"tenant": "t"} | fields)  # type: ignore[arg-type]
    validate_batch(backend, batch.id)
    backend.lineups.note(progress_of(backend.store, [batch.id]))
    return backend.store.batch(batch.id)


def test_each_models_window_is_sized_by_its_own_workers(backend: Backend) -> None:
    serve(backend, "small")
    serve(backend, "large", 3)
    small, large = in_line(backend, "small", 50), in_line(backend, "large", 50)
    assert sorted(Feeder(backend).feed()) == sorted([small.id, large.id])
    assert queue_lengths(backend.redis, "batch", ["small", "large"]) == [FIRST, 3 * FIRST]


def test_a_model_without_workers_waits_and_takes_nothing_of_the_others(backend: Backend) -> None:
    for model in ("here", "away"):
        serve(backend, model)
    away = [in_line(backend, "away", 30, priority=100, tenant=f"t{number}") for number in range(5)]
    here = in_line(backend, "here", 30)
    backend.store.forget_model("away 0")
    feeder, taken = Feeder(backend), list[tuple[str, int]]()
    for _ in range(10):
        feeder.feed()
        taken += queued_shards(backend, model="here")
    assert taken == [(here.id, shard) for shard in range(30)]
    assert queue_lengths(backend.redis, "batch", ["away"]) == [0]
    assert all(batch.queued == 0 for batch in progress_of(backend.store, [batch.id for batch in away]))
    serve(backend, "away")
    feeder.feed()
    assert queue_lengths(backend.redis, "batch", ["away"]) == [FIRST]


def test_a_model_whose_workers_take_nothing_does_not_hold_up_another(backend: Backend) -> None:
    for model in ("stuck", "quick"):
        serve(backend, model)
    in_line(backend, "stuck", 100)
    quick = in_line(backend, "quick", 100)
    feeder, taken = Feeder(backend), list[tuple[str, int]]()
    while len(taken) < 100:
        feeder.feed()
        taken += queued_shards(backend, model="quick")
    assert taken == [(quick.id, shard) for shard in range(100)]
    assert queue_lengths(backend.redis, "batch", ["stuck"]) == [FIRST]


def test_shares_and_priorities_hold_among_those_who_wait_for_the_same_workers(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "tenant_weights", lambda _store: {"heavy": 3.0})
    for model in ("slow", "fast"):
        serve(backend, model)
    batches = {
        (model, tenant): in_line(backend, model, 200, tenant=tenant)
        for model in ("slow", "fast")
        for tenant in ("heavy", "light")
    }
    # What heavy gets of the fast model alone must not cost it its share of the slow one.
    alone = in_line(backend, "fast", 40, tenant="heavy", priority=9)
    feeder, taken = Feeder(backend), {"slow": list[str](), "fast": list[str]()}
    for _ in range(20):  # Simulated workers, of which one kind is eight times as fast.
        feeder.feed()
        for model, most in (("slow", 2), ("fast", 16)):
            taken[model] += [batch_id for batch_id, _ in queued_shards(backend, model=model, most=most)]
    assert taken["fast"][:40] == [alone.id] * 40
    for model, order in (("slow", taken["slow"][:40]), ("fast", taken["fast"][40:200])):
        counted = Counter(order)
        heavy, light = (counted[batches[model, tenant].id] for tenant in ("heavy", "light"))
        assert heavy + light == len(order)
        assert heavy / len(order) == pytest.approx(0.75, abs=0.06)


def test_what_an_earlier_version_left_in_its_shared_queue_is_moved_to_its_models(redis: Redis, tmp_path: Path) -> None:
    backend = new_backend(redis, tmp_path)
    batch = fed(backend)
    job = create_job(backend, url="/v1/chat/completions", body=chat_line("x")["body"])
    for kind, left in (("batch", batch), ("job", job)):
        (shard,) = queued_shards(backend, kind)  # type: ignore[arg-type]
        assert shard == (left.id, 0)
        redis.rpush(rq_queue(redis, SHARED_QUEUES[kind]).key, f"{left.id}-0")  # type: ignore[index]
    with housekeepers(backend):
        for kind, left in (("batch", batch), ("job", job)):
            until(lambda kind=kind: queue_lengths(redis, kind, ["m"]) == [1])  # type: ignore[misc]
            assert redis.llen(rq_queue(redis, SHARED_QUEUES[kind]).key) == 0  # type: ignore[index]
            assert queued_shards(backend, kind) == [(left.id, 0)]  # type: ignore[arg-type]
            run_shard(backend, left.id, 0)
        until(lambda: ended(backend, batch) and ended(backend, job))
