"""What the chaos takes for a stall: only time in which something could have been finished."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

from pressrun.bench.chaos_service import free_port
from pressrun.bench.chaos_watch import Watch

SPAN_S = 1.0


@pytest.fixture
def redis(redis_server: str) -> Iterator[Redis]:
    with Redis.from_url(redis_server) as client:
        client.flushdb()
        yield client
        client.flushdb()


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to who does not sign."""

    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def refusing_s3() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def owe_lines(redis: Redis, done: int) -> None:
    redis.zadd("pressrun:batches", {"b": 1})
    redis.hset(
        "pressrun:{b}", mapping={"status": "in_progress", "total": 4, "completed": done, "failed": 0, "unrun": 0}
    )


def share_that_counts(redis: Redis, s3_port: int | None) -> float:
    watch = Watch(redis, s3_port)
    try:
        since = time.monotonic()
        time.sleep(SPAN_S)
        return watch.waited_s(since, time.monotonic()) / SPAN_S
    finally:
        watch.close()


def test_while_lines_are_owed_time_counts(redis: Redis) -> None:
    owe_lines(redis, done=1)
    assert share_that_counts(redis, None) > 0.9
    with refusing_s3() as port:
        assert share_that_counts(redis, port) > 0.5


def test_while_nothing_is_owed_it_does_not(redis: Redis) -> None:
    assert share_that_counts(redis, None) < 0.5
    owe_lines(redis, done=4)
    assert share_that_counts(redis, None) < 0.5


def test_while_s3_starts_again_it_does_not_either(redis: Redis) -> None:
    owe_lines(redis, done=1)
    assert share_that_counts(redis, free_port()) < 0.5


def test_overlapping_reasons_are_taken_out_once(redis: Redis) -> None:
    watch = Watch(redis, None)
    watch.close()
    watch._idle.add(1.0, 3.0)
    watch._s3_away.add(2.0, 4.0)
    watch._s3_away.add(9.0, 20.0)
    assert watch.waited_s(0.0, 10.0) == pytest.approx(6.0)
