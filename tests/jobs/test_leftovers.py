"""Segments are their writers' alone: late ones are deleted, by who wrote them or later, and those in use are not."""

from __future__ import annotations

import pytest

from pressrun.jobs import sealing
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.leftovers import sweep_segments
from pressrun.jobs.records import Batch, Claim, Segment
from pressrun.jobs.redis_keys import batch_key, file_key
from pressrun.jobs.results import read_results
from pressrun.jobs.retry import retry_batch
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.shards import parse_segment
from pressrun.jobs.submit import create_job, delete_file, job_result

from .conftest import MakeBatch, chat_line
from .simulated import Process, answer, commit, missing, run_shard


def complete(backend: Backend, batch: Batch, owner: str) -> Claim:
    """A claim of the first shard with all of its lines stored."""
    claim = backend.shards.claim(batch.id, 0, owner, 60.0)
    assert claim is not None
    commit(backend, claim, map(answer, missing(backend, claim)))
    return claim


@pytest.fixture
def batch(backend: Backend, make_batch: MakeBatch) -> Batch:
    made = make_batch([chat_line(f"c{i}") for i in range(8)])
    validate_batch(backend, made.id)
    return backend.store.batch(made.id)


def segments(backend: Backend) -> list[str]:
    return list(backend.blobs.list("segments"))


def test_who_seals_too_late_takes_its_own_segment_away_and_no_other(backend: Backend, batch: Batch) -> None:
    late = complete(backend, batch, "late")
    stalled = Process(backend, lambda other: seal_shard(other, late))
    stalled.step(4)  # It has written, and has not said so.
    run_shard(backend, batch.id, 0)
    (kept,) = set(segments(backend)) - {batch.segment_blob(0, "output", "late")}
    stalled.finish()
    assert stalled.error is None
    assert segments(backend) == [kept]


def test_a_seal_whose_answer_was_lost_keeps_its_segment(backend: Backend, batch: Batch) -> None:
    claim = complete(backend, batch, "mine")
    seal_shard(backend, claim)
    before = segments(backend)
    sealing._discard_segment(backend, claim)  # As who asks again, and hears that the claim is over.
    assert segments(backend) == before == [batch.segment_blob(0, "output", "mine")]


def test_what_came_after_the_end_is_swept_and_what_is_in_use_is_not(
    backend: Backend, batch: Batch, make_batch: MakeBatch
) -> None:
    other = make_batch([chat_line(f"c{i}") for i in range(8)])
    validate_batch(backend, other.id)
    seal_shard(backend, complete(backend, other, "mine"))
    in_use = segments(backend)
    for shard in (0, 1):
        run_shard(backend, batch.id, shard)
    assert segments(backend) == in_use
    backend.blobs.put(batch.segment_blob(0, "output", "late"), [b"x"])
    backend.blobs.put("segments/batch_unknown/00000000.own_x.output", [b"x"])
    sweep_segments(backend)
    assert segments(backend) == sorted([*in_use, "segments/batch_unknown/00000000.own_x.output"])


def test_files_of_an_earlier_version_are_read_and_deleted_where_they_are(backend: Backend, batch: Batch) -> None:
    for shard in (0, 1):
        run_shard(backend, batch.id, shard)
    now = backend.store.batch(batch.id)
    ids = list(filter(None, (now.output_file_id, now.error_file_id)))
    before = read_results(backend, batch.id, 0, 100).lines
    for file_id in ids:
        file = backend.store.file(file_id)
        backend.blobs.put(f"files/{file_id}", list(backend.blobs.open(file.blob)))
        backend.redis.hdel(file_key(file_id), "stored_as")
    backend.blobs.put(f"files/{ids[0]}.index", list(backend.blobs.open(now.index_blob)))
    backend.redis.hdel(batch_key(batch.id), "results_name")
    for key in backend.blobs.list("results"):
        backend.blobs.delete(key)
    assert read_results(backend, batch.id, 0, 100).lines == before
    for file_id in ids:
        delete_file(backend, file_id)
    assert list(backend.blobs.list("files")) == [f"files/{batch.input_file_id}"]


def test_a_retry_sweeps_what_others_had_written_of_the_generation_before(backend: Backend, batch: Batch) -> None:
    for shard in (0, 1):
        run_shard(backend, batch.id, shard)
    kept = list(backend.blobs.list(batch.results_folder))
    backend.blobs.put(f"{batch.results_by('late')}.output", [b"x"])
    retry_batch(backend, batch.id, ["c0"])
    validate_batch(backend, batch.id)
    assert list(backend.blobs.list(batch.results_folder)) == kept
    assert len(kept) in (2, 3)


def test_the_answer_of_a_job_is_its_sealer_s_whoever_comes_late(backend: Backend) -> None:
    body = chat_line("x")["body"]
    job = create_job(backend, url="/v1/chat/completions", body=body)
    late = complete(backend, job, "late")
    stalled = Process(backend, lambda other: seal_shard(other, late))
    stalled.step(2)
    claim = backend.shards.claim(job.id, 0, "mine", 60.0)
    assert claim is not None
    seal_shard(backend, claim)
    done = backend.store.batch(job.id)
    assert done.segment_writer == "mine"
    backend.job_blobs.put(job.segment_blob(0, "output", "late"), [b"{}"])
    stalled.finish()
    assert stalled.error is None
    result = job_result(backend, done)
    assert result is not None
    assert result["custom_id"] == job.id


@pytest.mark.parametrize(
    ("raw", "segment"),
    [
        (b"5:0", Segment(output=5, error=0)),
        (b"5:6:a", Segment(output=5, error=6, errors=10)),
        (b"5:0::own_x", Segment(output=5, error=0, writer="own_x")),
        (b"5:6:a:own_x", Segment(output=5, error=6, errors=10, writer="own_x")),
    ],
)
def test_what_earlier_versions_noted_of_a_segment_is_read(raw: bytes, segment: Segment) -> None:
    assert parse_segment(raw) == segment
