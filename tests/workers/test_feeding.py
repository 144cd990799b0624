"""Feeding: the policy's order reaches RQ, many feeders feed as one, and many batches cost little."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from pressrun.jobs import lineup
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.lineup import ready_key
from pressrun.jobs.progress import progress_of
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.workers.feeding import LOCK, Feeder, Window

from ..jobs.conftest import chat_line, upload_batch
from ..jobs.simulated import queued_shards
from .test_housekeeping import new_backend, queue_length


@pytest.fixture
def backend(redis: Redis, tmp_path: Path) -> Backend:
    return new_backend(redis, tmp_path, feed_window=8)


def in_line(backend: Backend, num_lines: int, **fields: str | int) -> Batch:
    batch = upload_batch(backend, [chat_line(f"c{i}") for i in range(num_lines)])
    backend.redis.hset(batch_key(batch.id), mapping={"tenant": "t"} | fields)  # type: ignore[arg-type]
    validate_batch(backend, batch.id)
    backend.lineups.note(progress_of(backend.store, [batch.id]))
    return backend.store.batch(batch.id)


def fed_in_order(backend: Backend, number: int) -> list[str]:
    """What a worker gets that takes what is there, again and again."""
    feeder, taken = Feeder(backend), list[str]()
    while len(taken) < number:
        feeder.feed()
        taken += [batch_id for batch_id, _ in queued_shards(backend)]
    return taken[:number]


def test_a_batch_that_comes_later_with_a_higher_priority_is_fed_first(backend: Backend) -> None:
    huge = in_line(backend, 400)
    feeder = Feeder(backend)
    feeder.feed()
    urgent = in_line(backend, 12, priority=7)
    assert queued_shards(backend) == [(huge.id, shard) for shard in range(8)]
    assert fed_in_order(backend, 6) == [urgent.id] * 3 + [huge.id] * 3


def test_tenants_are_fed_in_turns_whatever_the_number_and_size_of_their_batches(backend: Backend) -> None:
    crowd = [in_line(backend, 400, tenant="crowd") for _ in range(3)]
    alone = in_line(backend, 80, tenant="alone")
    counted = Counter(fed_in_order(backend, 36))
    assert counted[alone.id] == 18
    assert [counted[batch.id] for batch in crowd] == [6, 6, 6]


def test_a_weight_is_a_share_of_what_is_fed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineup, "tenant_weights", lambda _store: {"heavy": 3.0})
    heavy, light = (in_line(backend, 400, tenant=tenant) for tenant in ("heavy", "light"))
    counted = Counter(fed_in_order(backend, 40))
    assert (counted[heavy.id], counted[light.id]) == (30, 10)


def test_a_batch_that_is_fed_to_its_end_leaves_the_line(backend: Backend) -> None:
    in_line(backend, 20)
    feeder = Feeder(backend)
    for _ in range(5):
        feeder.feed()
        queued_shards(backend)
    assert backend.redis.hlen(ready_key("m")) == 0
    assert feeder.feed() == []


def test_many_feeders_at_once_keep_within_the_window_and_feed_each_shard_once(backend: Backend) -> None:
    batch = in_line(backend, 800)
    stop, seen = threading.Event(), list[tuple[str, int]]()

    def feed() -> None:
        feeder = Feeder(backend)
        while not stop.is_set():
            feeder.feed()

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(seen) < 200 and time.monotonic() < deadline:
        assert queue_length(backend) <= 8
        seen += queued_shards(backend)
    stop.set()
    for thread in threads:
        thread.join()
    assert seen == [(batch.id, shard) for shard in range(200)]


def test_nobody_feeds_while_another_does(backend: Backend) -> None:
    in_line(backend, 40)
    with backend.redis.lock(LOCK, timeout=5):
        assert Feeder(backend).feed() == []
        assert queue_length(backend) == 0
    assert Feeder(backend).feed() != []


def test_the_window_grows_while_nothing_is_left_and_shrinks_slowly() -> None:
    window = Window()
    assert [window.size(0, num_workers=2, most=64) for _ in range(4)] == [16, 64, 128, 128]
    for _ in range(500):
        size = window.size(1, num_workers=2, most=64)
    assert size == 4
    assert window.size(0, num_workers=0, most=64) == 16


def test_ten_thousand_batches_of_a_thousand_tenants_cost_little(backend: Backend) -> None:
    pipe = backend.redis.pipeline(transaction=False)
    model = in_line(backend, 40)
    fields = backend.redis.hgetall(batch_key(model.id))
    for number in range(10_000):
        batch_id = f"batch_{number:05}"
        pipe.hset(batch_key(batch_id), mapping=fields | {b"tenant": f"tenant-{number % 1000}"})
        pipe.zadd(f"{batch_key(batch_id)}:waiting", {str(shard): shard for shard in range(10)})
    pipe.execute()
    ids = [f"batch_{number:05}" for number in range(10_000)]
    for start in range(0, len(ids), 500):
        backend.lineups.note(progress_of(backend.store, ids[start : start + 500]))
    feeder = Feeder(backend)
    feeder.feed()  # Reads the line.
    started, rounds = time.process_time(), 40
    for _ in range(rounds):
        queued_shards(backend)
        time.sleep(0.02)
        feeder.feed()
    assert (time.process_time() - started) / rounds < 0.15  # To read the line alone takes longer.
