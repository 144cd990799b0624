"""Webhooks as a running housekeeper delivers them, with real endpoints, slow and dead ones among them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs import deliveries, outbound
from pressrun.jobs.backend import Backend
from pressrun.jobs.deliveries import TAKEN_S, deliveries_of
from pressrun.jobs.webhooks import EVENT_TYPES, create_endpoint
from pressrun.workers import deliverer as deliverer_module
from pressrun.workers.deliverer import Deliverer

from ..jobs.conftest import chat_line, upload_batch
from ..receiver import receiving
from .test_housekeeping import ended, housekeepers, new_backend, until, work_until_ended


@pytest.fixture
def backend(redis: Redis, tmp_path: Path) -> Backend:
    return new_backend(redis, tmp_path, webhook_allow_private=True, webhook_timeout_s=1)


def listen(backend: Backend, url: str) -> str:
    return create_endpoint(backend, name="mine", url=url, event_types=EVENT_TYPES).id


def test_two_housekeepers_tell_of_every_batch_once(backend: Backend) -> None:
    with receiving() as receiver, housekeepers(backend, 2):
        listen(backend, receiver.url)
        batches = [upload_batch(backend, [chat_line("a")]) for _ in range(8)]
        bad = upload_batch(backend, [b"{}"])
        work_until_ended(backend, *batches, bad)
        until(lambda: len(receiver.got) >= 9)
        time.sleep(1.2)  # Long enough for each of them to look again.
    ids = {backend.store.batch(batch.id).event_id for batch in (*batches, bad)}
    assert sorted(got.headers["webhook-id"] for got in receiver.got) == sorted(map(str, ids))


def slow_endpoint(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whoever posts to `/slow` waits for this."""
    slow = threading.Event()
    post: Callable[..., int] = outbound.post

    def slowly(url: str, *args: Any, **more: Any) -> int:
        if url.endswith("/slow"):
            slow.wait(30)
        return post(url, *args, **more)

    monkeypatch.setattr("pressrun.jobs.posting.post", slowly)
    return slow


def test_an_endpoint_that_takes_its_time_holds_up_neither_batches_nor_others(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = slow_endpoint(monkeypatch)
    with receiving() as receiver, housekeepers(backend):
        listen(backend, receiver.url + "/slow")
        listen(backend, receiver.url)
        batches = [upload_batch(backend, [chat_line("a")]) for _ in range(4)]
        work_until_ended(backend, *batches)
        until(lambda: len(receiver.got) == 4)
        assert {got.path for got in receiver.got} == {"/hook"}
        slow.set()
        until(lambda: len(receiver.got) == 8)


def test_a_deliverer_takes_no_more_than_it_has_hands_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer_module, "NUM_THREADS", 2)
    gate = threading.Event()
    flying: list[str] = []

    def hold(url: str, *_: Any, **__: Any) -> int:
        flying.append(url)
        gate.wait(20)
        return 200

    monkeypatch.setattr("pressrun.jobs.posting.post", hold)
    endpoints = [listen(backend, "http://127.0.0.1:9/") for _ in range(5)]
    with housekeepers(backend):
        batch = upload_batch(backend, [chat_line("a")])
        work_until_ended(backend, batch)
        until(lambda: len(flying) == 2)
        time.sleep(1.2)
        assert (len(flying), backend.redis.zcard(deliveries.DUE)) == (2, 5)
        gate.set()
        until(lambda: len(flying) == 5)
        until(lambda: all(deliveries_of(backend, one).items[0].status == "delivered" for one in endpoints))


def test_an_endpoint_that_takes_its_time_leaves_threads_for_the_others(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "NUM_THREADS", 4)
    monkeypatch.setattr(deliverer_module, "MOST_TO_ONE", 2)
    monkeypatch.setattr(deliverer_module, "PAUSE_S", 1)
    slow = slow_endpoint(monkeypatch)
    with receiving() as receiver, housekeepers(backend):
        listen(backend, receiver.url + "/slow")
        batches = [upload_batch(backend, [b"{}"]) for _ in range(12)]
        until(lambda: all(ended(backend, batch) for batch in batches) and backend.store.active("batch") == [])
        listen(backend, receiver.url)
        later = upload_batch(backend, [b"{}"])
        until(lambda: [json.loads(got.body)["data"]["id"] for got in receiver.got] == [later.id])
        slow.set()
        until(lambda: len(receiver.got) == 14)


def test_a_surprise_costs_an_attempt_and_not_the_delivery(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time() + 100

    def explode(*_: Any, **__: Any) -> int:
        raise RuntimeError("boom")

    with receiving() as receiver:
        mine = listen(backend, receiver.url)
        batch = upload_batch(backend, [b"{}"])
        housekeepers_deliverer = Deliverer(backend, clock=lambda: now)
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr("pressrun.jobs.posting.post", explode)
            with housekeepers(backend):
                until(lambda: ended(backend, batch) and "boom" in caplog.text)
        assert deliveries_of(backend, mine).items[0].status == "pending"
        now += TAKEN_S
        housekeepers_deliverer.tick()
        housekeepers_deliverer.close()
        assert deliveries_of(backend, mine).items[0].status == "delivered"
