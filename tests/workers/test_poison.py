"""Lines that an engine crashes or hangs on are found out and fail alone; slow ones are left in peace."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs.records import ENDED
from pressrun.workers.engine_keeper import EXIT_UNDYING

from .conftest import Farm, farm_on


@pytest.fixture
def farm(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Farm]:
    """One whose engines are given up soon."""
    farm = farm_on(redis, redis_server, tmp_path, engine_stall_s=1.5)
    yield farm
    for worker in farm.workers:
        worker.end()


@pytest.mark.parametrize(
    ("prompt", "code", "number"),
    [
        ("kill the engine", "engine_crashed", 40),  # Lines of three shards are in the engine with it.
        ("stop the engine", "engine_hung", 6),  # Each hanging engine is waited for, so that it is with few.
        ("spin the engine", "engine_hung", 6),
    ],
)
def test_the_line_that_an_engine_dies_of_fails_alone(farm: Any, prompt: str, code: str, number: int) -> None:
    worker = farm.work()
    lines = farm.many(number)
    lines[3] = farm.ask("deadly", f"please {prompt}")
    output, errors = farm.results(farm.batch(lines))
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(number) if i != 3]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("deadly", code)]
    assert worker.process.poll() is None
    output, errors = farm.results(farm.batch(farm.many(4)))
    assert (len(output), errors) == (4, [])


UNDYING = """
from types import SimpleNamespace
from pressrun.workers import engine_keeper
from pressrun.workers.metrics import WorkerMetrics

class Undying:
    running, info, load, progress, births = True, object(), None, 0, 1
    def poll(self, timeout, waker): return []
    def kill(self): print("killed", flush=True)

engine_keeper.UNDYING_S = 0.2
flight = SimpleNamespace(num_inside=1, pump=lambda: None, take=lambda outputs: [])
keeper = engine_keeper.EngineKeeper(Undying(), flight, None, WorkerMetrics(), stall_s=0.2)
while True:
    keeper.hear(0.01)
"""


def test_a_worker_does_not_hold_on_to_an_engine_that_cannot_even_be_killed() -> None:
    result = subprocess.run([sys.executable, "-c", UNDYING], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.returncode) == ("killed\n", EXIT_UNDYING), result.stderr


def test_a_line_that_kills_the_worker_itself_fails_alone(
    redis: Redis, redis_server: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    farm = farm_on(redis, redis_server, tmp_path, max_attempts=4)
    request.addfinalizer(lambda: [worker.end() for worker in farm.workers])
    lines = farm.many(20)  # A shard of 16 and one of 4.
    lines[16] = farm.ask("deadly", "please kill the worker")
    farm.work()
    batch = farm.batch(lines)
    num_workers = 1
    while farm.backend.store.batch(batch.id).status not in ENDED:
        if farm.workers[-1].process.poll() is not None:
            farm.work()  # As whoever keeps workers running would.
            num_workers += 1
        assert num_workers < 8
        time.sleep(0.05)
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(20) if i != 16]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("deadly", "worker_lost")]


def test_an_engine_that_takes_its_time_is_not_killed(farm: Any) -> None:
    worker = farm.work(step_s=0.5, max_num_seqs=3)
    (engine,) = worker.engines()
    output, errors = farm.results(farm.batch(farm.many(12)))
    assert (len(output), errors) == (12, [])
    assert worker.engines() == [engine]
