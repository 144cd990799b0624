"""Pausing, resuming and changing a batch on its way."""

from __future__ import annotations

import time

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.control import pause_batch, resume_batch, update_batch
from pressrun.jobs.errors import Conflict, NotFound, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.progress import progress_of
from pressrun.jobs.queue import enqueue_shards
from pressrun.jobs.records import Batch

from .conftest import MakeBatch, chat_line
from .simulated import queued_shards, run_shard


def running(backend: Backend, make_batch: MakeBatch) -> Batch:
    batch = make_batch([chat_line(f"c{i}") for i in range(20)])
    validate_batch(backend, batch.id)
    return backend.store.batch(batch.id)


def test_a_paused_batch_is_neither_fed_nor_claimed_and_what_runs_finishes(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = running(backend, make_batch)
    (fed,) = backend.shards.draw([(batch.id, 3)])
    enqueue_shards(backend.redis, "batch", "m", batch.id, fed)
    taken = backend.shards.claim(batch.id, 0, "me", 60.0)
    assert taken is not None
    for _ in range(2):
        assert pause_batch(backend, batch.id).paused
    assert queued_shards(backend) == [(batch.id, 0)]  # Of a shard that is claimed nothing is taken back.
    (progress,) = progress_of(backend.store, [batch.id])
    assert (progress.waiting, progress.queued, progress.leased, progress.in_line) == (4, 0, 1, False)
    assert backend.shards.claim(batch.id, 1, "late", 60.0) is None
    assert backend.shards.feed([batch.id], 9) == [[]]
    assert backend.shards.hold([taken], 60.0) == [True]
    for _ in range(2):
        assert not resume_batch(backend, batch.id).paused
    assert backend.shards.draw([(batch.id, 9)]) == [[1, 2, 3, 4]]
    assert backend.shards.hold([taken], 60.0) == [True]


def test_a_batch_that_is_paused_before_validation_waits_after_it(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line("a")])
    pause_batch(backend, batch.id)
    validate_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "in_progress"
    assert backend.shards.feed([batch.id], 9) == [[]]


def test_a_paused_batch_may_be_cancelled(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch)
    pause_batch(backend, batch.id)
    backend.store.cancel(batch.id)
    with pytest.raises(Conflict, match="Cannot resume a batch with status 'cancelling'"):
        resume_batch(backend, batch.id)
    wind_up(backend, batch.id)
    assert backend.store.batch(batch.id).counts.unrun == 20
    for change in (pause_batch, resume_batch):
        with pytest.raises(Conflict, match="with status 'cancelled'"):
            change(backend, batch.id)


def test_the_window_of_a_paused_batch_goes_on(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch)
    pause_batch(backend, batch.id)
    backend.redis.hset(f"pressrun:{{{batch.id}}}", "expires_at", int(time.time()))
    (tended,) = backend.shards.tend([batch.id], 9)
    assert tended is not None
    assert (tended.status, tended.closing) == ("finalizing", "expired")


def test_priority_and_window_change_and_the_window_only_grows(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch)
    changed = update_batch(backend, batch.id, priority=-3)
    assert (changed.priority, changed.expires_at) == (-3, batch.expires_at)
    changed = update_batch(backend, batch.id, completion_window="2d")
    assert (changed.priority, changed.completion_window) == (-3, "2d")
    assert changed.expires_at == batch.created_at + 2 * 86400
    with pytest.raises(UserError, match="ends before its present window") as caught:
        update_batch(backend, batch.id, priority=9, completion_window="47h")
    assert caught.value.param == "completion_window"
    assert backend.store.batch(batch.id) == changed
    with pytest.raises(UserError, match="Nothing to update"):
        update_batch(backend, batch.id)
    for shard in range(5):
        run_shard(backend, batch.id, shard, seed=3)
        run_shard(backend, batch.id, shard, seed=4)
    with pytest.raises(Conflict, match="Cannot update a batch with status 'completed'"):
        update_batch(backend, batch.id, priority=1)


def test_what_is_no_batch_cannot_be_paused_or_changed(backend: Backend) -> None:
    for change in (pause_batch, resume_batch):
        with pytest.raises(NotFound):
            change(backend, "batch_none")
    with pytest.raises(NotFound):
        update_batch(backend, "batch_none", priority=1)
