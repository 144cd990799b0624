"""The shard protocol: leases, fences and counters, on a real server."""

from __future__ import annotations

import time

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.finish import end_batch, seal_shard, validate_batch, wind_up
from pressrun.jobs.records import Batch, Claim, LineResult, ShardCommit, Usage

from .conftest import MakeBatch, chat_line


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
    return b"".join(backend.blobs.open(f"files/{file_id}")).splitlines() if file_id else []


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

    target = {"nothing": "pressrun.jobs.finish._publish", "files": "pressrun.jobs.store.Store.move"}
    with monkeypatch.context() as patch:
        patch.setattr(target.get(done_before, "pressrun.jobs.finish._clean"), crash)
        with pytest.raises(Crash):
            seal_shard(backend, taken)
    end_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "completed"
    assert len(output(backend, batch)) == 4
    assert len(backend.store.files().items) == 2
    assert backend.store.active("batch") == []
