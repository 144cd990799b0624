"""A batch whose window closes or that is cancelled stops decoding at once and frees its pages, on the real engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.ids import batch_id, file_id
from pressrun.jobs.records import Batch
from pressrun.jobs.settings import load_settings
from pressrun.jobs.store import batch_key
from pressrun.jobs.submit import create_file
from pressrun.workers.engine_process import EngineProcess
from pressrun.workers.engines import engine_of
from pressrun.workers.worker import PressrunWorker

from ..jobs.conftest import encode
from .conftest import CHAT, Farm

MODEL = "smol"
NUM_LINES = 8
SOON_S = 2.0  # A turn of the worker, a step of the engine, and the machine's other work.

pytestmark = [pytest.mark.model]


@pytest.fixture(scope="module")
def built(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = load_settings(
        {},
        data_dir=tmp_path_factory.mktemp("deadlines"),
        model=str(smollm2),
        served_model_name=MODEL,
        max_model_len=2048,
        kv_cache_gb=0.25,
        device="cpu",
    )
    factory, load_tokenizer = engine_of(settings, smollm2)
    return settings, factory, load_tokenizer()


@pytest.fixture
def worker(redis: Redis, redis_server: str, built: Any) -> Iterator[PressrunWorker]:
    """A worker in a thread, so that the test sees what its engine says of itself."""
    settings, factory, tokenizer = built
    backend = backend_on(settings.model_copy(update={"redis_url": redis_server}), redis)
    worker = PressrunWorker(backend, EngineProcess(factory), tokenizer, grace_s=0.0)
    thread = threading.Thread(target=worker.work)
    thread.start()
    until(lambda: backend.store.models(), 60)
    yield worker
    worker.request_stop()
    thread.join(timeout=30)


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> float:
    """Seconds until it was so."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - started


def long_batch(backend: Backend, window_s: int) -> Batch:
    """Lines of a thousand tokens each, which take a CPU far longer than the window."""
    raw = encode(
        *(Farm.ask(f"c{i}", "Count.", model=MODEL, max_tokens=1000, ignore_eos=True) for i in range(NUM_LINES))
    )
    file = create_file(backend, filename="a.jsonl", purpose="batch", chunks=[raw])
    now = int(time.time())
    batch = Batch(
        id=batch_id(),
        kind="batch",
        endpoint=CHAT,
        input_file_id=file.id,
        completion_window=f"{window_s}s",  # Shorter than clients may choose.
        created_at=now,
        expires_at=now + window_s,
        reserved_output_id=file_id(),
        reserved_error_id=file_id(),
    )
    backend.store.create_batch(batch)
    return batch


def is_idle(worker: PressrunWorker) -> bool:
    load = worker.engine.load
    return load is not None and (load.num_running, load.num_waiting, load.num_free_pages) == (0, 0, load.num_pages)


def is_decoding(worker: PressrunWorker) -> bool:
    load = worker.engine.load
    return load is not None and load.num_running == NUM_LINES and load.num_free_pages < load.num_pages


def codes(backend: Backend, batch: Batch) -> list[str]:
    raw = b"".join(backend.blobs.open(f"files/{backend.store.batch(batch.id).error_file_id}"))
    return [json.loads(line)["error"]["code"] for line in raw.splitlines()]


def test_a_batch_that_expires_leaves_the_engine_at_once(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 5)
    until(lambda: is_decoding(worker))
    time.sleep(max(0.0, batch.expires_at - time.time()))
    assert until(lambda: is_idle(worker)) < SOON_S
    until(lambda: worker.backend.store.batch(batch.id).status == "expired")
    assert codes(worker.backend, batch) == ["batch_expired"] * NUM_LINES


def test_a_batch_that_is_cancelled_leaves_the_engine_within_a_second(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 600)
    until(lambda: is_decoding(worker))
    worker.backend.store.move(batch.id, "cancelling", closing="cancelled")
    assert until(lambda: is_idle(worker)) < 1.0 + SOON_S
    until(lambda: worker.backend.store.batch(batch.id).status == "cancelled")
    assert codes(worker.backend, batch) == ["batch_cancelled"] * NUM_LINES


def test_a_window_that_was_prolonged_meanwhile_holds(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 4)
    until(lambda: is_decoding(worker))
    worker.backend.redis.hset(batch_key(batch.id), "expires_at", batch.expires_at + 600)
    time.sleep(max(0.0, batch.expires_at + 1 - time.time()))
    assert is_decoding(worker)
    worker.backend.store.move(batch.id, "cancelling", closing="cancelled")
    until(lambda: is_idle(worker))
