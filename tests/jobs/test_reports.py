"""What is said of a batch beyond OpenAI's fields, as it goes."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.lines import refused
from pressrun.jobs.progress import progress_of
from pressrun.jobs.records import Batch, Claim, ModelCard
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.reports import Report, reports_of
from pressrun.jobs.shards import ERROR_KINDS
from pressrun.jobs.submit import create_batch, create_file

from .conftest import MakeBatch, chat_line, encode
from .simulated import answer, commit, missing, run_shard


def report(backend: Backend, batch: Batch) -> Report:
    batch = backend.store.batch(batch.id)
    (found,) = reports_of(backend, [batch])
    standing = asdict(found.standing)
    assert sum(standing.values()) == batch.counts.total
    return found


def claim(backend: Backend, batch: Batch, shard: int) -> Claim:
    taken = backend.shards.claim(batch.id, shard, "me", 60.0)
    assert taken is not None
    return taken


def in_line(backend: Backend, batch: Batch) -> None:
    validate_batch(backend, batch.id)
    backend.lineups.note(progress_of(backend.store, [batch.id]))
    backend.lineups.of("m").read_anew()


def measure(backend: Backend, tokens_per_s: float) -> None:
    backend.store.touch_model(ModelCard(id="m", max_model_len=100, created=1, worker="w", tokens_per_s=tokens_per_s))
    backend.lineups.of("m").read_anew()


def test_lines_are_counted_in_one_place_each_while_they_run(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(10)])
    assert asdict(report(backend, batch).standing) == dict.fromkeys(asdict(report(backend, batch).standing), 0)
    in_line(backend, batch)
    assert report(backend, batch).standing.queued == 10
    taken = claim(backend, batch, 0)
    lines = missing(backend, taken)
    commit(backend, taken, [answer(lines[0]), refused(lines[1], UserError("No."))])
    standing = report(backend, batch).standing
    assert (standing.queued, standing.running, standing.succeeded, standing.errored) == (6, 2, 1, 1)
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    standing = report(backend, batch).standing
    assert (standing.succeeded, standing.errored, standing.cancelled) == (1, 1, 8)


def test_lines_of_a_batch_that_failed_validation_are_errored(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line("a"), b"{"])
    validate_batch(backend, batch.id)
    assert report(backend, batch).standing.errored == 2


def test_equal_errors_are_counted_once_each_with_the_first_message(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(4)])
    in_line(backend, batch)
    taken = claim(backend, batch, 0)
    lines = missing(backend, taken)
    long = [refused(line, UserError(f"{line.index} is too long.", code="too_long", param="messages")) for line in lines]
    commit(backend, taken, [long[0], refused(lines[1], UserError("\ud800", param="x\ny_at"))])
    commit(backend, taken, long)
    first, second = backend.store.batch(batch.id).common_errors
    assert (first.code, first.param, first.message, first.count) == ("too_long", "messages", "0 is too long.", 3)
    assert (second.code, second.param, second.message, second.count) == ("400", "x\ny_at", "?", 1)


def test_however_many_kinds_of_errors_there_are_memory_is_bounded(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(4)])
    in_line(backend, batch)
    taken = claim(backend, batch, 0)
    (line, *_) = missing(backend, taken)
    for index in range(100):
        result = refused(line, UserError("No.", param=f"p{index}" * 1000))
        commit(backend, taken, [replace(result, index=index)])
    counted = backend.store.batch(batch.id).common_errors
    assert (len(counted), sum(error.count for error in counted)) == (ERROR_KINDS + 1, 100)
    assert counted[0].code == "other"
    assert sum(map(len, backend.redis.hkeys(batch_key(batch.id)))) < 10_000


def test_place_and_eta_are_told_while_something_waits(backend: Backend, make_batch: MakeBatch) -> None:
    first, second = (make_batch([chat_line(f"c{i}", max_tokens=99) for i in range(8)]) for _ in range(2))
    backend.redis.hset(batch_key(second.id), "created_at", first.created_at + 1)
    for batch in (first, second):
        assert (report(backend, batch).queue_place, report(backend, batch).eta) == (None, None)
        in_line(backend, batch)
    assert [report(backend, batch).queue_place for batch in (first, second)] == [1, 2]
    assert report(backend, second).eta is None
    measure(backend, 10.0)
    told = report(backend, second)
    expected = backend.lineups.of("m").read().read_at + 2 * told.estimated_tokens / 10
    assert told.eta == pytest.approx(expected, abs=2)
    assert told.feasible is True
    backend.shards.draw([(first.id, 2)])
    backend.lineups.note(progress_of(backend.store, [first.id]))
    backend.lineups.of("m").read_anew()
    fed = report(backend, first)
    assert fed.queue_place is None
    assert fed.eta is not None


def strict_batch(backend: Backend, window: str, priority: int = 0) -> Batch:
    lines = [chat_line(f"c{i}", max_tokens=250) for i in range(40)]  # 10,000 tokens
    file = create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(*lines)])
    batch = create_batch(
        backend,
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window=window,
        priority=priority,
        strict=True,
    )
    in_line(backend, batch)
    return backend.store.batch(batch.id)


def test_a_strict_batch_that_would_come_too_late_fails_and_says_when_it_would_end(backend: Backend) -> None:
    assert strict_batch(backend, "1m").status == "in_progress"  # Nothing has been measured yet.
    measure(backend, 100.0)
    assert strict_batch(backend, "2m").status == "in_progress"
    late = strict_batch(backend, "2m")  # One of the two can be done by then.
    assert late.status == "failed"
    (error,) = late.errors
    assert (error.code, error.param) == ("window_too_short", "completion_window")
    assert "Unix" in error.message
    assert strict_batch(backend, "10m").status == "in_progress"
    assert strict_batch(backend, "2m", priority=1).status == "in_progress"


def test_seconds_are_told_by_phase(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line("a")])
    in_line(backend, batch)
    run_shard(backend, batch.id, 0)
    key = batch_key(batch.id)
    created = backend.store.batch(batch.id).created_at
    marks = {"in_progress_at": 10, "started_at": 40, "finalizing_at": 100, "completed_at": 101}
    backend.redis.hset(key, mapping={name: created + later for name, later in marks.items()})
    assert report(backend, batch).seconds == {"validating": 10, "queued": 30, "running": 60, "finalizing": 1}
    backend.redis.hdel(key, "started_at")  # As of a version that did not keep it.
    assert report(backend, batch).seconds == {"validating": 10, "queued": 90, "running": 0, "finalizing": 1}
