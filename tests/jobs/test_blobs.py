"""One contract, kept by every blob store."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ResponseStreamingError
from redis import Redis

from pressrun.jobs.blobs import Blobs, open_blobs
from pressrun.jobs.blobs import s3 as s3_module
from pressrun.jobs.blobs.disk import DiskBlobs
from pressrun.jobs.blobs.redis import CHUNK, RedisBlobs
from pressrun.jobs.blobs.s3 import S3Blobs
from pressrun.jobs.errors import BlobMissing, BlobsUnavailable, SettingsError


@pytest.fixture(params=["disk", "redis", "s3"])
def blobs(request: pytest.FixtureRequest, redis: Redis, tmp_path: Path) -> Blobs:
    if request.param == "s3":
        return open_blobs(f"{request.getfixturevalue('s3_url')}/{secrets.token_hex(4)}", redis)
    return open_blobs((tmp_path / "blobs").as_uri() if request.param == "disk" else "redis:", redis)


def read(blobs: Blobs, key: str, offset: int = 0, size: int | None = None) -> bytes:
    return b"".join(blobs.open(key, offset, size))


def test_what_is_put_is_read_again(blobs: Blobs) -> None:
    assert blobs.put("a/b/c", [b"one", b"", b"two"]) == 6
    assert read(blobs, "a/b/c") == b"onetwo"
    assert blobs.size("a/b/c") == 6


def test_an_empty_blob_is_there(blobs: Blobs) -> None:
    assert blobs.put("a/empty", []) == 0
    assert read(blobs, "a/empty") == b""
    assert blobs.size("a/empty") == 0


@pytest.mark.parametrize("offset", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 10, 3 * CHUNK])
@pytest.mark.parametrize("size", [None, 0, 1, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_a_range_is_what_a_slice_of_it_is(blobs: Blobs, offset: int, size: int | None) -> None:
    whole = bytes(itertools.islice(itertools.cycle(range(251)), 2 * CHUNK + 10))
    blobs.put("a/b", [whole])
    chunks = list(blobs.open("a/b", offset, size))
    assert b"".join(chunks) == whole[offset:][:size]
    assert max(map(len, chunks), default=0) <= CHUNK


def test_listing_gives_the_keys_below_a_folder_in_order(blobs: Blobs) -> None:
    for key in ("a/2", "a/10/x", "a/1", "ab/1", "b"):
        blobs.put(key, [b"."])
    assert list(blobs.list("a")) == ["a/1", "a/10/x", "a/2"]
    assert list(blobs.list("none")) == []


def test_deleting_twice_is_deleting_once(blobs: Blobs) -> None:
    blobs.put("a/b", [b"x"])
    blobs.delete("a/b")
    blobs.delete("a/b")
    assert list(blobs.list("a")) == []


def test_a_missing_blob_is_named_at_once(blobs: Blobs) -> None:
    with pytest.raises(BlobMissing, match="a/b"):
        blobs.open("a/b")
    with pytest.raises(BlobMissing, match="a/b"):
        blobs.size("a/b")


def test_until_a_blob_is_whole_readers_see_the_one_before(blobs: Blobs) -> None:
    blobs.put("a/b", [b"old"])

    def chunks() -> Iterator[bytes]:
        yield b"ne"
        assert read(blobs, "a/b") == b"old"
        assert list(blobs.list("a")) == ["a/b"]
        yield b"w"

    blobs.put("a/b", chunks())
    assert read(blobs, "a/b") == b"new"


def test_a_writer_that_fails_leaves_everything_as_it_was(blobs: Blobs, tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half of it"
        raise RuntimeError("the upload broke off")

    blobs.put("a/old", [b"old"])
    for key in ("a/old", "a/new"):
        with pytest.raises(RuntimeError, match="broke off"):
            blobs.put(key, chunks())
    assert list(blobs.list("a")) == ["a/old"]
    assert read(blobs, "a/old") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], ["old"])


def test_many_writers_of_one_blob_never_show_a_mixture(blobs: Blobs) -> None:
    whole = {bytes([letter]) * 200_000 for letter in b"abcd"}
    stop = threading.Event()

    def write(text: bytes) -> None:
        while not stop.is_set():
            blobs.put("a/b", [text[:100_000], text[100_000:]])

    blobs.put("a/b", [next(iter(whole))])
    writers = [threading.Thread(target=write, args=(text,)) for text in whole]
    for writer in writers:
        writer.start()
    try:
        for _ in range(50):
            assert read(blobs, "a/b") in whole
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_a_reader_is_not_cut_short_when_its_blob_is_deleted(blobs: Blobs) -> None:
    blobs.put("a/b", [b"x" * (2 * CHUNK)])
    chunks = blobs.open("a/b")
    size = len(next(chunks))
    blobs.delete("a/b")
    try:
        size += sum(map(len, chunks))
    except BlobMissing:
        return
    assert size == 2 * CHUNK


def test_a_draft_that_a_killed_writer_left_is_no_blob(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    blobs.put("a/c", [b"whole"])
    (tmp_path / "a" / ".b.0123.part").write_bytes(b"half")
    assert list(blobs.list("a")) == ["a/c"]


def test_old_drafts_of_killed_writers_are_tidied_up(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    blobs.put("a/b", [b"whole"])
    drafts = [tmp_path / folder / f".b.{'0' * 16}.part" for folder in ("a", "other")]
    for draft in drafts:
        draft.parent.mkdir(exist_ok=True)
        draft.write_bytes(b"par")
    blobs.tidy("a", 3600)
    assert all(draft.exists() for draft in drafts)
    blobs.tidy("a", -1)
    assert [draft.exists() for draft in drafts] == [False, True]
    assert read(blobs, "a/b") == b"whole"


def test_a_key_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        DiskBlobs(tmp_path / "blobs").put("../outside", [b"x"])
    assert not (tmp_path / "outside").exists()


def test_blobs_in_redis_go_after_their_time_unless_they_are_kept(redis: Redis) -> None:
    blobs = RedisBlobs(redis, ttl_s=100)
    blobs.put("a/b", [b"x"])
    key = redis.keys("*a/b")[0]
    assert 0 < redis.ttl(key) <= 100
    blobs.keep("a/b")
    assert redis.ttl(key) == -1
    blobs.keep("a/b", 7)
    assert 0 < redis.ttl(key) <= 7


def test_a_url_picks_the_store_and_a_folder_with_spaces_is_one(redis: Redis, tmp_path: Path) -> None:
    disk = open_blobs((tmp_path / "with space").as_uri(), redis)
    assert isinstance(disk, DiskBlobs)
    assert disk.root == tmp_path / "with space"
    assert isinstance(open_blobs("redis:", redis), RedisBlobs)


@pytest.mark.parametrize(
    "url",
    ["s3:", "s3:///key", "s3://bucket/a?b=c", "file:", "file://host/folder", "/folder", "redis://other:6379/0", ""],
)
def test_a_url_that_names_no_store_is_refused(redis: Redis, url: str) -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_BLOB_URL"):
        open_blobs(url, redis)


@pytest.fixture
def s3(s3_url: str) -> S3Blobs:
    return S3Blobs(s3_url.removeprefix("s3://"), secrets.token_hex(4))


def uploads(s3: S3Blobs) -> list[str]:
    """Of parts that wait to be completed."""
    return [one["Key"] for one in s3._client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", ())]


def test_a_large_object_is_uploaded_in_parts_and_a_failed_upload_leaves_none(
    s3: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 * 2**20)
    block = bytes(range(256)) * 4096  # 1 MiB

    def chunks(broken: bool) -> Iterator[bytes]:
        for i in range(13):
            if broken and i == 12:
                assert uploads(s3) != []
                raise RuntimeError("the upload broke off")
            yield block

    with pytest.raises(RuntimeError, match="broke off"):
        s3.put("a/b", chunks(broken=True))
    assert uploads(s3) == []
    with pytest.raises(BlobMissing):
        s3.size("a/b")
    assert s3.put("a/b", chunks(broken=False)) == s3.size("a/b") == 13 * 2**20
    assert read(s3, "a/b", 6 * 2**20 - 1, 3) == block[-1:] + block[:2]
    assert read(s3, "a/b") == block * 13


def test_old_uploads_of_killed_writers_are_tidied_up(s3: S3Blobs) -> None:
    for key in ("a/b", "other/b"):
        s3._client.create_multipart_upload(Bucket=s3.bucket, Key=s3.prefix + key)
    s3.tidy("a", 3600)
    assert len(uploads(s3)) == 2
    s3.tidy("a", -1)
    assert uploads(s3) == [f"{s3.prefix}other/b"]
    s3.tidy("other", -1)


def test_parts_grow_so_that_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 10)
    monkeypatch.setattr(s3_module, "PARTS_OF_A_SIZE", 3)
    parts = list(s3_module._parts([b"xxxx"] * 60))
    assert b"".join(parts) == b"x" * 240
    assert [len(part) for part in parts] == [12, 12, 12, 20, 20, 20, 40, 40, 40, 24]
    assert list(s3_module._parts([])) == []


def test_a_reader_goes_on_where_a_connection_broke_off(s3: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = secrets.token_bytes(3 * CHUNK)
    s3.put("a/b", [whole])
    get, num_calls = s3._client.get_object, 0

    class Breaking:
        def __init__(self, body: Any) -> None:
            self._body, self._left = body, 1

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: object) -> None:
            self._body.close()

        def read(self, size: int) -> bytes:
            if not self._left:
                raise ResponseStreamingError(error="cut")
            self._left -= 1
            return self._body.read(size)

    def broken(**arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        response = get(**arguments)
        return response | {"Body": Breaking(response["Body"])}

    monkeypatch.setattr(s3._client, "get_object", broken)
    assert read(s3, "a/b", 5) == whole[5:]
    assert num_calls > 2
    s3.put("a/b", [whole])
    chunks = s3.open("a/b")
    next(chunks)
    s3.put("a/b", [b"another"])
    with pytest.raises(BlobMissing):
        list(chunks)  # It never mixes two objects.


def test_a_server_that_is_away_is_a_clear_error(s3: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr(s3_module, "CONFIG", s3_module.CONFIG.merge(Config(retries={"total_max_attempts": 1})))
    away = S3Blobs("pressrun")  # It may come.
    for call in (
        lambda: away.put("a", [b"x"]),
        lambda: away.open("a"),
        lambda: away.list("a"),
        lambda: away.delete("a"),
    ):
        with pytest.raises(BlobsUnavailable, match="s3://pressrun/a"):
            call()


def test_a_bucket_that_is_none_of_ours_is_refused_by_its_name(s3: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"PRESSRUN_BLOB_URL.*'nobodys' does not exist"):
        S3Blobs("nobodys")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SettingsError, match=r"PRESSRUN_BLOB_URL.*may not be used with these credentials"):
        S3Blobs("pressrun")
