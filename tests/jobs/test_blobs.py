"""One contract, kept by every blob store."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from pressrun.jobs.blobs import Blobs, open_blobs
from pressrun.jobs.blobs.disk import DiskBlobs
from pressrun.jobs.blobs.redis import CHUNK, RedisBlobs
from pressrun.jobs.errors import BlobMissing, SettingsError


@pytest.fixture(params=["disk", "redis"])
def blobs(request: pytest.FixtureRequest, redis: Redis, tmp_path: Path) -> Blobs:
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


@pytest.mark.parametrize("url", ["s3://bucket", "file:", "file://host/folder", "/folder", "redis://other:6379/0", ""])
def test_a_url_that_names_no_store_is_refused(redis: Redis, url: str) -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_BLOB_URL"):
        open_blobs(url, redis)
