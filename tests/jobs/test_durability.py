"""What was answered is on disk, and what broke off is swept up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from pressrun.jobs import submit
from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.errors import NotFound, StoreUnavailable
from pressrun.jobs.records import File
from pressrun.jobs.settings import load_settings

from .conftest import OwnValkey, chat_line, serve_model, upload_batch

Act = Callable[[Backend], object]
LINES = [chat_line("a")]


@pytest.fixture
def mortal(own_valkey: OwnValkey, tmp_path: Path) -> Backend:
    backend = backend_on(load_settings({}, data_dir=tmp_path), own_valkey.client())
    serve_model(backend)
    return backend


def upload(backend: Backend) -> File:
    return submit.create_file(backend, filename="a.jsonl", purpose="batch", chunks=[b"{}"])


def test_what_was_answered_is_there_after_a_crash(mortal: Backend, own_valkey: OwnValkey) -> None:
    kept, deleted, batch = upload(mortal), upload(mortal), upload_batch(mortal, LINES)
    submit.delete_file(mortal, deleted.id)
    mortal.store.cancel(batch.id)
    own_valkey.kill()
    own_valkey.start()
    assert mortal.store.file(kept.id) == kept
    assert mortal.store.batch(batch.id).closing == "cancelled"
    with pytest.raises(NotFound):
        mortal.store.file(deleted.id)


def test_what_redis_cannot_bring_to_disk_is_not_promised(mortal: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    file, batch = upload(mortal), upload_batch(mortal, LINES)
    monkeypatch.setattr("pressrun.jobs.connection.DURABLE_WAIT_MS", 50)
    mortal.redis.config_set("appendfsync", "no")  # The kernel may take half a minute.
    acts: tuple[Act, ...] = (
        upload,
        lambda backend: backend.store.cancel(batch.id),
        lambda backend: submit.delete_file(backend, file.id),
    )
    for act in acts:
        with pytest.raises(StoreUnavailable, match="to disk"):
            act(mortal)
    # A file that may come back must find its bytes.
    assert file.blob in mortal.blobs.list("files")


def test_an_upload_that_broke_off_is_swept_and_others_are_not(
    backend: Backend, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = submit.create_file(backend, filename="a.jsonl", purpose="batch", chunks=[b"{}"])
    backend.store.begin_upload("file-lost")  # Its API was killed between the bytes and the description.
    backend.blobs.put("files/file-lost", [b"{}"])
    submit.sweep_broken_uploads(backend)
    assert list(backend.blobs.list("files")) == sorted([kept.blob, "files/file-lost"])
    monkeypatch.setattr(submit, "LONGEST_UPLOAD_S", 0)
    submit.sweep_broken_uploads(backend)
    assert list(backend.blobs.list("files")) == [kept.blob]
    assert redis.zcard("pressrun:unfinished-files") == 0


def test_a_refused_upload_leaves_nothing_to_sweep(backend: Backend, redis: Redis) -> None:
    with pytest.raises(submit.UserError):
        submit.create_file(backend, filename="a.jsonl", purpose="batch", chunks=[])
    assert redis.zcard("pressrun:unfinished-files") == 0
