"""The shard protocol: leases, fences and counters, on a real server."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from redis.exceptions import LockNotOwnedError

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.filling import give_up_on, wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.lines import never_ran, requests_of
from pressrun.jobs.records import Batch, BatchStatus, Claim, ErrorCount, LineError, LineResult, ShardCommit, Usage
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.sealing import seal_shard

from .conftest import MakeBackend, MakeBatch, chat_line, upload_batch
from .simulated import Process


def results(claim: Claim, outcome: str = "succeeded") -> tuple[LineResult, ...]:
    """One result for every line of the claim that has none yet."""
    shard = claim.shard
    lines = range(shard.first_line, shard.first_line + shard.num_lines)
    return tuple(
        LineResult(index=i, outcome=outcome, data=b"line %d" % i, usage=Usage(input_tokens=3, output_tokens=2))  # type: ignore[arg-type]
        for i in lines
        if i not in claim.done
    )


def commit(backend: Backend, claim: Claim, lines: tuple[LineResult, ...]) -> str:
    shard = ShardCommit(
        batch_id=claim.batch.id,
        shard=claim.shard.index,
        owner=claim.owner,
        num_lines=claim.shard.num_lines,
        results=lines,
    )
    return backend.shards.commit([shard])[0]


def claim(backend: Backend, batch: Batch, shard: int, owner: str, lease_s: float = 5.0) -> Claim:
    taken = backend.shards.claim(batch.id, shard, owner, lease_s)
    assert taken is not None
    return taken


def running(backend: Backend, make_batch: MakeBatch, num_lines: int) -> Batch:
    batch = make_batch([chat_line(f"c{i}") for i in range(num_lines)])
    validate_batch(backend, batch.id)
    return backend.store.batch(batch.id)


def output(backend: Backend, batch: Batch, part: str = "output") -> list[bytes]:
    file_id = getattr(backend.store.batch(batch.id), f"{part}_file_id")
    return b"".join(backend.blobs.open(backend.store.file(file_id).blob)).splitlines() if file_id else []


def test_a_batch_runs_from_validation_to_its_output_file(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 10)
    assert (batch.status, batch.num_shards, batch.counts.total, batch.model) == ("in_progress", 3, 10, "m")
    assert backend.shards.feed([batch.id], 2) == [[0, 1]]
    assert backend.shards.feed([batch.id], 2) == [[]]
    for shard in (2, 0, 1):  # in any order
        taken = claim(backend, batch, shard, "me")
        assert commit(backend, taken, results(taken)) == "complete"
        seal_shard(backend, taken)
    done = backend.store.batch(batch.id)
    assert done.status == "completed"
    assert (done.counts.completed, done.usage.input_tokens, done.usage.output_tokens) == (10, 30, 20)
    assert output(backend, batch) == [b"line %d" % i for i in range(10)]
    assert done.error_file_id is None
    assert backend.store.active("batch") == []
    assert list(backend.blobs.list(f"segments/{batch.id}")) == []
    assert list(backend.redis.keys("*spool*")) == []


def test_a_line_counts_once_however_often_it_is_committed(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "me")
    lines = results(taken)
    assert commit(backend, taken, lines[:2]) == "ok"
    assert commit(backend, taken, lines[1:3]) == "ok"
    counts = backend.store.batch(batch.id).counts
    assert counts.completed == 3


def test_a_line_that_comes_twice_in_one_commit_counts_once_as_it_came_first(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "me")
    first, second, *_ = results(taken)
    again = replace(first, data=b"other", outcome="failed", error=LineError(code="late", message="m"))
    assert commit(backend, taken, (first, second, again)) == "ok"
    after = backend.store.batch(batch.id)
    assert (after.counts.completed, after.counts.failed, after.usage.input_tokens) == (2, 0, 6)
    assert after.common_errors == ()
    assert backend.shards.spool(batch.id, 0) == [(0, "s", b"line 0"), (1, "s", b"line 1")]


@pytest.mark.parametrize("num_lines", [1000, 2500])
@pytest.mark.parametrize("num_early", [0, 1])
def test_thousands_of_lines_are_committed_at_once_with_what_failed_among_them(
    make_backend: MakeBackend, num_early: int, num_lines: int
) -> None:
    backend = make_backend(shard_lines=3000)
    batch = upload_batch(backend, [chat_line(f"c{i}") for i in range(num_lines)])
    validate_batch(backend, batch.id)
    taken = claim(backend, batch, 0, "me")
    late = LineError(code="late", message="too late", param="p")
    lines = [replace(one, outcome="failed", error=late) if one.index % 5 == 2 else one for one in results(taken)]
    commit(backend, taken, tuple(lines[:num_early]))
    assert commit(backend, taken, tuple(lines)) == "complete"
    after = backend.store.batch(batch.id)
    num_failed = num_lines // 5
    assert (after.counts.completed, after.counts.failed) == (num_lines - num_failed, num_failed)
    assert after.usage.output_tokens == 2 * num_lines
    assert after.common_errors == (ErrorCount(code="late", param="p", message="too late", count=num_failed),)
    assert len(backend.shards.spool(batch.id, 0)) == num_lines


def test_the_latest_claim_wins_and_the_earlier_owner_can_do_nothing(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 4)
    old = claim(backend, batch, 0, "old")
    commit(backend, old, results(old)[:1])
    new = claim(backend, batch, 0, "new")
    assert new.done == {0}
    assert commit(backend, old, results(old)) == "lost"
    assert backend.shards.hold([old, new], 5.0) == [False, True]
    assert not backend.shards.release(old, count_attempt=True)
    assert commit(backend, new, results(new)) == "complete"
    seal_shard(backend, old)
    assert backend.store.batch(batch.id).status == "in_progress"
    seal_shard(backend, new)
    assert backend.store.batch(batch.id).status == "completed"


def test_a_lapsed_lease_puts_the_shard_back_and_a_renewed_one_does_not(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 8)
    silent, alive = claim(backend, batch, 0, "a", 0.01), claim(backend, batch, 1, "b", 0.01)
    backend.shards.hold([alive], 60.0)
    time.sleep(0.02)
    assert [tended.back for tended in backend.shards.tend([batch.id], 9) if tended] == [(0,)]
    assert commit(backend, silent, results(silent)) == "lost"
    assert commit(backend, alive, results(alive)) == "complete"
    assert backend.shards.feed([batch.id], 5) == [[0]]


def test_attempts_count_claims_without_progress(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 4)
    for owner in ("a", "b", "c"):
        taken = claim(backend, batch, 0, owner)
    assert backend.shards.attempts(batch.id) == {0: 3}
    backend.shards.release(taken, count_attempt=False)
    assert backend.shards.attempts(batch.id) == {0: 2}
    taken = claim(backend, batch, 0, "d")
    commit(backend, taken, results(taken)[:1])
    assert backend.shards.attempts(batch.id) == {}


def test_a_second_validation_changes_nothing(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 8)
    taken = claim(backend, batch, 0, "me")
    commit(backend, taken, results(taken))
    geometry = [claim(backend, batch, 1, "me").shard]
    backend.shards.begin(batch.id, geometry, model="m", total=8)
    seal_shard(backend, taken)
    assert backend.shards.unsealed(batch.id) == [1]


def test_cancelling_keeps_what_ran_and_fills_in_the_rest_in_order(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 10)
    taken = claim(backend, batch, 1, "me")
    commit(backend, taken, results(taken)[1:3])
    assert backend.store.cancel(batch.id).status == "cancelling"
    assert backend.shards.hold([taken], 5.0) == [False]
    assert backend.shards.claim(batch.id, 2, "other", 5.0) is None
    wind_up(backend, batch.id)
    done = backend.store.batch(batch.id)
    assert done.status == "cancelled"
    assert (done.counts.completed, done.counts.failed, done.counts.unrun) == (2, 0, 8)
    assert output(backend, batch) == [b"line 5", b"line 6"]
    errors = output(backend, batch, "error")
    assert [line.split(b'"custom_id":"')[1].split(b'"')[0] for line in errors] == [
        b"c%d" % i for i in (0, 1, 2, 3, 4, 7, 8, 9)
    ]
    assert all(b"batch_cancelled" in line for line in errors)
    assert commit(backend, taken, results(taken)) == "lost"


def test_a_batch_cancelled_before_it_was_validated_still_answers_every_line(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(6)])
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    assert backend.store.batch(batch.id).status == "cancelled"
    assert len(output(backend, batch, "error")) == 6


@pytest.mark.parametrize("done_before", ["nothing", "files", "move"])
def test_ending_a_batch_again_after_a_crash_gives_the_same(
    backend: Backend, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, done_before: str
) -> None:
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "me")
    commit(backend, taken, results(taken))

    class Crash(Exception):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    target = {"nothing": "pressrun.jobs.finish.publish", "files": "pressrun.jobs.store.Store.end"}
    with monkeypatch.context() as patch:
        patch.setattr(target.get(done_before, "pressrun.jobs.finish._clean"), crash)
        with pytest.raises(Crash):
            seal_shard(backend, taken)
    end_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "completed"
    assert len(output(backend, batch)) == 4
    assert len(backend.store.files().items) == 2
    assert backend.store.active("batch") == []


def test_a_release_after_progress_gives_no_attempt_back(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "a")
    commit(backend, taken, results(taken)[:1])
    assert backend.shards.release(taken, count_attempt=False)
    assert backend.shards.attempts(batch.id) == {}


def test_a_shard_is_spent_when_its_claims_came_to_nothing_and_nobody_holds_it(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = running(backend, make_batch, 8)

    def spent(max_attempts: int) -> tuple[int, ...]:
        (tended,) = backend.shards.tend([batch.id], max_attempts)
        assert tended is not None
        return tended.spent

    for _ in range(3):
        taken = claim(backend, batch, 1, "a")
        assert spent(1) == ()
        backend.shards.release(taken, count_attempt=True)
    assert (spent(3), spent(4)) == ((1,), ())
    taken = claim(backend, batch, 1, "a")
    commit(
        backend,
        taken,
        [never_ran(line, "worker_lost") for line in requests_of(backend.blobs, taken.batch, taken.shard)],
    )
    backend.shards.release(taken, count_attempt=False)
    assert spent(3) == ()
    assert backend.store.batch(batch.id).counts.failed == 4


def test_of_a_spent_shard_only_the_lines_tried_last_fail_and_the_others_run_again(
    make_backend: MakeBackend, make_batch: MakeBatch
) -> None:
    backend = make_backend(max_attempts=3)  # With all 4 lines, with 2, with 1.
    batch = running(backend, make_batch, 8)
    for _ in range(3):
        backend.shards.release(claim(backend, batch, 1, "a"), count_attempt=True)
    give_up_on(backend, batch.id, 1)
    assert backend.store.batch(batch.id).counts.failed == 1
    give_up_on(backend, batch.id, 1)  # Another housekeeper, that saw the same.
    assert backend.store.batch(batch.id).counts.failed == 1
    assert backend.shards.feed([batch.id], 2) == [[0, 1]]
    again = claim(backend, batch, 1, "b")
    give_up_on(backend, batch.id, 1)
    assert (again.attempts, again.done) == (1, {4})
    assert commit(backend, again, results(again)) == "complete"


def test_once_its_window_has_closed_a_batch_is_neither_held_nor_claimed_but_wound_up(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = running(backend, make_batch, 8)
    held = claim(backend, batch, 0, "a")
    assert backend.shards.hold([held], 5.0) == [True]
    backend.redis.hset(batch_key(batch.id), "expires_at", int(time.time()) - 1)  # No housekeeper has seen it yet.
    assert backend.shards.hold([held], 5.0) == [False]
    assert backend.shards.claim(batch.id, 1, "a", 5.0) is None
    assert backend.shards.claim(batch.id, 1, "a", 5.0, winding_up=True) is not None


def test_a_queued_shard_that_was_claimed_meanwhile_is_not_lost(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 12)
    assert backend.shards.feed([batch.id], 2) == [[0, 1]]
    taken = claim(backend, batch, 0, "a")
    assert backend.shards.requeue(batch.id, [0, 1]) == [1]
    assert backend.shards.queued([batch.id]) == [[]]
    assert backend.shards.feed([batch.id], 9) == [[1, 2]]
    assert commit(backend, taken, results(taken)) == "complete"


def test_an_unknown_batch_is_neither_fed_nor_tended_nor_claimed(backend: Backend) -> None:
    assert backend.shards.feed(["batch_none"], 3) == [[]]
    assert backend.shards.tend(["batch_none"], 3) == [None]
    assert backend.shards.claim("batch_none", 0, "a", 5.0) is None
    assert (backend.shards.feed([], 3), backend.shards.tend([], 3), backend.shards.queued([])) == ([], [], [])


def halted(backend: Backend, batch: Batch, taken: Claim, before: str) -> Process:
    """A worker that stands still as it seals, before it writes (`put`) or before it says so (`seal`)."""
    process = Process(backend, lambda other: seal_shard(other, taken))
    process.step(2 if before == "put" else 4)
    written = list(backend.blobs.list(f"segments/{batch.id}"))
    assert written == [batch.segment_blob(0, "output", taken.owner)] * (before == "seal")
    return process


@pytest.mark.parametrize("before", ["put", "seal"])
def test_a_worker_that_stalls_as_it_seals_does_no_harm_when_it_comes_back(
    backend: Backend, make_batch: MakeBatch, before: str
) -> None:
    batch = running(backend, make_batch, 8)
    stalled = claim(backend, batch, 0, "stalled")
    commit(backend, stalled, results(stalled))
    process = halted(backend, batch, stalled, before)
    for shard in (0, 1):
        taken = claim(backend, batch, shard, "other")
        assert commit(backend, taken, results(taken)) == "complete"
        seal_shard(backend, taken)
    done = backend.store.batch(batch.id)
    process.finish()
    assert process.error is None
    assert backend.store.batch(batch.id) == done
    assert output(backend, batch) == [b"line %d" % i for i in range(8)]


def test_lines_that_a_crash_of_redis_took_back_are_run_again(backend: Backend, make_batch: MakeBatch) -> None:
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "first")
    commit(backend, taken, results(taken))
    process = halted(backend, batch, taken, "seal")
    backend.redis.hdel(f"{batch_key(batch.id)}:spool:0", "3")  # What everysec may lose.
    backend.redis.hincrby(batch_key(batch.id), "completed", -1)
    process.finish()
    seal_shard(backend, taken)
    assert backend.shards.unsealed(batch.id) == [0]
    again = claim(backend, batch, 0, "second")
    assert again.done == {0, 1, 2}
    assert commit(backend, again, results(again, "failed")) == "complete"
    seal_shard(backend, again)
    assert (len(output(backend, batch)), len(output(backend, batch, "error"))) == (3, 1)
    assert backend.store.batch(batch.id).counts.completed == 3


def ending(backend: Backend, make_batch: MakeBatch) -> tuple[Batch, Process]:
    """A batch whose files are about to be written by a process that stands still there."""
    batch = running(backend, make_batch, 4)
    taken = claim(backend, batch, 0, "me")
    commit(backend, taken, results(taken))
    process = Process(backend, lambda other: seal_shard(other, taken))
    while backend.store.batch(batch.id).status != "finalizing":
        process.step()
    process.step(4)  # To take the lock, and to look at the batch and its segments.
    return batch, process


def test_a_batch_cancelled_as_it_ends_is_cancelled_with_all_it_has(backend: Backend, make_batch: MakeBatch) -> None:
    batch, process = ending(backend, make_batch)
    assert backend.store.cancel(batch.id).status == "cancelling"
    process.finish()
    assert backend.store.batch(batch.id).status == "cancelling"
    wind_up(backend, batch.id)
    assert backend.store.batch(batch.id).status == "cancelled"
    assert len(output(backend, batch)) == 4


def test_a_process_that_lost_the_lock_stops_before_it_meets_another(backend: Backend, make_batch: MakeBatch) -> None:
    batch, process = ending(backend, make_batch)
    end_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "finalizing"  # One at a time.
    backend.redis.delete(f"{batch_key(batch.id)}:lock")
    end_batch(backend, batch.id)
    done = backend.store.batch(batch.id)
    assert done.status == "completed"
    process.finish()
    assert isinstance(process.error, LockNotOwnedError)
    assert backend.store.batch(batch.id) == done
    assert len(output(backend, batch)) == 4


@pytest.mark.parametrize("closing", ["cancelled", "expired"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_batch_wound_up_as_it_is_validated_ends_as_that(
    backend: Backend, make_batch: MakeBatch, closing: str, sound: bool
) -> None:
    batch = make_batch([chat_line("a"), chat_line("b") if sound else b"{"])
    process = Process(backend, lambda other: validate_batch(other, batch.id))
    process.step(3)  # It has the lock, and has read the batch.
    to: BatchStatus = "cancelling" if closing == "cancelled" else "finalizing"
    assert backend.store.move(batch.id, to, closing=closing)
    wind_up(backend, batch.id)
    assert backend.store.batch(batch.id).status == to  # The other still has the lock.
    process.finish()
    assert process.error is None
    wind_up(backend, batch.id)
    done = backend.store.batch(batch.id)
    assert (done.status, done.counts.unrun) == (closing, 2 * sound)
    assert [error.code for error in done.errors] == ([] if sound else ["invalid_json_line"])
    assert len(output(backend, batch, "error")) == 2 * sound


def test_a_validation_that_comes_after_the_end_changes_nothing(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line("a")])
    late = Process(backend, lambda other: validate_batch(other, batch.id))
    late.step(3)
    backend.redis.delete(f"{batch_key(batch.id)}:lock")
    backend.store.fail(batch.id, [], 1)
    end_batch(backend, batch.id)
    before = set(backend.redis.keys("*"))
    late.finish()
    assert set(backend.redis.keys("*")) - before == set()
    assert backend.store.batch(batch.id).status == "failed"
