"""Uploads in parts: joined once, in the order asked for, with nothing left over whoever dies."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pressrun.jobs import parquet, uploads
from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import BlobMissing, Conflict, NotFound, QuotaExceeded, UserError
from pressrun.jobs.joining import complete_upload
from pressrun.jobs.packing import zstd
from pressrun.jobs.store import Store
from pressrun.jobs.submit import create_file, delete_file
from pressrun.jobs.uploads import KEPT_S, LIFE_S, Upload, add_part, cancel_upload, create_upload, find_upload
from pressrun.jobs.uploads import sweep_uploads as sweep

from .conftest import MakeBackend, chat_line, encode
from .simulated import Process

WHOLE = b"".join(encode(chat_line(f"c{i}")) + b"\n" for i in range(40))
CUTS = [WHOLE[start : start + 1000] for start in range(0, len(WHOLE), 1000)]


@pytest.fixture(params=["disk", "s3"])
def stored(request: pytest.FixtureRequest, make_backend: MakeBackend) -> Backend:
    """A backend on disk, and one on S3."""
    if request.param == "disk":
        return make_backend()
    return make_backend(blob_url=f"{request.getfixturevalue('s3_url')}/{secrets.token_hex(4)}")


def begin(backend: Backend, **changes: Any) -> Upload:
    good = {"filename": "in.jsonl", "purpose": "batch", "size": len(WHOLE), "mime_type": "application/jsonl"}
    return create_upload(backend, **good | changes)


def add(backend: Backend, upload: Upload, parts: list[bytes]) -> list[str]:
    return [add_part(backend, upload.id, [part]).id for part in parts]


def content(backend: Backend, file_id: str | None) -> bytes:
    return b"".join(backend.blobs.open(backend.store.file(str(file_id)).blob))


def blobs(backend: Backend) -> list[str]:
    return [*backend.blobs.list("files"), *backend.blobs.list("uploads")]


def refusal(action: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    return caught.value


def test_parts_that_came_in_any_order_are_joined_in_the_order_asked_for(stored: Backend) -> None:
    upload = begin(stored)
    places = list(range(len(CUTS)))
    random.Random(1).shuffle(places)
    ids = {place: add(stored, upload, [CUTS[place]])[0] for place in places}
    done = complete_upload(stored, upload.id, [ids[place] for place in sorted(ids)], hashlib.md5(WHOLE).hexdigest())
    assert done.status == "completed"
    assert content(stored, done.file_id) == WHOLE
    file = stored.store.file(str(done.file_id))
    assert (file.bytes, file.filename, file.purpose) == (len(WHOLE), "in.jsonl", "batch")
    assert file.expires_at == file.created_at + 30 * 86400
    assert stored.store.files().items == [file]
    assert blobs(stored) == [file.blob]


def test_completing_twice_gives_the_same_answer_and_other_orders_none(backend: Backend) -> None:
    upload = begin(backend, purpose="user_data")
    ids = add(backend, upload, CUTS)
    done = complete_upload(backend, upload.id, ids)
    assert complete_upload(backend, upload.id, ids) == done
    assert complete_upload(backend, upload.id, ids, hashlib.md5(WHOLE).hexdigest().upper()) == done
    assert refusal(lambda: complete_upload(backend, upload.id, ids, "0" * 32)).param == "md5"
    with pytest.raises(Conflict, match="in another order"):
        complete_upload(backend, upload.id, ids[::-1])
    with pytest.raises(Conflict, match="status 'completed'"):
        add(backend, upload, CUTS[:1])
    with pytest.raises(Conflict, match="status 'completed'"):
        cancel_upload(backend, upload.id)
    assert content(backend, done.file_id) == WHOLE


def test_a_completed_file_that_was_deleted_does_not_come_back(backend: Backend) -> None:
    upload = begin(backend)
    ids = add(backend, upload, CUTS)
    done = complete_upload(backend, upload.id, ids)
    delete_file(backend, str(done.file_id))
    assert complete_upload(backend, upload.id, ids) == done
    assert backend.store.files().items == []
    assert blobs(backend) == []


def test_a_file_is_kept_as_long_as_its_upload_said(backend: Backend) -> None:
    upload = begin(backend, expires_after_s=7200)
    done = complete_upload(backend, upload.id, add(backend, upload, CUTS))
    file = backend.store.file(str(done.file_id))
    assert file.expires_at == file.created_at + 7200
    assert backend.store.expired_files(file.expires_at) == [file.id]


@pytest.mark.parametrize(
    ("changes", "param", "status"),
    [
        ({"purpose": "fun"}, "purpose", 400),
        ({"filename": "in.txt"}, "filename", 400),
        ({"size": 0}, "bytes", 400),
        ({"size": -5}, "bytes", 400),
        ({"size": 100_001}, "bytes", 413),
        ({"size": 200_001, "purpose": "user_data"}, "bytes", 413),
        ({"expires_after_s": 3599}, "expires_after.seconds", 400),
    ],
)
def test_an_upload_that_cannot_become_a_file_is_refused_at_once(
    make_backend: MakeBackend, changes: dict[str, Any], param: str, status: int
) -> None:
    backend = make_backend(max_batch_bytes=100_000, max_upload_bytes=200_000)
    error = refusal(lambda: begin(backend, **changes))
    assert (error.param, error.status) == (param, status)
    assert backend.redis.keys("*upload*") == []


def test_parts_that_are_not_the_file_are_refused_by_name_and_may_be_mended(backend: Backend) -> None:
    upload = begin(backend)
    ids = add(backend, upload, CUTS)
    cases: list[tuple[list[str], str | None, str, str]] = [
        ([*ids, "part_none"], None, f"part_ids[{len(ids)}]", "no part 'part_none'"),
        (ids[:-1], None, "part_ids", f"have {len(WHOLE) - len(CUTS[-1])} bytes together"),
        ([*ids[:-1], ids[0]], None, "part_ids", "more than once"),
        (["\ud800"], None, "part_ids[0]", "no part"),
        (ids, "0" * 32, "md5", "MD5"),
        (ids, "abc", "md5", "32 hexadecimal"),
        (ids[::-1], None, "file", "not a JSON object"),
    ]
    for part_ids, md5, param, words in cases:
        error = refusal(lambda part_ids=part_ids, md5=md5: complete_upload(backend, upload.id, part_ids, md5))
        assert (error.param, error.status) == (param, 400)
        assert words in error.message
    assert list(backend.blobs.list("files")) == []
    assert content(backend, complete_upload(backend, upload.id, ids).file_id) == WHOLE


def test_a_part_that_does_not_fit_is_refused_and_leaves_nothing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_PART_BYTES", 1000)
    monkeypatch.setattr(uploads, "MAX_PARTS", 4)
    small, large, many = (begin(backend, purpose="user_data", size=size) for size in (10, 1500, 10_000))
    assert "larger than 10 bytes" in refusal(lambda: add(backend, small, [b"x" * 11])).message
    assert "larger than 1000 bytes" in refusal(lambda: add(backend, large, [b"x" * 1001])).message
    assert refusal(lambda: add(backend, large, [b""])).code == "empty_file"
    assert "twice its 1500 bytes" in refusal(lambda: add(backend, large, [b"x" * 1000] * 4)).message
    assert refusal(lambda: add(backend, many, [b"x"] * 5)).code == "too_many_parts"
    assert len(blobs(backend)) == 3 + 4


def table(**columns: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def sent_in_parts(backend: Backend, filename: str, data: bytes, md5: str | None = None) -> Upload:
    upload = begin(backend, filename=filename, size=len(data))
    parts = [data[start : start + 100] for start in range(0, len(data), 100)]
    return complete_upload(backend, upload.id, add(backend, upload, parts), md5)


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("in.jsonl.gz", gzip.compress(WHOLE)),
        ("in.jsonl.zst", zstd.compress(WHOLE)),
        ("in.parquet", table(custom_id=["a", "b"], prompt=["x", "y"], model=["m", "m"])),
    ],
)
def test_whatever_a_file_may_be_may_come_in_parts(stored: Backend, filename: str, data: bytes) -> None:
    done = sent_in_parts(stored, filename, data, hashlib.md5(data).hexdigest())
    assert (done.filename, done.bytes) == (filename, len(data))
    file = stored.store.file(str(done.file_id))
    whole = create_file(stored, filename=filename, purpose="batch", chunks=[data])
    assert (file.bytes, file.filename, file.purpose) == (whole.bytes, "in.jsonl", "batch")
    assert content(stored, file.id) == content(stored, whole.id)


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("in.jsonl.gz", gzip.compress(WHOLE)[:-9]),
        ("in.jsonl.gz", gzip.compress(WHOLE * 12)),  # Larger than a batch may be, once it is unpacked.
        ("in.jsonl.gz", gzip.compress(b"[1]")),
        ("in.jsonl.gz", gzip.compress(b"")),
        ("in.jsonl.zst", gzip.compress(WHOLE)),
        ("in.parquet", WHOLE),
        ("in.parquet", table(prompt=["x"])),
        ("in.parquet", table(custom_id=[], prompt=[])),
    ],
)
def test_what_no_file_may_be_is_refused_in_the_same_words(
    make_backend: MakeBackend, filename: str, data: bytes
) -> None:
    backend = make_backend(max_batch_bytes=11 * len(WHOLE))
    wanted = refusal(lambda: create_file(backend, filename=filename, purpose="batch", chunks=[data]))
    found = refusal(lambda: sent_in_parts(backend, filename, data))
    assert (found.body(), found.status) == (wanted.body(), wanted.status)
    assert list(backend.blobs.list("files")) == []


def test_of_parts_in_a_wrong_order_the_checksum_tells_more_than_what_they_make(backend: Backend) -> None:
    data = gzip.compress(WHOLE)
    upload = begin(backend, filename="in.jsonl.gz", size=len(data))
    ids = add(backend, upload, [data[:100], data[100:200], data[200:]])
    wrong = [ids[0], ids[2], ids[1]]
    assert refusal(lambda: complete_upload(backend, upload.id, wrong)).code == "invalid_compression"
    md5 = hashlib.md5(data).hexdigest()
    assert refusal(lambda: complete_upload(backend, upload.id, wrong, md5)).param == "md5"
    assert content(backend, complete_upload(backend, upload.id, ids, md5).file_id) == WHOLE


def test_a_packed_file_may_be_larger_than_a_batch_and_a_table_needs_its_reader(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(max_batch_bytes=1000, max_upload_bytes=2000)
    assert begin(backend, filename="in.parquet", size=2000).status == "pending"
    assert refusal(lambda: begin(backend, filename="in.parquet", size=2001)).param == "bytes"
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda _: None)
    refused = refusal(lambda: begin(backend, filename="in.parquet"))
    assert refused.param == "filename"
    assert "pip install 'pressrun[parquet]'" in refused.message


def test_many_parts_at_once_are_all_there(backend: Backend) -> None:
    upload, ids = begin(backend), dict.fromkeys(range(len(CUTS)), "")

    def send(place: int) -> None:
        ids[place] = add(backend, upload, [CUTS[place]])[0]

    senders = [threading.Thread(target=send, args=(place,)) for place in ids]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert content(backend, complete_upload(backend, upload.id, list(ids.values())).file_id) == WHOLE


def test_a_cancelled_upload_is_gone_with_its_parts(stored: Backend) -> None:
    upload = begin(stored)
    ids = add(stored, upload, CUTS[:3])
    assert cancel_upload(stored, upload.id).status == "cancelled"
    assert cancel_upload(stored, upload.id).status == "cancelled"
    assert blobs(stored) == []
    for late in (lambda: add(stored, upload, CUTS[:1]), lambda: complete_upload(stored, upload.id, ids)):
        with pytest.raises(Conflict, match="status 'cancelled'"):
            late()
    assert blobs(stored) == []


def test_an_upload_lives_an_hour_and_is_swept_with_its_parts(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, now = begin(backend), time.time()
    ids = add(backend, upload, CUTS)
    sweep(backend, now)
    assert len(blobs(backend)) == len(CUTS)
    monkeypatch.setattr(time, "time", lambda: now + LIFE_S + 1)
    assert find_upload(backend, upload.id).status == "expired"
    for late in (
        lambda: add(backend, upload, CUTS[:1]),
        lambda: complete_upload(backend, upload.id, ids),
        lambda: cancel_upload(backend, upload.id),
    ):
        with pytest.raises(Conflict, match="status 'expired'"):
            late()
    for _ in range(2):
        sweep(backend, time.time())
        assert blobs(backend) == []
    backend.blobs.put(f"uploads/{upload.id}/part_late", [b"of one who died before it was refused"])
    sweep(backend, now + KEPT_S + 1)
    assert blobs(backend) == []
    assert backend.redis.keys("*upload*") == []
    with pytest.raises(NotFound):
        find_upload(backend, upload.id)


def test_what_is_being_joined_is_not_swept_under_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, now = begin(backend), time.time()
    ids = add(backend, upload, CUTS)
    monkeypatch.setattr(time, "time", lambda: now + LIFE_S - 5)
    joining = Process(backend, lambda other: complete_upload(other, upload.id, ids))
    joining.step(5)
    assert find_upload(backend, upload.id).status == "pending"
    sweep(backend, now + LIFE_S + 60)
    joining.finish()
    assert joining.error is None
    assert content(backend, find_upload(backend, upload.id).file_id) == WHOLE


def test_an_unknown_upload_is_not_found_and_no_batch_is_one(backend: Backend, make_batch: Any) -> None:
    upload = begin(backend)
    for upload_id in ("upload_none", "", make_batch([chat_line("a")]).id):
        for call in (cancel_upload, lambda b, one: complete_upload(b, one, ["p"]), lambda b, one: add_part(b, one, [])):
            with pytest.raises(NotFound):
                call(backend, upload_id)
    with pytest.raises(NotFound):
        backend.store.batch(upload.id)


@pytest.mark.parametrize("then", ["complete", "complete in another order", "cancel", "nothing"])
def test_wherever_a_joiner_dies_the_next_call_is_answered_and_nothing_is_left(backend: Backend, then: str) -> None:
    steps = 0
    while True:
        upload = begin(backend, purpose="user_data", size=30)
        ids = add(backend, upload, [b"a" * 10, b"b" * 10, b"c" * 10])
        joiner = Process(backend, lambda other, upload=upload, ids=ids: complete_upload(other, upload.id, ids))
        joiner.step(steps)
        survived = joiner.ended
        joiner.kill()
        _check_after_death(backend, upload, ids, then)
        if survived:
            break
        steps += 1
    assert steps > 8


def _check_after_death(backend: Backend, upload: Upload, ids: list[str], then: str) -> None:
    was_completed = find_upload(backend, upload.id).status == "completed"
    try:
        if then == "cancel":
            cancel_upload(backend, upload.id)
        elif then != "nothing":
            complete_upload(backend, upload.id, ids if then == "complete" else ids[::-1])
    except Conflict:
        assert was_completed
        assert then != "complete"
    files = backend.store.files().items
    sweep(backend, upload.created_at + LIFE_S + 3700)
    sweep(backend, upload.created_at + KEPT_S + 3700)
    assert len(files) == (1 if was_completed or then.startswith("complete") else 0)
    assert blobs(backend) == [file.blob for file in files]
    for file in files:
        in_order = was_completed or then == "complete"
        assert content(backend, file.id) == (b"a" * 10 + b"b" * 10 + b"c" * 10)[:: 1 if in_order else -1]
        delete_file(backend, file.id)
    assert blobs(backend) == []


@pytest.mark.parametrize("seed", range(30))
def test_two_that_complete_at_once_leave_one_file(backend: Backend, seed: int) -> None:
    chance = random.Random(seed)
    upload = begin(backend, purpose="user_data", size=20)
    ids = add(backend, upload, [b"a" * 10, b"b" * 10])
    orders = [ids, chance.choice([ids, ids[::-1]])]
    joiners = [
        Process(backend, lambda other, order=order: complete_upload(other, upload.id, order)) for order in orders
    ]
    while not all(joiner.ended for joiner in joiners):
        chance.choice(joiners).step()
    assert [type(joiner.error) for joiner in joiners if joiner.error] in ([], [Conflict])
    if orders[0] == orders[1]:
        assert [joiner.error for joiner in joiners] == [None, None]
    (file,) = backend.store.files().items
    assert find_upload(backend, upload.id).file_id == file.id
    assert content(backend, file.id) in (b"a" * 10 + b"b" * 10, b"b" * 10 + b"a" * 10)
    sweep(backend, upload.created_at + LIFE_S + 3700)
    assert blobs(backend) == [file.blob]


def test_parts_that_others_took_away_are_no_users_mistake(backend: Backend) -> None:
    upload = begin(backend)
    ids = add(backend, upload, CUTS)
    backend.blobs.delete(f"uploads/{upload.id}/{ids[1]}")
    with pytest.raises(BlobMissing):
        complete_upload(backend, upload.id, ids)


def test_an_uploaded_file_is_listed_in_the_order_of_completion(backend: Backend, redis: Any) -> None:
    first, second = begin(backend), begin(backend)
    ids = {upload.id: add(backend, upload, CUTS) for upload in (first, second)}
    done = [complete_upload(backend, upload.id, ids[upload.id]).file_id for upload in (second, first)]
    assert [file.id for file in Store(redis).files().items] == done[::-1]


def test_a_tenants_uploads_are_its_own_and_count_as_what_it_stores(stored: Backend) -> None:
    stored.store.tenants.set("acme", max_stored_bytes=len(WHOLE))
    uploads_of = [begin(stored, tenant="acme") for _ in range(2)]
    parts = [add_part(stored, upload.id, [WHOLE], "acme").id for upload in uploads_of]
    for call in (complete_upload, lambda *args: cancel_upload(args[0], args[1])):
        with pytest.raises(NotFound):
            call(stored, uploads_of[0].id, parts[:1])
    first = complete_upload(stored, uploads_of[0].id, parts[:1], tenant="acme")
    assert stored.store.stored_bytes("acme") == len(WHOLE)
    assert [file.id for file in stored.store.files(tenant="acme").items] == [first.file_id]
    assert stored.store.files().items == []
    with pytest.raises(QuotaExceeded, match="Delete files"):
        complete_upload(stored, uploads_of[1].id, parts[1:], tenant="acme")
    delete_file(stored, str(first.file_id), "acme")
    assert stored.store.stored_bytes("acme") == 0
    # Nothing was lost by the refusal.
    second = complete_upload(stored, uploads_of[1].id, parts[1:], tenant="acme")
    assert content(stored, second.file_id) == WHOLE


def test_an_upload_that_is_created_again_stays_as_it_is(stored: Backend) -> None:
    upload = begin(stored, upload_id="upload_1")
    done = complete_upload(stored, upload.id, add(stored, upload, [WHOLE]))
    begin(stored, upload_id="upload_1")
    assert find_upload(stored, "upload_1") == done
