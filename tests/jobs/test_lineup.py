"""The line in Redis: who is in it, and that every token is charged once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis import Redis

from pressrun.jobs.lineup import BILLS, Lineup
from pressrun.jobs.progress import Progress
from pressrun.jobs.records import ModelCard
from pressrun.jobs.store import Store

BATCH = Progress(
    id="b",
    status="in_progress",
    model="m",
    tenant="two words",
    priority=3,
    created_at=5,
    expires_at=99,
    total=100,
    estimated_tokens=1000,
    num_shards=10,
    waiting=8,
    queued=2,
)


@pytest.fixture
def lineup(redis: Redis) -> Lineup:
    return Lineup(Store(redis), "m")


def charged(lineup: Lineup) -> dict[str, float]:
    return {key.decode(): float(value) for key, value in lineup._redis.hgetall(lineup._times).items()}


def test_a_batch_with_waiting_shards_is_in_line_as_it_stands(lineup: Lineup) -> None:
    lineup.note([BATCH, replace(BATCH, id="paused", paused=True), replace(BATCH, id="fed", waiting=0)])
    (candidate,) = lineup.read().candidates
    assert (candidate.id, candidate.tenant, candidate.flow) == ("b", "two words", (3, "two words"))
    assert (candidate.num_shards, candidate.shard_tokens, candidate.had) == (8, 100.0, 200.0)
    assert (candidate.created_at, candidate.expires_at) == (5, 99)
    lineup.note([replace(BATCH, waiting=0, queued=10)])
    assert lineup._read().candidates == ()


def test_every_token_is_charged_once_however_often_it_is_told(lineup: Lineup) -> None:
    for _ in range(3):
        lineup.note([BATCH])
    assert charged(lineup) == {"3 two words": 200.0}
    finished = replace(BATCH, queued=0, completed=20, input_tokens=20, output_tokens=40)
    for _ in range(3):
        lineup.note([finished])  # They were shorter than estimated.
    assert charged(lineup) == {"3 two words": 60.0}
    lineup.settle(replace(finished, status="completed", waiting=0))
    assert charged(lineup) == {"3 two words": 60.0}
    assert lineup._redis.hgetall(BILLS) == {}


def test_a_flow_that_was_idle_is_charged_from_the_floor_on(lineup: Lineup) -> None:
    lineup.raise_floors({3: 5000.0})
    lineup.raise_floors({3: 4000.0})
    lineup.note([BATCH])
    assert charged(lineup) == {"3 two words": 5200.0}


def test_a_batch_starts_level_with_its_tenants_others(lineup: Lineup) -> None:
    lineup.note([BATCH], {"b": 700.0})
    lineup.note([replace(BATCH, completed=10, input_tokens=100)], {"b": 0.0})
    (candidate,) = lineup.read().candidates
    assert candidate.had == pytest.approx(700 + 100 + 100)  # Used, and out.


def test_a_worker_that_has_measured_nothing_is_taken_to_be_like_the_others(redis: Redis) -> None:
    store = Store(redis)
    assert store.speed("m").tokens_per_s == 0
    for worker, rate in (("a", 100.0), ("b", 300.0), ("c", 0.0)):
        store.touch_model(ModelCard(id="m", max_model_len=1, created=1, worker=worker, tokens_per_s=rate))
    assert (store.speed("m").tokens_per_s, store.speed("m").num_workers) == (600.0, 3)


def test_tokens_per_line_are_learnt_from_the_lines_that_finished() -> None:
    assert BATCH.tokens_per_line == 10
    assert replace(BATCH, completed=16, output_tokens=16 * 30).tokens_per_line == 20
    old = replace(BATCH, estimated_tokens=0)  # Validated by a version that estimated nothing.
    assert old.tokens_per_line > 0
