"""Files, batches and models in Redis: order, paging, expiry, and what is on disk when it is said to be."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, connect
from pressrun.jobs.errors import NotFound, SettingsError, StoreUnavailable
from pressrun.jobs.model_cards import KNOWN_S, MODEL_TTL_S, MODELS, SERVED
from pressrun.jobs.records import Batch, BatchError, Counts, File, ModelCard, Usage
from pressrun.jobs.settings import load_settings
from pressrun.jobs.store import Store

from .conftest import OwnValkey


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis)


def new_file(number: int, purpose: str = "batch", expires_at: int | None = None) -> File:
    return File(id=f"file-{number}", bytes=1, created_at=1, filename="x", purpose=purpose, expires_at=expires_at)


def new_batch(number: int) -> Batch:
    return Batch(
        id=f"batch_{number}",
        kind="batch",
        endpoint="/v1/completions",
        input_file_id="file-x",
        completion_window="24h",
        created_at=1,
        expires_at=86401,
    )


def ids(items: list[File] | list[Batch]) -> list[str]:
    return [item.id for item in items]


def test_a_batch_comes_back_with_every_field(store: Store) -> None:
    batch = replace(
        new_batch(1),
        metadata={"a": "é"},
        reserved_output_id="file-o",
        counts=Counts(total=3),
        usage=Usage(input_tokens=2**40),
        times={"in_progress_at": 5},
        output_ttl_s=3600,
    )
    store.create_batch(batch)
    assert store.batch(batch.id) == batch


def test_a_batch_of_a_version_before_comes_back_with_defaults(store: Store) -> None:
    store.create_batch(new_batch(1))
    new = ("strict", "paused", "estimated_tokens", "earlier_tokens", "generation", "priority", "tenant")
    store.redis.hdel("pressrun:{batch_1}", *new)
    assert store.batch("batch_1") == new_batch(1)


def test_an_unknown_batch_or_file_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="No batch found with id 'batch_9'"):
        store.batch("batch_9")
    with pytest.raises(NotFound, match="file-9"):
        store.file("file-9")


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_files_are_paged_in_both_orders(store: Store, newest_first: bool, limit: int) -> None:
    for number in range(7):
        store.add_file(new_file(number))
    found: list[str] = []
    more, after = True, None
    while more:
        page = store.files(limit=limit, newest_first=newest_first, after=after)
        assert len(page.items) <= limit
        found, more, after = found + ids(page.items), page.has_more, page.items[-1].id
    order = range(6, -1, -1) if newest_first else range(7)
    assert found == [f"file-{number}" for number in order]


def test_files_made_in_the_same_second_keep_their_order_when_written_again(store: Store) -> None:
    for number in (0, 1, 2, 0):
        store.add_file(new_file(number))
    assert ids(store.files().items) == ["file-2", "file-1", "file-0"]


def test_files_of_one_purpose_are_found_among_many_others(store: Store) -> None:
    for number in range(250):
        store.add_file(new_file(number, purpose="batch" if number % 100 == 0 else "user_data"))
    page = store.files(purpose="batch", limit=2)
    assert (ids(page.items), page.has_more) == (["file-200", "file-100"], True)
    page = store.files(purpose="batch", limit=2, after="file-100")
    assert (ids(page.items), page.has_more) == (["file-0"], False)
    assert store.files(purpose="none").items == []


def test_an_expired_file_is_neither_found_nor_listed(store: Store) -> None:
    now = int(time.time())
    for number, expires_at in enumerate((now - 1, now + 100, None)):
        store.add_file(new_file(number, expires_at=expires_at))
    assert ids(store.files().items) == ["file-2", "file-1"]
    with pytest.raises(NotFound):
        store.file("file-0")
    assert store.expired_files(now) == ["file-0"]
    assert store.expired_files(now + 100) == ["file-0", "file-1"]
    store.forget_file("file-0")
    assert store.expired_files(now) == []


def test_a_file_is_retired_once(store: Store) -> None:
    store.add_file(new_file(0))
    store.retire_file("file-0")
    for _ in range(2):
        with pytest.raises(NotFound):
            store.retire_file("file-0")
    assert store.expired_files(0) == ["file-0"]


def test_batches_are_paged_newest_first(store: Store) -> None:
    for number in range(5):
        store.create_batch(new_batch(number))
    page = store.batches(limit=2)
    assert (ids(page.items), page.has_more) == (["batch_4", "batch_3"], True)
    page = store.batches(limit=3, after="batch_3")
    assert (ids(page.items), page.has_more) == (["batch_2", "batch_1", "batch_0"], False)
    assert store.batches(after="batch_0").items == []


def test_paging_on_from_an_unknown_object_is_an_error(store: Store) -> None:
    for listing in (store.batches, store.files):
        with pytest.raises(NotFound) as caught:
            listing(after="nothing")
        assert caught.value.param == "after"


def test_a_batch_moves_only_along_its_road(store: Store) -> None:
    store.create_batch(new_batch(1))
    assert not store.move("batch_1", "completed")
    assert store.move("batch_1", "cancelling", closing="cancelled")
    assert not store.move("batch_1", "in_progress")
    store.fail("batch_1", [BatchError(code="c", message="m")], 1)
    assert store.batch("batch_1").status == "cancelling"
    assert store.move("batch_1", "cancelled")
    assert not store.move("batch_1", "cancelled")
    batch = store.batch("batch_1")
    assert (batch.status, batch.closing) == ("cancelled", "cancelled")
    assert set(batch.times) == {"cancelling_at", "cancelled_at"}
    with pytest.raises(NotFound):
        store.move("batch_2", "completed")


def test_of_many_moves_at_once_one_is_made(store: Store) -> None:
    store.create_batch(new_batch(1))
    moved: list[bool] = []
    threads = [
        threading.Thread(target=lambda to=to: moved.append(store.move("batch_1", to)))  # type: ignore[misc]
        for to in ("failed", "in_progress") * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moved) == [False] * 15 + [True]


def test_active_batches_are_given_by_deadline_and_jobs_apart(store: Store) -> None:
    store.create_batch(replace(new_batch(1), expires_at=300))
    store.create_batch(replace(new_batch(2), expires_at=200))
    store.create_batch(replace(new_batch(3), id="job_3", kind="job"))
    assert store.active("batch") == ["batch_2", "batch_1"]
    assert store.active("job") == ["job_3"]
    assert store.inputs_in_use() == {"file-x"}
    assert store.request_stats() == {"active": 3}
    store.forget_active("job_3")
    assert store.active("job") == []


def test_a_model_is_known_while_one_worker_says_so(store: Store) -> None:
    card = ModelCard(id="m", max_model_len=10, created=1, worker="a")
    for worker, model in (("a", "m"), ("b", "m"), ("c", "other")):
        store.touch_model(replace(card, worker=worker, id=model))
    assert store.models() == [card, replace(card, worker="c", id="other")]
    store.forget_model("a")
    assert [one.worker for one in store.models()] == ["b", "c"]
    silent = [time.time() - MODEL_TTL_S - 1, asdict(replace(card, worker="b"))]
    store.redis.hset(MODELS, "b", json.dumps(silent))
    assert [one.worker for one in store.models()] == ["c"]
    assert store.redis.hkeys(MODELS) == [b"c"]


# On disk


def test_a_created_batch_survives_the_death_of_redis(own_valkey: OwnValkey) -> None:
    with own_valkey.client() as redis:
        for number in range(3):
            Store(redis).create_batch(new_batch(number))
            own_valkey.kill()
            own_valkey.start()
        store = Store(redis)
        assert ids(store.batches().items) == ["batch_2", "batch_1", "batch_0"]
        assert store.active("batch") == ["batch_0", "batch_1", "batch_2"]


def test_a_batch_that_redis_cannot_bring_to_disk_is_not_promised(
    own_valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pressrun.jobs.connection.DURABLE_WAIT_MS", 50)
    with own_valkey.client() as redis:
        redis.config_set("appendfsync", "no")  # The kernel may take half a minute.
        with pytest.raises(StoreUnavailable, match="to disk"):
            Store(redis).create_batch(new_batch(1))


def test_a_redis_that_keeps_nothing_is_not_waited_for(forgetful_valkey: OwnValkey) -> None:
    with forgetful_valkey.client() as redis:
        redis.flushall()
        started = time.monotonic()
        Store(redis).create_batch(new_batch(1))
        assert time.monotonic() - started < 0.5


def test_a_backend_needs_to_know_its_redis(tmp_path: Path, redis_server: str) -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_REDIS_URL"):
        connect(load_settings({}, data_dir=tmp_path))
    backend = connect(load_settings({}, data_dir=tmp_path, redis_url=redis_server))
    assert isinstance(backend, Backend)
    backend.close()


def test_a_model_is_known_while_it_is_served_and_for_a_day_after(redis: Redis) -> None:
    store = Store(redis)
    store.touch_model(ModelCard(id="m", max_model_len=8, created=1, worker="w"))
    store.touch_model(ModelCard(id="retired", max_model_len=8, created=1, worker="w2"))
    store.forget_model("w2")
    assert store.known_models() == {"m", "retired"}
    redis.hset(SERVED, mapping={"m": 0, "retired": int(time.time() - KNOWN_S - 1)})
    assert store.known_models() == {"m"}
    redis.delete(SERVED)  # A worker of an earlier version says only that it lives.
    assert store.known_models() == {"m"}
