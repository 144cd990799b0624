"""One contract, kept by every blob store."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
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
from pressrun.jobs.errors import BlobExists, BlobMissing, BlobsUnavailable, SettingsError


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


def test_what_is_to_be_new_replaces_nothing(blobs: Blobs) -> None:
    assert blobs.put_new("a/b", [b"one", b"two"]) == 6
    with pytest.raises(BlobExists, match="a/b"):
        blobs.put_new("a/b", [b"another"])
    assert read(blobs, "a/b") == b"onetwo"
    blobs.delete("a/b")
    assert blobs.put_new("a/b", []) == 0
    assert blobs.put("a/b", [b"and again"]) == blobs.size("a/b")  # Whoever means to replace may.


@pytest.mark.parametrize("size", [0, 9 * CHUNK])
def test_of_two_writers_of_a_new_blob_the_first_to_end_succeeds(blobs: Blobs, tmp_path: Path, size: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * size
        assert blobs.put_new("a/b", [b"y" * size, b"quick"]) == size + 5
        yield b"slow"

    with pytest.raises(BlobExists, match="a/b"):
        blobs.put_new("a/b", chunks())
    assert read(blobs, "a/b") == b"y" * size + b"quick"
    assert list(blobs.list("a")) == ["a/b"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], ["b"])
    if isinstance(blobs, S3Blobs):
        assert uploads(blobs) == []


def test_of_many_writers_at_once_of_a_new_blob_one_succeeds(blobs: Blobs) -> None:
    succeeded: list[bytes] = []
    start = threading.Barrier(6)

    def write(text: bytes) -> None:
        start.wait()
        with suppress(BlobExists, BlobsUnavailable):  # S3 may tell one that meets another to try again.
            blobs.put_new("a/b", [text])
            succeeded.append(text)

    writers = [threading.Thread(target=write, args=(b"%d" % number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [read(blobs, "a/b")] == succeeded


@pytest.mark.parametrize(
    "sizes", [[], [0], [3], [5, 0, 7], [CHUNK + 1, 1, 2 * CHUNK], [1, 9 * CHUNK, 1, 9 * CHUNK, 9 * CHUNK]]
)
def test_joined_blobs_lie_one_behind_the_other(blobs: Blobs, sizes: list[int]) -> None:
    texts = [secrets.token_bytes(size) for size in sizes]
    pieces = [(f"parts/{i}", blobs.put(f"parts/{i}", [text])) for i, text in enumerate(texts)]
    blobs.put("whole", [b"what was there before"])
    assert blobs.join(iter(pieces), "whole") == sum(sizes)
    assert read(blobs, "whole") == b"".join(texts)
    assert [read(blobs, key) for key, _ in pieces] == texts


def test_a_join_that_lacks_a_piece_leaves_everything_as_it_was(blobs: Blobs, tmp_path: Path) -> None:
    blobs.put("a/old", [b"old"])
    for target in ("a/old", "a/new"):
        with pytest.raises(BlobMissing, match="a/none"):
            blobs.join([("a/old", 3), ("a/none", 5)], target)
    assert list(blobs.list("a")) == ["a/old"]
    assert read(blobs, "a/old") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], ["old"])


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


@pytest.mark.parametrize(
    ("sizes", "copied"),
    [
        ([4, 4, 4], []),
        ([20, 20], [(0, 0, 20), (1, 0, 20)]),
        ([3, 20, 3, 3, 3, 3], [(1, 2, 18)]),  # Two bytes are lent, so that the first part is one.
        ([3, 11, 30], [(2, 0, 15), (2, 15, 15)]),  # What would be left of the second is too small to copy.
        ([12, 90], [(0, 0, 12), (1, 0, 22), (1, 22, 23), (1, 45, 22), (1, 67, 23)]),
    ],
)
def test_a_join_copies_what_is_large_enough_and_no_part_but_the_last_is_too_small(
    s3: S3Blobs, monkeypatch: pytest.MonkeyPatch, sizes: list[int], copied: list[tuple[int, int, int]]
) -> None:
    for name, value in {"PART_BYTES": 10, "MIN_PART_BYTES": 5, "MAX_COPY_BYTES": 25}.items():
        monkeypatch.setattr(s3_module, name, value)
    texts = [secrets.token_bytes(size) for size in sizes]
    monkeypatch.setattr(s3, "open", lambda key, start, size: iter([texts[int(key)][start : start + size]]))
    parts = list(s3._joined((str(i), size) for i, size in enumerate(sizes)))
    assert [(int(p.key), p.start, p.size) for p in parts if isinstance(p, s3_module.Copy)] == copied
    whole = [p if isinstance(p, bytes) else texts[int(p.key)][p.start : p.start + p.size] for p in parts]
    assert b"".join(whole) == b"".join(texts)
    assert all(len(part) >= 5 for part in parts[:-1])


def test_large_pieces_are_copied_within_s3(s3: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [secrets.token_bytes(9 * 2**20), b"small", secrets.token_bytes(14 * 2**20)]
    pieces = [(str(i), s3.put(str(i), [text])) for i, text in enumerate(texts)]
    get, num_read = s3._client.get_object, 0

    def counted(**arguments: Any) -> Any:
        nonlocal num_read
        response = get(**arguments)
        num_read += response["ContentLength"]
        return response

    monkeypatch.setattr(s3._client, "get_object", counted)
    assert s3.join(pieces, "whole") == sum(map(len, texts))
    assert num_read == 5 * 2**20  # The small one, and what it needs to make a part.
    assert uploads(s3) == []
    assert read(s3, "whole") == b"".join(texts)


def test_a_presigned_url_is_a_download_with_a_name(s3: S3Blobs, tmp_path: Path, redis: Redis) -> None:
    s3.put("a/b", [b"0123456789"])
    url = s3.presign("a/b", filename="wörld.jsonl", seconds=60)
    assert url is not None
    request = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == b"234"
        assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''w%C3%B6rld.jsonl"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("/a/b?", "/a/c?"))
    for other in (DiskBlobs(tmp_path), RedisBlobs(redis)):
        assert other.presign("a/b", filename="x", seconds=60) is None


def test_where_a_file_system_copies_nothing_itself_a_join_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not on this file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    blobs = DiskBlobs(tmp_path)
    pieces = [(key, blobs.put(key, [key.encode() * CHUNK])) for key in ("a", "b")]
    assert blobs.join(pieces, "c") == 2 * CHUNK
    assert read(blobs, "c") == b"a" * CHUNK + b"b" * CHUNK


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
