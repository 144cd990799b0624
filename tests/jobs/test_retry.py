"""Lines of ended batches that run again: the files hold each line once, and who is late from before does no harm."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from redis.exceptions import LockNotOwnedError

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.deliveries import deliveries_of
from pressrun.jobs.errors import BlobMissing, Conflict, NotFound, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.lines import answered, refused
from pressrun.jobs.lineup import BILLS
from pressrun.jobs.progress import progress_of
from pressrun.jobs.records import Batch, Line, LineResult, Usage
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.reports import standing_of
from pressrun.jobs.results import read_results
from pressrun.jobs.retry import retry_batch
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.submit import delete_file, sweep_files
from pressrun.jobs.webhooks import EVENT_TYPES, create_endpoint

from .conftest import MakeBackend, MakeBatch, chat_line
from .simulated import Process, commit, missing

NAMES = [f"c{i}" for i in range(10)]
Run = Callable[[Line], LineResult]


def well(run: int) -> Run:
    return lambda line: answered(line, {"run": run}, Usage(input_tokens=1, output_tokens=run))


def odd_ones_fail(run: int) -> Run:
    error = UserError("Odd.", code="odd")
    return lambda line: refused(line, error) if int(line.custom_id[1:]) % 2 else well(run)(line)


def run_all(backend: Backend, batch: Batch, run: Run) -> Batch:
    """Validate a batch and run all that there is of it."""
    validate_batch(backend, batch.id)
    for shard in backend.shards.unsealed(batch.id):
        claim = backend.shards.claim(batch.id, shard, "me", 60.0)
        assert claim is not None
        assert commit(backend, claim, map(run, missing(backend, claim))) == "complete"
        seal_shard(backend, claim)
    return backend.store.batch(batch.id)


def ended(backend: Backend, make_batch: MakeBatch) -> Batch:
    return run_all(backend, make_batch([chat_line(name) for name in NAMES]), odd_ones_fail(1))


def results(backend: Backend, file_id: str | None) -> dict[str, object]:
    """The run in which each line of a file came, or its error; in the order of the file."""
    if file_id is None:
        return {}
    lines = map(json.loads, b"".join(backend.blobs.open(backend.store.file(file_id).blob)).splitlines())
    found = {line["custom_id"]: line["response"]["body"].get("run") if line["response"] else None for line in lines}
    assert list(found) == sorted(found)
    return found


def test_failed_lines_run_again_and_the_new_files_hold_every_line_once(backend: Backend, make_batch: MakeBatch) -> None:
    before = ended(backend, make_batch)
    assert before.error_file_id is not None
    opened = retry_batch(backend, before.id, "failed")
    assert (opened.status, opened.generation) == ("validating", 1)
    assert (opened.output_file_id, opened.error_file_id) == (before.output_file_id, before.error_file_id)
    after = run_all(backend, before, well(2))
    assert (after.status, after.error_file_id) == ("completed", None)
    assert after.output_file_id != before.output_file_id
    assert results(backend, after.output_file_id) == {name: 1 + int(name[1:]) % 2 for name in NAMES}
    assert (after.counts.completed, after.counts.failed, after.common_errors) == (10, 0, ())
    assert (after.usage.input_tokens, after.usage.output_tokens) == (10, 5 + 2 * 5)
    assert list(results(backend, before.output_file_id)) == NAMES[::2]  # As it was.
    for folder in ("segments", "arranged", "retries"):
        assert list(backend.blobs.list(folder)) == []
    assert backend.store.active("batch") == []
    assert backend.redis.hgetall(BILLS) == {}
    assert set(backend.redis.keys(f"{batch_key(after.id)}:*")) == set()


def test_results_are_read_anew_in_the_files_order_once_a_retry_has_ended(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = ended(backend, make_batch)
    assert read_results(backend, batch.id, 0, 100).is_last
    retry_batch(backend, batch.id, "failed")
    for validated in (False, True):
        if validated:
            validate_batch(backend, batch.id)
        page = read_results(backend, batch.id, 0, 100)
        assert (page.lines, page.next, page.is_last) == ((), 0, False)
    run_all(backend, batch, lambda line: refused(line, UserError("No.")) if line.custom_id == "c3" else well(2)(line))
    pages = [read_results(backend, batch.id, after, 6) for after in (0, 6)]
    assert [page.is_last for page in pages] == [False, True]
    lines = [json.loads(line) for page in pages for line in page.lines]
    assert [line["custom_id"] for line in lines] == NAMES
    assert [line["response"]["body"].get("run") for line in lines] == [1, 2, 1, None, 1, 2, 1, 2, 1, 2]


def test_results_of_a_retry_that_came_to_nothing_are_those_from_before(backend: Backend, make_batch: MakeBatch) -> None:
    batch = ended(backend, make_batch)
    retry_batch(backend, batch.id, "failed")
    backend.blobs.delete(batch.input_blob)
    validate_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "failed"
    pages = [read_results(backend, batch.id, after, 6) for after in (0, 6)]
    assert [page.is_last for page in pages] == [False, True]
    assert [json.loads(line)["custom_id"] for page in pages for line in page.lines] == NAMES


def test_every_end_of_a_batch_is_an_event_also_where_nobody_told_of_the_first(
    make_backend: MakeBackend, make_batch: MakeBatch
) -> None:
    backend = make_backend(webhook_allow_private=True)
    hook = create_endpoint(backend, name="mine", url="http://127.0.0.1:9/", event_types=EVENT_TYPES)
    batch = make_batch([chat_line(name) for name in NAMES])
    validate_batch(backend, batch.id)
    for _ in range(2):
        for shard in backend.shards.unsealed(batch.id):
            claim = backend.shards.claim(batch.id, shard, "me", 60.0)
            assert claim is not None
            commit(backend, claim, map(odd_ones_fail(1), missing(backend, claim)))
            if len(backend.shards.unsealed(batch.id)) > 1:
                seal_shard(backend, claim)
                continue
            process = Process(backend, lambda backend, claim=claim: seal_shard(backend, claim))
            while backend.store.batch(batch.id).status != "completed":
                process.step()
            process.kill()  # Before it could tell of the end.
            backend.redis.delete(f"{batch_key(batch.id)}:lock")
        told = len(deliveries_of(backend, hook.id).items)
        retry_batch(backend, batch.id, "failed")
        assert len(deliveries_of(backend, hook.id).items) == told + 1
        validate_batch(backend, batch.id)
    assert len({one.event_id for one in deliveries_of(backend, hook.id).items}) == 2


def test_chosen_lines_run_again_whatever_became_of_them(backend: Backend, make_batch: MakeBatch) -> None:
    before = ended(backend, make_batch)
    retry_batch(backend, before.id, ["c3", "c4"])
    after = run_all(backend, before, well(2))
    assert results(backend, after.output_file_id) == {"c0": 1, "c2": 1, "c3": 2, "c4": 2, "c6": 1, "c8": 1}
    assert list(results(backend, after.error_file_id)) == ["c1", "c5", "c7", "c9"]
    assert [(error.code, error.count) for error in after.common_errors] == [("odd", 4)]
    assert after.usage.output_tokens == 5 + 2 * 2  # What c4 took the first time was used all the same.


def test_a_retry_may_be_retried(backend: Backend, make_batch: MakeBatch) -> None:
    batch = ended(backend, make_batch)
    for run in (2, 3):
        retry_batch(backend, batch.id, "failed")
        run_all(backend, batch, odd_ones_fail(run) if run == 2 else well(run))
    done = backend.store.batch(batch.id)
    assert done.generation == 2
    assert set(results(backend, done.output_file_id).values()) == {1, 3}
    with pytest.raises(UserError, match="No line of this batch has failed"):
        retry_batch(backend, batch.id, "failed")


def test_a_cancelled_batch_runs_what_it_had_not_run(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(name) for name in NAMES])
    validate_batch(backend, batch.id)
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    retry_batch(backend, batch.id, ["c1"])
    done = run_all(backend, batch, well(2))
    assert (done.status, done.closing, done.counts.completed, done.counts.unrun) == ("completed", None, 1, 9)
    assert standing_of(done, 0).cancelled == 9
    retry_batch(backend, batch.id, "failed")
    done = run_all(backend, batch, well(3))
    assert set(results(backend, done.output_file_id).values()) == {2, 3}
    assert list(results(backend, done.output_file_id)) == NAMES


def test_a_retry_that_is_cancelled_keeps_what_went_well_before(backend: Backend, make_batch: MakeBatch) -> None:
    batch = ended(backend, make_batch)
    retry_batch(backend, batch.id, "failed")
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    done = backend.store.batch(batch.id)
    assert (done.status, done.counts.completed, done.counts.unrun) == ("cancelled", 5, 5)
    assert list(results(backend, done.output_file_id)) == NAMES[::2]
    assert list(results(backend, done.error_file_id)) == NAMES[1::2]


def test_a_retry_has_its_window_anew_and_is_charged_for_what_it_adds(backend: Backend, make_batch: MakeBatch) -> None:
    batch = ended(backend, make_batch)
    backend.redis.hset(batch_key(batch.id), "expires_at", 1)
    opened = retry_batch(backend, batch.id, "failed")
    assert opened.expires_at == opened.times["reopened_at"] + 86400
    validate_batch(backend, batch.id)
    (progress,) = progress_of(backend.store, [batch.id])
    assert (progress.lines_left, progress.waiting, progress.tokens_owed) == (5, 2, 0)


@pytest.mark.parametrize("lines", [[], ["nobody"], ["c1", "nobody"], ["x"] * 10_001])
def test_lines_that_are_not_there_are_refused(backend: Backend, make_batch: MakeBatch, lines: list[str]) -> None:
    batch = ended(backend, make_batch)
    with pytest.raises(UserError) as caught:
        retry_batch(backend, batch.id, lines)
    assert caught.value.param == "lines"
    assert backend.store.batch(batch.id) == batch


def test_only_what_has_ended_well_or_early_is_retried(backend: Backend, make_batch: MakeBatch) -> None:
    running, bad = make_batch([chat_line("a")]), make_batch([chat_line("a"), b"{"])
    validate_batch(backend, bad.id)
    for batch, status in ((running, "validating"), (bad, "failed")):
        with pytest.raises(Conflict, match=f"Cannot retry a batch with status '{status}'"):
            retry_batch(backend, batch.id, "failed")
    with pytest.raises(NotFound):
        retry_batch(backend, "batch_none", "failed")


@pytest.mark.parametrize("which", ["input_file_id", "output_file_id", "error_file_id"])
def test_what_was_deleted_cannot_be_retried_and_what_is_retried_is_not_deleted(
    backend: Backend, make_batch: MakeBatch, which: str
) -> None:
    batch, gone = (ended(backend, make_batch) for _ in range(2))
    delete_file(backend, getattr(gone, which))
    with pytest.raises(Conflict, match="has been deleted"):
        retry_batch(backend, gone.id, "failed")
    retry_batch(backend, batch.id, "failed")
    blob = backend.store.file(getattr(batch, which)).blob
    delete_file(backend, getattr(batch, which))
    assert backend.blobs.size(blob)
    assert run_all(backend, batch, well(2)).counts.completed == 10
    sweep_files(backend, [getattr(batch, which)])
    assert blob not in [*backend.blobs.list("files"), *backend.blobs.list("results")]


def test_a_file_that_is_torn_away_by_other_hands_fails_the_retry_and_takes_no_result(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = ended(backend, make_batch)
    retry_batch(backend, batch.id, "failed")
    backend.blobs.delete(batch.input_blob)
    validate_batch(backend, batch.id)
    failed = backend.store.batch(batch.id)
    assert (failed.status, failed.errors[0].code) == ("failed", "file_deleted")
    assert list(results(backend, failed.output_file_id)) == NAMES[::2]
    end_batch(backend, batch.id)
    assert backend.store.active("batch") == []


def test_of_two_who_retry_at_once_one_does(backend: Backend, make_batch: MakeBatch) -> None:
    batch = ended(backend, make_batch)
    late = Process(backend, lambda other: retry_batch(other, batch.id, ["c1"]))
    late.step(4)
    retry_batch(backend, batch.id, "failed")
    late.finish()
    assert isinstance(late.error, Conflict)
    assert run_all(backend, batch, well(2)).counts.completed == 10


def test_one_who_ended_the_generation_before_and_stalled_does_no_harm(backend: Backend, make_batch: MakeBatch) -> None:
    """It stands still at every call from ending the batch on, while the batch is opened again and has run."""
    for steps in range(7, 130):
        batch = make_batch([chat_line(name) for name in NAMES])
        validate_batch(backend, batch.id)
        *first, last = backend.shards.unsealed(batch.id)
        run = odd_ones_fail(1)
        for shard in (*first, last):
            claim = backend.shards.claim(batch.id, shard, "me", 60.0)
            assert claim is not None
            commit(backend, claim, map(run, missing(backend, claim)))
            if shard != last:
                seal_shard(backend, claim)
        stalled = Process(backend, lambda other, claim=claim: seal_shard(other, claim))  # type: ignore[misc]
        stalled.step(steps)
        backend.redis.delete(f"{batch_key(batch.id)}:lock")
        end_batch(backend, batch.id)
        retry_batch(backend, batch.id, "failed")
        validate_batch(backend, batch.id)
        over = stalled.ended
        stalled.finish()
        done = run_all(backend, batch, well(2))
        assert results(backend, done.output_file_id) == {name: 1 + int(name[1:]) % 2 for name in NAMES}, steps
        if over:
            return
    raise AssertionError("it took more calls than were tried")


def test_one_who_wound_up_the_generation_before_and_stalled_ends_no_line_of_the_next(
    backend: Backend, make_batch: MakeBatch
) -> None:
    """It stands still at every call while the cancelled batch ends and is opened again."""
    for steps in range(1, 200, 3):
        batch = make_batch([chat_line(name) for name in NAMES])
        validate_batch(backend, batch.id)
        backend.store.cancel(batch.id)
        stalled = Process(backend, lambda other, batch_id=batch.id: wind_up(other, batch_id))  # type: ignore[misc]
        stalled.step(steps)
        backend.redis.delete(f"{batch_key(batch.id)}:lock")
        wind_up(backend, batch.id)
        retry_batch(backend, batch.id, "failed")
        validate_batch(backend, batch.id)
        over = stalled.ended
        stalled.finish()
        assert stalled.error is None or isinstance(stalled.error, (LockNotOwnedError, BlobMissing)), steps
        done = run_all(backend, batch, well(2))
        assert results(backend, done.output_file_id) == dict.fromkeys(NAMES, 2), steps
        if over:
            return
    raise AssertionError("it took more calls than were tried")
