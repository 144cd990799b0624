"""Inputs from users' buckets and results into them: only where it is allowed, once, and clear where it fails."""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from botocore.exceptions import ClientError
from redis.exceptions import LockNotOwnedError

from pressrun.jobs import places
from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.blobs.s3 import S3Blobs
from pressrun.jobs.errors import BlobMissing, BlobsUnavailable, SettingsError, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.places import Place
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.settings import load_settings
from pressrun.jobs.store import Store
from pressrun.jobs.submit import create_batch, create_file

from .conftest import MakeBackend, OwnValkey, chat_line, encode, serve_model
from .simulated import run_shard

BUCKET = "pressrun"
LINES = encode(*(chat_line(f"c{i}") for i in range(10)))


@pytest.fixture
def folder(s3_url: str) -> str:
    return f"users/{secrets.token_hex(4)}"


@pytest.fixture
def bucket(s3_url: str) -> S3Blobs:
    return S3Blobs(BUCKET)


@pytest.fixture
def backend(make_backend: MakeBackend, folder: str) -> Backend:
    # The first to speak to S3 imports boto3 meanwhile, which must not cost it a lock.
    return make_backend(s3_inputs=f"other, {BUCKET}/{folder}/", s3_outputs=f"{BUCKET}/{folder}/out", lease_s=20.0)


def create(backend: Backend, url: str, prefix: str | None = None) -> Batch:
    return create_batch(
        backend,
        input_file_id=url,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_prefix=prefix,
    )


def finish(backend: Backend, batch: Batch) -> Batch:
    while left := backend.shards.unsealed(batch.id):
        run_shard(backend, batch.id, left[0], seed=left[0])
    return backend.store.batch(batch.id)


@pytest.mark.parametrize(("name", "pack"), [("in.jsonl", bytes), ("in.jsonl.gz", gzip.compress)])
def test_an_object_becomes_the_input_file_and_results_go_back(
    backend: Backend, bucket: S3Blobs, folder: str, name: str, pack: Callable[[bytes], bytes]
) -> None:
    bucket.put(f"{folder}/{name}", [pack(LINES)])
    batch = create(backend, f"s3://{BUCKET}/{folder}/{name}", f"s3://{BUCKET}/{folder}/out/today/")
    validate_batch(backend, batch.id)
    file = backend.store.file(batch.input_file_id)
    assert (file.bytes, file.filename, file.purpose) == (len(LINES), "in.jsonl", "batch")
    assert b"".join(backend.blobs.open(file.blob)) == LINES
    bucket.delete(f"{folder}/{name}")  # It is not needed any more.
    batch = finish(backend, batch)
    assert (batch.status, batch.delivery_error) == ("completed", None)
    for part, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        delivered = b"".join(bucket.open(f"{folder}/out/today/{batch.id}_{part}.jsonl"))
        assert delivered == b"".join(backend.blobs.open(backend.store.file(file_id).blob))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://pressrun/elsewhere/in.jsonl", "none of the places of PRESSRUN_S3_INPUTS; allowed are other, pressrun/"),
        ("s3://pressrun/{folder}-too/in.jsonl", "none of the places"),
        ("s3://pressrun/{folder}/../secret/in.jsonl", "with a key whose parts"),
        ("s3://pressrun/{folder}//in.jsonl", "with a key whose parts"),
        ("s3://pressrun/{folder}/a\nb.jsonl", "with a key whose parts"),
        ("s3://pressrun", "with a key whose parts"),
        ("s3:///in.jsonl", "with a key whose parts"),
        ("s3://other.example/in.jsonl", "none of the places"),
        ("s3://pressrun@other/in.jsonl", "none of the places"),
        ("s3://pressrun/{folder}/in.csv", "Must be .jsonl, not 'in.csv'"),
        ("s3://pressrun/{folder}/none.jsonl", "is not there, or may not be read"),
        ("s3://other/none.jsonl", "is not there, or may not be read"),
        ("s3://pressrun/{folder}/large.jsonl", "PRESSRUN_MAX_BATCH_BYTES"),
    ],
)
def test_what_is_not_allowed_or_not_there_is_refused(
    make_backend: MakeBackend, bucket: S3Blobs, folder: str, url: str, reason: str
) -> None:
    backend = make_backend(s3_inputs=f"other, {BUCKET}/{folder}/", max_batch_bytes=100)
    bucket.put(f"{folder}/large.jsonl", [b"x" * 101])
    with pytest.raises(UserError) as refused:
        create(backend, url.replace("{folder}", folder))
    assert reason in refused.value.message
    assert refused.value.param == "input_file_id"
    assert backend.store.active("batch") == []


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("s3://pressrun/{folder}/out/x", "does not end in '/'"),
        ("s3://pressrun/{folder}/x/", "none of the places of PRESSRUN_S3_OUTPUTS"),
        ("s3://pressrun/{folder}/out/../x/", "with a key whose parts"),
        ("/tmp/", "is not s3://bucket/key"),
    ],
)
def test_results_go_only_where_they_may(
    backend: Backend, bucket: S3Blobs, folder: str, prefix: str, reason: str
) -> None:
    bucket.put(f"{folder}/in.jsonl", [LINES])
    with pytest.raises(UserError) as refused:
        create(backend, f"s3://{BUCKET}/{folder}/in.jsonl", prefix.replace("{folder}", folder))
    assert reason in refused.value.message
    assert refused.value.param == "pressrun.output_prefix"


def test_nothing_is_allowed_where_nothing_is_set(make_backend: MakeBackend) -> None:
    with pytest.raises(UserError, match="PRESSRUN_S3_INPUTS, which allows none"):
        create(make_backend(), "s3://pressrun/in.jsonl")


@pytest.mark.parametrize("places_set", ["s3://bucket", "bucket,,other", "Bucket/x", "bucket//x"])
def test_a_setting_that_names_no_place_is_refused(places_set: str) -> None:
    with pytest.raises(SettingsError, match="is not bucket or bucket/folder"):
        load_settings({}, s3_inputs=places_set)


@pytest.mark.parametrize("change", ["put", "delete"])
def test_an_object_that_changed_before_validation_fails_the_batch(
    backend: Backend, bucket: S3Blobs, folder: str, change: str
) -> None:
    bucket.put(f"{folder}/in.jsonl", [LINES])
    batch = create(backend, f"s3://{BUCKET}/{folder}/in.jsonl")
    if change == "put":
        bucket.put(f"{folder}/in.jsonl", [LINES + b"\n"])
    else:
        bucket.delete(f"{folder}/in.jsonl")
    validate_batch(backend, batch.id)
    batch = backend.store.batch(batch.id)
    assert (batch.status, [error.code for error in batch.errors]) == ("failed", ["input_changed"])
    assert "was changed or deleted since the batch was created" in batch.errors[0].message
    end_batch(backend, batch.id)
    assert backend.store.active("batch") == []
    assert list(backend.blobs.list("files")) == []


def test_an_object_that_unpacks_to_too_much_fails_the_batch(
    make_backend: MakeBackend, bucket: S3Blobs, folder: str
) -> None:
    backend = make_backend(s3_inputs=BUCKET, max_batch_bytes=1000)
    bucket.put(f"{folder}/in.jsonl.gz", [gzip.compress(LINES * 100)])
    batch = create(backend, f"s3://{BUCKET}/{folder}/in.jsonl.gz")
    validate_batch(backend, batch.id)
    (error,) = backend.store.batch(batch.id).errors
    assert (error.code, "PRESSRUN_MAX_BATCH_BYTES" in error.message) == ("file_too_large", True)


def test_a_batch_cancelled_before_it_was_fetched_ends_without_it(
    backend: Backend, bucket: S3Blobs, folder: str
) -> None:
    bucket.put(f"{folder}/in.jsonl", [LINES])
    batch = create(backend, f"s3://{BUCKET}/{folder}/in.jsonl")
    bucket.delete(f"{folder}/in.jsonl")
    backend.store.cancel(batch.id)
    wind_up(backend, batch.id)
    assert backend.store.batch(batch.id).status == "cancelled"
    assert backend.store.active("batch") == []


def test_an_end_waits_for_its_bucket_and_then_says_why_it_did_not(
    backend: Backend, bucket: S3Blobs, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(f"{folder}/in.jsonl", [LINES])
    batch = create(backend, f"s3://{BUCKET}/{folder}/in.jsonl", f"s3://{BUCKET}/{folder}/out/")
    validate_batch(backend, batch.id)

    def away(*_: Any) -> int:
        raise BlobsUnavailable("nobody answers")

    monkeypatch.setattr(S3Blobs, "put_new", away)
    with pytest.raises(BlobsUnavailable):
        finish(backend, batch)
    with pytest.raises(BlobsUnavailable):
        end_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "finalizing"
    monkeypatch.setattr(places, "PATIENCE_S", -1)
    end_batch(backend, batch.id)
    batch = backend.store.batch(batch.id)
    assert (batch.status, batch.delivery_error) == ("completed", "nobody answers")
    answers = b"".join(backend.blobs.open(batch.result_blob("output"))).splitlines()
    assert json.loads(answers[0])["response"]["status_code"] == 200


@pytest.fixture
def delivering(backend: Backend, folder: str) -> Batch:
    """A batch that runs, and whose results are wanted in a bucket."""
    file = create_file(backend, filename="in.jsonl", purpose="batch", chunks=[LINES])
    batch = create(backend, file.id, f"s3://{BUCKET}/{folder}/out/")
    validate_batch(backend, batch.id)
    return batch


def delivered(bucket: S3Blobs, folder: str, batch: Batch, part: str) -> bytes:
    return b"".join(bucket.open(f"{folder}/out/{batch.id}_{part}.jsonl"))


def check_delivered(backend: Backend, bucket: S3Blobs, folder: str, batch: Batch) -> None:
    assert (batch.status, batch.delivery_error) == ("completed", None)
    for part, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        whole = b"".join(backend.blobs.open(backend.store.file(file_id).blob))
        assert delivered(bucket, folder, batch, part) == whole


def test_what_somebody_else_has_put_there_is_left_as_it_is(
    backend: Backend, bucket: S3Blobs, folder: str, delivering: Batch
) -> None:
    bucket.put(f"{folder}/out/{delivering.id}_output.jsonl", [b"mine"])
    batch = finish(backend, delivering)
    where = f"s3://{BUCKET}/{folder}/out/{batch.id}_output.jsonl"
    message = f"'{where}' is there already and holds something else; it was left."
    assert (batch.status, batch.delivery_error) == ("completed", message)
    assert delivered(bucket, folder, batch, "output") == b"mine"
    assert delivered(bucket, folder, batch, "error") == b"".join(backend.blobs.open(batch.result_blob("error")))


def test_a_delivery_whose_answer_was_lost_is_no_conflict(
    backend: Backend, bucket: S3Blobs, folder: str, delivering: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_new = S3Blobs.put_new

    def tried_twice(store: S3Blobs, key: str, chunks: Iterable[bytes]) -> int:
        held = list(chunks)
        put_new(store, key, held)
        return put_new(store, key, held)

    monkeypatch.setattr(S3Blobs, "put_new", tried_twice)
    check_delivered(backend, bucket, folder, finish(backend, delivering))


def test_who_ends_a_batch_after_a_death_finds_its_results_delivered(
    backend: Backend, bucket: S3Blobs, folder: str, delivering: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Store.end

    def die(*_: Any, **__: Any) -> bool:
        raise SystemExit

    monkeypatch.setattr(Store, "end", die)
    with pytest.raises(SystemExit):
        finish(backend, delivering)
    assert delivered(bucket, folder, delivering, "output")
    monkeypatch.setattr(Store, "end", end)
    end_batch(backend, delivering.id)
    check_delivered(backend, bucket, folder, backend.store.batch(delivering.id))


def test_who_delivers_late_touches_nothing_that_is_there_by_then(
    backend: Backend, bucket: S3Blobs, folder: str, delivering: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_new = S3Blobs.put_new

    def overtaken(store: S3Blobs, key: str, chunks: Iterable[bytes]) -> int:
        monkeypatch.setattr(S3Blobs, "put_new", put_new)
        held = list(chunks)
        backend.redis.delete(f"{batch_key(delivering.id)}:lock")
        end_batch(backend, delivering.id)
        bucket.put(key, [b"what its owner made of it"])
        return put_new(store, key, held)

    monkeypatch.setattr(S3Blobs, "put_new", overtaken)
    with suppress(LockNotOwnedError, BlobMissing):
        finish(backend, delivering)
    batch = backend.store.batch(delivering.id)
    assert (batch.status, batch.delivery_error) == ("completed", None)
    assert delivered(bucket, folder, batch, "output") == b"what its owner made of it"


def test_a_store_that_knows_no_conditions_is_named_at_once(
    backend: Backend, delivering: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        answer: Any = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        raise ClientError(answer, "PutObject")

    opened = Place.store

    def store(place: Place, setting: str) -> S3Blobs:
        found = opened(place, setting)
        monkeypatch.setattr(found._client, "put_object", unknown)
        return found

    monkeypatch.setattr(Place, "store", store)
    batch = finish(backend, delivering)
    assert batch.status == "completed"
    assert "NotImplemented" in str(batch.delivery_error)


def test_who_delivers_too_late_delivers_the_same_after_a_crash_of_redis(
    own_valkey: OwnValkey, bucket: S3Blobs, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe, stalled, go_on = 0, Event(), Event()
    put_new, wait = S3Blobs.put_new, Store.make_durable

    def stall_once(store: S3Blobs, key: str, chunks: Iterable[bytes]) -> int:
        held = list(chunks)
        if not stalled.is_set():
            stalled.set()
            assert go_on.wait(20)
        return put_new(store, key, held)

    def make_durable(store: Store) -> None:
        nonlocal safe
        wait(store)
        safe = own_valkey.log.stat().st_size

    monkeypatch.setattr(Store, "make_durable", make_durable)
    settings = load_settings({}, data_dir=tmp_path, shard_lines=10, s3_outputs=f"{BUCKET}/{folder}/out")
    with own_valkey.client() as redis:
        backend = backend_on(settings, redis)
        serve_model(backend)
        file = create_file(backend, filename="in.jsonl", purpose="batch", chunks=[LINES])
        batch = create(backend, file.id, f"s3://{BUCKET}/{folder}/out/")
        validate_batch(backend, batch.id)
        backend.store.make_durable()
        monkeypatch.setattr(S3Blobs, "put_new", stall_once)
        late = Thread(target=_until_it_is_late, args=[backend, batch.id])
        late.start()
        assert stalled.wait(20)
        own_valkey.lose_power(keep=safe)
        redis.delete(f"{batch_key(batch.id)}:lock")
        serve_model(backend)
        while backend.shards.unsealed(batch.id):
            run_shard(backend, batch.id, 0, seed=2)  # Whose answers are others, if any are missing.
        end_batch(backend, batch.id)
        go_on.set()
        late.join()
        done = backend.store.batch(batch.id)
        assert done.status == "completed"
        for part in ("output", "error"):
            delivered = b"".join(bucket.open(f"{folder}/out/{batch.id}_{part}.jsonl"))
            assert delivered == b"".join(backend.blobs.open(done.result_blob(part)))  # type: ignore[arg-type]


def _until_it_is_late(backend: Backend, batch_id: str) -> None:
    with suppress(LockNotOwnedError, BlobMissing):
        while backend.shards.unsealed(batch_id):  # It may have been released halfway.
            run_shard(backend, batch_id, 0, seed=1)
