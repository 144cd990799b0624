"""What clients may do: files, batches and jobs, and every refusal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import BlobMissing, Conflict, NotFound, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.records import DEFAULT_TENANT, File
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.submit import (
    check_metadata,
    create_batch,
    create_file,
    create_job,
    delete_file,
    find_batch,
    find_job,
    job_result,
    parse_window,
    sweep_files,
)  # fmt: skip

from .conftest import MakeBackend, MakeBatch, chat_line, encode
from .simulated import answer, commit, missing, queued_shards, run_shard

CHAT = "/v1/chat/completions"
DAY = 86400


def upload(backend: Backend, raw: bytes = b"{}", **changes: Any) -> File:
    return create_file(backend, **{"filename": "in.jsonl", "purpose": "batch", "chunks": [raw]} | changes)


def refusal(backend: Backend, **changes: Any) -> UserError:
    """What creating a batch is refused with."""
    given = {"endpoint": CHAT, "completion_window": "24h"} | changes
    if "input_file_id" not in given:
        given["input_file_id"] = upload(backend).id
    with pytest.raises(UserError) as caught:
        create_batch(backend, **given)
    return caught.value


def body(**fields: Any) -> Any:
    return chat_line("x", **fields)["body"]


def is_there(backend: Backend, file: File) -> bool:
    """Whether the file's bytes are there."""
    try:
        return backend.blobs.size(file.blob) == file.bytes
    except BlobMissing:
        return False


# Files


def test_a_file_comes_back_as_it_was_sent_and_expires_after_its_time(backend: Backend) -> None:
    file = upload(backend, encode(chat_line("a")))
    assert b"".join(backend.blobs.open(file.blob)) == encode(chat_line("a"))
    assert file == backend.store.file(file.id)
    assert file.expires_at == file.created_at + 30 * DAY
    assert upload(backend, purpose="user_data").expires_at is None
    hour = upload(backend, purpose="user_data", expires_after_s=3600)
    assert hour.expires_at == hour.created_at + 3600


@pytest.mark.parametrize(
    ("changes", "param", "status"),
    [
        ({"purpose": "fun"}, "purpose", 400),
        ({"purpose": "batch_output"}, "purpose", 400),
        ({"filename": "in.txt"}, "file", 400),
        ({"chunks": []}, "file", 400),
        ({"chunks": [b"", b""], "purpose": "user_data"}, "file", 400),
        ({"chunks": [b"\n \n[1]\n{}"]}, "file", 400),
        ({"chunks": [b"{", b"nope\n", b"{}"]}, "file", 400),
        ({"chunks": [b"x" * 60] * 2}, "file", 413),
        ({"expires_after_s": 3599}, "expires_after.seconds", 400),
        ({"expires_after_s": 30 * DAY + 1}, "expires_after.seconds", 400),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing(
    make_backend: MakeBackend, changes: dict[str, Any], param: str, status: int
) -> None:
    backend = make_backend(max_file_bytes=100)
    with pytest.raises(UserError) as caught:
        upload(backend, **{"purpose": "user_data"} | changes if status == 413 else changes)
    assert (caught.value.param, caught.value.status) == (param, status)
    assert backend.store.files().items == []
    assert list(backend.blobs.list("files")) == []


def test_an_upload_that_breaks_off_leaves_nothing(backend: Backend) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"{}\n"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        upload(backend, chunks=chunks())
    assert backend.store.files().items == []
    assert list(backend.blobs.list("files")) == []


def test_a_deleted_file_is_gone_at_once_with_its_bytes(backend: Backend) -> None:
    file = upload(backend)
    delete_file(backend, file.id)
    for call in (backend.store.file, lambda file_id: delete_file(backend, file_id)):
        with pytest.raises(NotFound):
            call(file.id)
    assert not is_there(backend, file)
    assert backend.redis.keys(f"*{file.id}*") == []
    assert backend.store.expired_files(time.time()) == []
    with pytest.raises(NotFound):
        delete_file(backend, "file-none")
    assert backend.store.expired_files(time.time()) == []


def test_a_file_deleted_under_a_batch_is_gone_for_clients_but_the_batch_is_answered(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(6)])
    file = backend.store.file(batch.input_file_id)
    delete_file(backend, file.id)
    assert backend.store.files().items == []
    assert refusal(backend, input_file_id=file.id).status == 404
    validate_batch(backend, batch.id)
    for shard in (0, 1):
        sweep_files(backend, backend.store.expired_files(time.time()))
        assert is_there(backend, file)
        run_shard(backend, batch.id, shard)
    assert backend.store.batch(batch.id).status == "completed"
    sweep_files(backend, backend.store.expired_files(time.time()))
    assert not is_there(backend, file)
    assert backend.store.expired_files(time.time()) == []


def test_a_file_that_expires_under_a_batch_stays_until_the_batch_has_ended(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([chat_line("a")])
    file = backend.store.file(batch.input_file_id)
    later = time.time() + 31 * DAY
    validate_batch(backend, batch.id)
    sweep_files(backend, backend.store.expired_files(later))
    assert is_there(backend, file)
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    sweep_files(backend, backend.store.expired_files(later))
    assert not is_there(backend, file)


# Batches


def test_a_new_batch_is_validating_and_has_its_deadline(backend: Backend) -> None:
    file = upload(backend)
    batch = create_batch(backend, input_file_id=file.id, endpoint=CHAT, completion_window="1h30m", metadata={"a": "b"})
    assert (batch.status, batch.counts.total, batch.metadata) == ("validating", 0, {"a": "b"})
    assert batch.expires_at == batch.created_at + 5400
    assert backend.store.batch(batch.id) == batch
    assert find_batch(backend, batch.id, DEFAULT_TENANT) == batch


def test_a_batch_is_refused_with_the_field_that_is_wrong(make_backend: MakeBackend) -> None:
    backend = make_backend(max_batch_bytes=10)
    other = upload(backend, purpose="user_data")
    large = upload(backend, encode(chat_line("a")))
    assert refusal(backend, endpoint="/v1/moderations").param == "endpoint"
    assert refusal(backend, completion_window="1y").param == "completion_window"
    assert refusal(backend, metadata={"a": 1}).param == "metadata.a"
    assert refusal(backend, input_file_id="file-none").status == 404
    assert refusal(backend, input_file_id=other.id).param == "input_file_id"
    assert "PRESSRUN_MAX_BATCH_BYTES" in refusal(backend, input_file_id=large.id).message
    assert backend.store.batches().items == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("1m", 60), ("60s", 60), ("30d", 2592000), ("720h", 2592000), ("1h30m", 5400), ("0.5h", 1800),
     ("1.25m", 75), ("1d12h", 129600), ("59.5s0.5s", 60)],
)  # fmt: skip
def test_a_window_is_a_duration(text: str, seconds: int) -> None:
    assert parse_window(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "24", "h", "59s", "59.9s", "30d1s", "-1h", "1 h", "1h ", "24H", "1w", "1e3s", ".5h", "1.h", "٢٤h", 5, None,
     ["24h"], True, "9" * 400 + "h"],
)  # fmt: skip
def test_a_window_that_is_none_or_out_of_range_is_refused(text: Any) -> None:
    with pytest.raises(UserError) as caught:
        parse_window(text)
    assert caught.value.param == "completion_window"


@pytest.mark.parametrize(
    "metadata", [None, {}, {"": ""}, {"k" * 64: "v" * 512}, {f"k{i}": "v" for i in range(16)}, {"é": "😀\n"}]
)
def test_metadata_is_kept_as_it_is(metadata: Any, backend: Backend) -> None:
    batch = create_batch(
        backend,
        input_file_id=upload(backend).id,
        endpoint=CHAT,
        completion_window="24h",
        metadata=check_metadata(metadata),
    )
    assert backend.store.batch(batch.id).metadata == metadata


@pytest.mark.parametrize(
    ("metadata", "param", "code"),
    [
        ("text", "metadata", "invalid_type"),
        ([], "metadata", "invalid_type"),
        ({"tags": ["a"]}, "metadata.tags", "invalid_type"),
        ({"a": None}, "metadata.a", "invalid_type"),
        ({"a": True}, "metadata.a", "invalid_type"),
        ({"k" * 65: "v"}, f"metadata.{'k' * 65}", "invalid_value"),
        ({"a": "v" * 513}, "metadata.a", "string_above_max_length"),
        ({f"k{i}": "v" for i in range(17)}, "metadata", "object_above_max_properties"),
        ({"a": "\ud800"}, "metadata", "invalid_value"),
        ({"\udc00": "a"}, "metadata", "invalid_value"),
    ],
)
def test_metadata_that_breaks_the_rules_is_refused(metadata: Any, param: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        check_metadata(metadata)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_cancelling_again_is_harmless_until_the_batch_has_ended_otherwise(
    backend: Backend, make_batch: MakeBatch
) -> None:
    batch = make_batch([chat_line("a")])
    assert backend.store.cancel(batch.id).status == "cancelling"
    assert backend.store.cancel(batch.id).status == "cancelling"
    wind_up(backend, batch.id)
    assert backend.store.cancel(batch.id).status == "cancelled"
    failed = make_batch([b"{}"])
    validate_batch(backend, failed.id)
    with pytest.raises(Conflict, match="Cannot cancel a batch with status 'failed'"):
        backend.store.cancel(failed.id)
    with pytest.raises(NotFound):
        backend.store.cancel("batch_none")


# Jobs


def test_a_job_is_queued_at_once_ahead_of_batches(backend: Backend) -> None:
    job = create_job(backend, url=CHAT, body=body())
    assert (job.kind, job.status, job.counts.total, job.num_shards) == ("job", "in_progress", 1, 1)
    assert queued_shards(backend, "job") == [(job.id, 0)]
    assert backend.store.batches().items == []
    assert find_job(backend, job.id, DEFAULT_TENANT) == job
    with pytest.raises(NotFound):
        find_batch(backend, job.id, DEFAULT_TENANT)


def test_a_job_is_answered_and_its_answer_goes_after_its_time(backend: Backend) -> None:
    job = create_job(backend, url=CHAT, body=body())
    assert job_result(backend, job) is None
    claim = backend.shards.claim(job.id, 0, "me", 5.0)
    assert claim is not None
    assert commit(backend, claim, map(answer, missing(backend, claim))) == "complete"
    seal_shard(backend, claim)
    done = find_job(backend, job.id, DEFAULT_TENANT)
    result = job_result(backend, done)
    assert result is not None
    assert (done.status, result["custom_id"], result["response"]["status_code"]) == ("completed", job.id, 200)
    assert backend.store.active("job") == []
    assert list(backend.job_blobs.list(f"jobs/{job.id}")) == [job.segment_blob(0, "output", "me")]
    lifetimes = {backend.redis.ttl(key) for key in backend.redis.keys(f"*{job.id}*") if b"rq:" not in key}
    assert all(0 < seconds <= backend.settings.job_ttl_s for seconds in lifetimes), lifetimes
    end_batch(backend, job.id)
    assert find_job(backend, job.id, DEFAULT_TENANT) == done


def test_a_job_that_waits_long_for_a_worker_keeps_its_request(backend: Backend) -> None:
    job = create_job(backend, url=CHAT, body=body())
    assert backend.redis.ttl(f"pressrun:blob:{job.input_blob}") == -1


def test_a_cancelled_job_says_so(backend: Backend) -> None:
    job = create_job(backend, url=CHAT, body=body())
    backend.store.cancel(job.id)
    wind_up(backend, job.id)
    result = job_result(backend, find_job(backend, job.id, DEFAULT_TENANT))
    assert result is not None
    assert result["error"]["code"] == "batch_cancelled"


@pytest.mark.parametrize(
    ("changes", "param", "status"),
    [
        ({"url": "/v1/moderations"}, "url", 400),
        ({"body": "text"}, "body", 400),
        ({"body": {"model": "m"}}, "messages", 400),
        ({"body": body(stream=True)}, "stream", 400),
        ({"body": body(model="other")}, "model", 404),
        ({"body": body(messages=[{"role": "user", "content": "x" * 2000}])}, "body", 413),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_once(
    make_backend: MakeBackend, changes: dict[str, Any], param: str, status: int
) -> None:
    backend = make_backend(max_line_bytes=2000)
    with pytest.raises(UserError) as caught:
        create_job(backend, **{"url": CHAT, "body": body()} | changes)
    assert (caught.value.param, caught.value.status) == (param, status)
    assert backend.store.active("job") == []
    assert backend.redis.keys("*job_*") == []


def test_a_batch_is_no_job(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line("a")])
    for job_id in (batch.id, "job_none"):
        with pytest.raises(NotFound):
            find_job(backend, job_id, DEFAULT_TENANT)


def test_what_redis_holds_of_an_ended_batch_is_one_hash(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(9)])
    validate_batch(backend, batch.id)
    for shard in range(3):
        run_shard(backend, batch.id, shard)
    assert backend.redis.keys(f"*{batch.id}*") == [batch_key(batch.id).encode()]
