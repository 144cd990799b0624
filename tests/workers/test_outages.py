"""Stores that are full or away for longer than a lease: workers wait, and no line pays for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis
from rq.suspension import resume, suspend

from pressrun.bench.chaos_cut import Cut
from pressrun.jobs.errors import BlobsUnavailable
from pressrun.workers import worker as worker_module
from pressrun.workers.echo_engine import ByteTokenizer, EchoFactory
from pressrun.workers.engine_process import EngineProcess

from ..jobs.simulated import GatedBlobs
from .conftest import Farm, farm_on


@pytest.fixture
def cut(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cut]:
    """What stands between workers and S3."""
    port = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"]).port
    assert port is not None
    cut = Cut(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{cut.port}")
    yield cut
    cut.close()


@pytest.fixture
def s3_farm(redis: Redis, redis_server: str, tmp_path: Path, s3_url: str, cut: Cut) -> Iterator[Farm]:
    """One that gives a shard up soon."""
    farm = farm_on(redis, redis_server, tmp_path, blob_url=f"{s3_url}/outages", max_attempts=2, lease_s=2)
    yield farm
    for worker in farm.workers:
        worker.end()


def check(farm: Any, batch: Any, number: int) -> None:
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(number)]
    assert errors == []


def test_lines_do_not_fail_for_a_blob_store_that_is_away_for_many_leases(s3_farm: Any, cut: Cut) -> None:
    for _ in range(3):  # More of them than a shard may be claimed in vain.
        s3_farm.work()
    suspend(s3_farm.backend.redis)
    batch = s3_farm.batch(s3_farm.many(32))
    s3_farm.until(lambda: s3_farm.backend.shards.queued([batch.id]) == [[0, 1]])
    cut.hang()
    resume(s3_farm.backend.redis)
    s3_farm.until(lambda: s3_farm.backend.shards.num_leased(batch.id) == 2)
    time.sleep(3 * s3_farm.backend.settings.lease_s)
    assert set(s3_farm.backend.shards.attempts(batch.id).values()) == {1}
    cut.heal()
    check(s3_farm, batch, 32)
    assert all(worker.process.poll() is None for worker in s3_farm.workers)


def test_giving_up_to_wait_for_a_blob_store_costs_no_attempt(
    redis: Redis, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "PATIENCE_S", 0.1)
    farm = farm_on(redis, redis_server, tmp_path, max_attempts=2)
    away, waited = threading.Event(), []

    def gate() -> None:
        if away.is_set():
            waited.append(time.monotonic())
            raise BlobsUnavailable("away")

    backend = replace(farm.backend, blobs=GatedBlobs(farm.backend.blobs, gate))
    worker = worker_module.PressrunWorker(backend, EngineProcess(EchoFactory()), ByteTokenizer(), grace_s=0.0)
    thread = threading.Thread(target=worker.work)
    thread.start()
    try:
        farm.until(farm.cards)
        suspend(redis)
        farm.until(lambda: worker._suspended)  # It looks once a second.
        batch = farm.batch(farm.many(4))
        farm.until(lambda: farm.backend.shards.queued([batch.id]) == [[0]])
        away.set()
        resume(redis)
        farm.until(lambda: len(waited) > 10)  # Each time it is given up, some three have been made.
        away.clear()
        check(farm, batch, 4)
    finally:
        worker.request_stop()
        thread.join()


def test_a_redis_that_is_full_for_many_leases_costs_only_time(mortal_farm: Any) -> None:
    farm, _ = mortal_farm
    worker = farm.work(step_s=0.05, max_num_seqs=4)
    batch = farm.batch(farm.many(300))
    farm.until(lambda: farm.num_done(batch) >= 20)
    farm.backend.redis.config_set("maxmemory", "1")
    time.sleep(3 * farm.backend.settings.lease_s)
    farm.until(lambda: farm.backend.shards.num_leased(batch.id) == 0)
    done = farm.num_done(batch)
    assert 20 < done < 300  # What was in hand was finished, and nothing else was begun.
    assert worker.process.poll() is None
    farm.backend.redis.config_set("maxmemory", "0")
    check(farm, batch, 300)
