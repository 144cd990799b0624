"""Lines that an engine crashes or hangs on are found out and fail alone; slow ones are left in peace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from .conftest import Farm, farm_on


@pytest.fixture
def farm(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Farm]:
    """One whose engines are given up soon."""
    farm = farm_on(redis, redis_server, tmp_path, engine_stall_s=0.5)
    yield farm
    for worker in farm.workers:
        worker.end()


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("kill the engine", "engine_crashed"), ("stop the engine", "engine_hung"), ("spin the engine", "engine_hung")],
)
def test_the_line_that_an_engine_dies_of_fails_alone(farm: Any, prompt: str, code: str) -> None:
    worker = farm.work()
    lines = farm.many(12)
    lines[5] = farm.ask("deadly", f"please {prompt}")
    output, errors = farm.results(farm.batch(lines))
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(12) if i != 5]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("deadly", code)]
    assert worker.process.poll() is None
    output, errors = farm.results(farm.batch(farm.many(4)))
    assert (len(output), errors) == (4, [])


def test_an_engine_that_takes_its_time_is_not_killed(farm: Any) -> None:
    worker = farm.work(step_s=0.4, max_num_seqs=4)
    (engine,) = worker.engines()
    output, errors = farm.results(farm.batch(farm.many(12)))
    assert (len(output), errors) == (12, [])
    assert worker.engines() == [engine]
