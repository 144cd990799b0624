"""Reading results while a batch runs and after: in order, without a gap, and the same as in its files at the end.

That each line comes once whatever dies is among the stories of `test_interleavings.py`.
"""

from __future__ import annotations

import json
import random

import pytest

from pressrun.jobs import arranging, results
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import Conflict, NotFound, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.frontier import arrived
from pressrun.jobs.lines import refused
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.results import ResultPage, read_results
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.submit import delete_file

from .conftest import MakeBackend, MakeBatch, chat_line, upload_batch
from .simulated import answer, commit, missing, run_shard


def running(backend: Backend, num_lines: int, text: str = "hi") -> Batch:
    lines = [
        chat_line(f"c{i:04}", messages=[{"role": "user", "content": f"{text} {i % 3} " * 9}]) for i in range(num_lines)
    ]
    batch = upload_batch(backend, lines)
    validate_batch(backend, batch.id)
    return backend.store.batch(batch.id)


def read_on(backend: Backend, batch: Batch, seen: list[bytes], limit: int = 1000) -> ResultPage:
    page = read_results(backend, batch.id, len(seen), limit)
    seen += page.lines
    assert page.next == len(seen)
    return page


def names(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["custom_id"] for line in lines]


def files(backend: Backend, batch: Batch) -> list[bytes]:
    ended = backend.store.batch(batch.id)
    ids = [file_id for file_id in (ended.output_file_id, ended.error_file_id) if file_id]
    return [
        line for file_id in ids for line in b"".join(backend.blobs.open(backend.store.file(file_id).blob)).splitlines()
    ]


def finish(backend: Backend, batch: Batch) -> None:
    while left := backend.shards.unsealed(batch.id):
        run_shard(backend, batch.id, left[0], seed=left[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("arranged", [False, True])
def test_a_reader_that_keeps_asking_gets_each_line_once(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch, arranged: bool, seed: int
) -> None:
    chance = random.Random(seed)
    if arranged:
        monkeypatch.setattr(arranging, "BOUNDARIES", (16, 64))
        monkeypatch.setattr(arranging, "WINDOW_BYTES", 1)
    backend = make_backend(shard_lines=chance.choice([1, 3, 7]))
    batch = running(backend, 40)
    assert batch.arranged == arranged
    seen: list[bytes] = []
    order = chance.sample(range(batch.num_shards), batch.num_shards)
    for shard in order:
        run_shard(backend, batch.id, shard, seed=shard)
        read_on(backend, batch, seen, chance.choice([1, 5, 100]))
    early = len(seen)
    finish(backend, batch)
    while not read_on(backend, batch, seen, chance.choice([1, 5, 100])).is_last:
        pass
    assert early > 0
    assert sorted(seen) == sorted(files(backend, batch))
    assert len(seen) == 40
    if not arranged:
        assert names(seen) == sorted(names(seen))


def test_lines_come_up_to_the_first_that_has_not_finished(backend: Backend) -> None:
    batch = running(backend, 10)  # Shards of four lines.
    run_shard(backend, batch.id, 1)
    assert read_results(backend, batch.id, 0, 100).lines == ()
    claim = backend.shards.claim(batch.id, 0, "me", 5.0)
    assert claim is not None
    lines = missing(backend, claim)
    commit(backend, claim, [answer(lines[0]), answer(lines[1]), answer(lines[3])])
    page = read_results(backend, batch.id, 0, 100)
    assert names(list(page.lines)) == ["c0000", "c0001"]
    assert (page.next, page.is_last, page.settled) == (2, False, False)
    commit(backend, claim, [answer(lines[2])])
    # One shard lies whole in its spool, the next in its segment.
    assert len(read_results(backend, batch.id, 0, 100).lines) == 8
    seal_shard(backend, claim)
    assert len(read_results(backend, batch.id, 2, 100).lines) == 6


def test_who_waits_hears_when_the_next_line_has_come(backend: Backend) -> None:
    batch = running(backend, 8)
    missing_now = read_results(backend, batch.id, 0, 100).missing
    run_shard(backend, batch.id, 1)
    assert arrived(backend.shards, [missing_now, missing_now]) == [False, False]
    claim = backend.shards.claim(batch.id, 0, "me", 5.0)
    assert claim is not None
    lines = missing(backend, claim)
    commit(backend, claim, [answer(lines[2])])
    assert arrived(backend.shards, [missing_now]) == [False]
    commit(backend, claim, [answer(lines[0])])
    assert arrived(backend.shards, [missing_now]) == [True]
    backend.shards.release(claim, count_attempt=False)
    later = read_results(backend, batch.id, 1, 100).missing
    assert arrived(backend.shards, [later]) == [False]
    backend.store.cancel(batch.id)
    assert arrived(backend.shards, [later, missing_now]) == [True, True]


def test_a_page_is_bounded_in_lines_and_bytes(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = running(backend, 20)
    finish(backend, batch)
    assert len(read_results(backend, batch.id, 3, 7).lines) == 7
    size = len(read_results(backend, batch.id, 0, 1).lines[0])
    monkeypatch.setattr(results, "MAX_PAGE_BYTES", 2 * size)
    assert 1 <= len(read_results(backend, batch.id, 0, 7).lines) <= 3
    monkeypatch.setattr(results, "MAX_PAGE_BYTES", 1)
    assert len(read_results(backend, batch.id, 0, 7).lines) == 1  # Or nobody would come past a large line.


def test_a_cancelled_batch_ends_with_its_unrun_lines(backend: Backend) -> None:
    batch = running(backend, 10)
    run_shard(backend, batch.id, 0)
    seen: list[bytes] = []
    read_on(backend, batch, seen)
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    assert read_on(backend, batch, seen).is_last
    assert names(seen) == [f"c{i:04}" for i in range(10)]
    assert sorted(seen) == sorted(files(backend, batch))


def test_a_batch_that_failed_has_no_results_and_says_so(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([{"custom_id": "a"}])
    page = read_results(backend, batch.id, 0, 100)
    assert (page.lines, page.is_last, page.missing.status) == ((), False, "validating")
    validate_batch(backend, batch.id)
    page = read_results(backend, batch.id, 0, 100)
    assert (page.lines, page.is_last, page.missing.status) == ((), True, "failed")


def test_a_cursor_beyond_the_batch_is_refused(backend: Backend) -> None:
    batch = running(backend, 5)
    assert read_results(backend, batch.id, 5, 10).is_last
    with pytest.raises(UserError, match="the batch has 5 lines, not 6"):
        read_results(backend, batch.id, 6, 10)


def test_deleting_a_result_file_deletes_its_index_and_the_results_are_gone(backend: Backend) -> None:
    batch = running(backend, 5)
    finish(backend, batch)
    batch = backend.store.batch(batch.id)
    assert batch.index_blob in list(backend.blobs.list(batch.results_folder))
    delete_file(backend, str(batch.output_file_id or batch.error_file_id))
    assert batch.index_blob not in list(backend.blobs.list(batch.results_folder))
    with pytest.raises(NotFound, match="was deleted or has expired"):
        read_results(backend, batch.id, 0, 10)


def test_a_segment_of_an_earlier_version_does_not_say_where_its_lines_are(backend: Backend) -> None:
    batch = running(backend, 8)
    for shard in (0, 1):
        claim = backend.shards.claim(batch.id, shard, "me", 5.0)
        assert claim is not None
        lines = missing(backend, claim)
        commit(
            backend,
            claim,
            [answer(line) for line in lines[:2]] + [refused(line, UserError("no")) for line in lines[2:]],
        )
        seal_shard(backend, claim)
        if shard == 0:
            sealed = f"{batch_key(batch.id)}:sealed"
            sizes = backend.redis.hget(sealed, "0").split(b":")
            backend.redis.hset(sealed, "0", b":".join([*sizes[:2], b"", sizes[3]]))
            with pytest.raises(Conflict, match="earlier version"):
                read_results(backend, batch.id, 0, 10)
    assert backend.store.batch(batch.id).status == "completed"
    assert len(files(backend, batch)) == 8
    with pytest.raises(Conflict, match="Download its output_file_id"):
        read_results(backend, batch.id, 0, 10)


def test_an_arranged_batch_without_a_note_of_its_order_is_read_at_its_end_in_its_files(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arranging, "BOUNDARIES", (16, 64))
    monkeypatch.setattr(arranging, "WINDOW_BYTES", 1)
    backend = make_backend(shard_lines=5)
    batch = running(backend, 20)
    assert batch.arranged
    backend.blobs.delete(batch.order_blob)
    run_shard(backend, batch.id, 0)
    page = read_results(backend, batch.id, 0, 100)
    assert (page.lines, page.is_last, page.missing.shard) == ((), False, None)
    finish(backend, batch)
    seen: list[bytes] = []
    assert read_on(backend, batch, seen).is_last
    assert names(seen) == [f"c{i:04}" for i in range(20)]
    assert sorted(seen) == sorted(files(backend, batch))
