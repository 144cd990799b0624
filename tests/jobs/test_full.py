"""A Redis whose memory or disk is full takes no new work, and lets what is in hand come to its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from pressrun.jobs.away import passes
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import BlobsUnavailable
from pressrun.jobs.ids import owner_id
from pressrun.jobs.sealing import seal_shard

from .conftest import MakeBatch, chat_line, valkey_that_cannot_save
from .simulated import answer, commit, missing


@contextmanager
def full(backend: Backend) -> Iterator[None]:
    backend.redis.config_set("maxmemory", "1")
    try:
        yield
    finally:
        backend.redis.config_set("maxmemory", "0")


def test_lines_in_hand_are_committed_and_sealed_and_make_room(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(8)])
    validate_batch(backend, batch.id)
    backend.shards.feed([batch.id], 1)
    claim = backend.shards.claim(batch.id, 0, owner_id(), 60.0)
    assert claim is not None
    with full(backend):
        assert backend.shards.hold([claim], 60.0) == [True]
        assert commit(backend, claim, [answer(line) for line in missing(backend, claim)]) == "complete"
        seal_shard(backend, claim)
        assert backend.shards.spool(batch.id, 0) == []
        assert [index for index, _ in backend.shards.segments(batch.id)] == [0]


def test_leases_lapse_and_batches_are_cancelled_all_the_same(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(8)])
    validate_batch(backend, batch.id)
    backend.shards.feed([batch.id], 2)
    held = backend.shards.claim(batch.id, 0, owner_id(), 60.0)
    assert held is not None
    backend.shards.claim(batch.id, 1, owner_id(), 0.0)
    with full(backend):
        (tended,) = backend.shards.tend([batch.id], 10)
        assert tended is not None
        assert tended.back == (1,)
        assert backend.shards.release(held, count_attempt=False)
        assert backend.store.cancel(batch.id).closing == "cancelled"


def test_nothing_new_is_begun_nor_half_begun(backend: Backend, make_batch: MakeBatch) -> None:
    batch = make_batch([chat_line(f"c{i}") for i in range(8)])
    validate_batch(backend, batch.id)
    (fed,) = backend.shards.feed([batch.id], 1)
    assert fed == [0]
    with full(backend):
        with pytest.raises(OutOfMemoryError):
            backend.shards.feed([batch.id], 2)
        with pytest.raises(OutOfMemoryError):
            backend.shards.claim(batch.id, 0, owner_id(), 60.0)
    assert backend.shards.queued([batch.id]) == [[0]]
    assert backend.shards.attempts(batch.id) == {}
    assert backend.shards.feed([batch.id], 2) == [[1]]


def test_a_redis_that_cannot_save_is_waited_for() -> None:
    with valkey_that_cannot_save() as valkey, valkey.client() as redis, pytest.raises(ResponseError) as caught:
        redis.set("a", "b")
    assert str(caught.value).startswith("MISCONF")
    assert passes(caught.value)
    assert passes(NoScriptError("NOSCRIPT No matching script"))
    assert not passes(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))


FILL = """
import resource, sys
from pressrun.jobs.blobs.disk import DiskBlobs
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
blobs = DiskBlobs(sys.argv[1])
blobs.put("a/small", [b"x"])
blobs.put("a/large", [b"x" * 1000])
"""


def test_a_full_disk_is_an_error_that_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=False)
    said = result.stderr.splitlines()[-1]
    assert said == "pressrun.jobs.errors.BlobsUnavailable: a/large cannot be written: File too large"
    assert passes(BlobsUnavailable(said))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small"]
