"""Online requests in Redis: in line, taken and answered, each in one round trip."""

from __future__ import annotations

import threading
import time

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.live import Call, Live
from pressrun.jobs.trips import Trip

MODEL, WORKER, API = "m", "w", "api_1"


@pytest.fixture
def live(backend: Backend) -> Live:
    """A worker takes requests of the model."""
    backend.live.beat(MODEL, WORKER, taking=True)
    backend.live.live_on(API)
    return backend.live


def call(name: str) -> Call:
    return Call(id=name, attempt=1, api=API, url="/v1/completions", model=MODEL, body={"prompt": name})


def ask(live: Live, name: str) -> str:
    return live.ask(call(name), most_waiting=10, life_s=60)


def test_who_waits_gets_what_is_asked_meanwhile(live: Live) -> None:
    asking = threading.Timer(0.2, ask, (live, "one"))
    asking.start()
    started = time.monotonic()
    assert live.wait_and_take(MODEL, WORKER, 20.0, 1, 8) == (None, [call("one")])
    assert time.monotonic() - started < 10
    asking.join()


def test_what_was_taken_is_given_again_under_the_same_number(live: Live) -> None:
    ask(live, "one")
    assert live.wait_and_take(MODEL, WORKER, 0.01, 7, 8) == (None, [call("one")])
    assert live.wait_and_take(MODEL, WORKER, 0.01, 7, 8) == (None, [call("one")])
    assert live.take(MODEL, WORKER, 8, 8) == []


def test_a_request_to_stop_is_told_though_a_full_redis_lets_none_be_taken(live: Live) -> None:
    live.stop(MODEL, WORKER, "one 1")
    live.redis.config_set("maxmemory", "1")
    try:
        assert live.wait_and_take(MODEL, WORKER, 20.0, 1, 8) == ("one 1", [])
    finally:
        live.redis.config_set("maxmemory", "0")


def test_a_redis_that_has_forgotten_the_scripts_is_told_them_and_nothing_is_lost(live: Live) -> None:
    live.stop(MODEL, WORKER, "two 1")
    live.redis.script_flush()
    assert ask(live, "one") == "ok"
    live.redis.script_flush()
    assert live.wait_and_take(MODEL, WORKER, 20.0, 1, 8) == ("two 1", [call("one")])
    live.redis.script_flush()
    assert live.answer([(API, b"{}"), ("api_dead", b"{}")]) == [True, False]


def test_no_script_costs_a_question_whether_redis_knows_it(live: Live) -> None:
    for number in (1, 2):
        live.redis.config_resetstat()  # The first time, a server may have to be told them.
        ask(live, "one")
        live.take(MODEL, WORKER, number, 8)
        live.answer([(API, b"{}")])
    stats = live.redis.info("commandstats")
    assert not [name for name in stats if name.startswith("cmdstat_script")]
    assert stats["cmdstat_evalsha"]["calls"] == 3


def test_the_first_error_of_a_trip_is_raised_once_all_of_it_is_done(backend: Backend) -> None:
    backend.redis.set("text", "x")
    trip = Trip(backend.redis)
    trip.pipe.lpush("text", "y")
    trip.pipe.set("other", "z")
    with pytest.raises(Exception, match="WRONGTYPE"):
        trip.go()
    assert backend.redis.get("other") == b"z"
