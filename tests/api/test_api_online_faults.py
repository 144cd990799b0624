"""Online requests while clients leave, workers and engines die, and too much is asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from openai import APIError, InternalServerError, RateLimitError
from redis import Redis

from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.live import BEAT_S, Call

from .online import MODEL, Online, online

Start = Callable[..., Online]
LONG = "x" * 2000  # Of which a slow stand-in gives a token a step.


@pytest.fixture
def start(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as running:
        yield lambda **changes: running.enter_context(online(redis, redis_server, tmp_path, **changes))


def post(online: Online, text: str = "hi", **body: Any) -> httpx.Response:
    fields = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body
    return online.api.http.post("/v1/chat/completions", json=fields, timeout=30)


def stream(online: Online, text: str = LONG, **body: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return online.api.openai.chat.completions.create(model=MODEL, messages=messages, stream=True, **body)


class Later:
    """A request that is answered some time later."""

    def __init__(self, online: Online, text: str = "hi", **body: Any) -> None:
        self.response: httpx.Response | None = None
        self._thread = Thread(target=self._run, args=(online, text), kwargs=body)
        self._thread.start()

    def _run(self, online: Online, text: str, **body: Any) -> None:
        with httpx.Client(base_url=online.api.url, timeout=30) as http:
            fields = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body
            self.response = http.post("/v1/chat/completions", json=fields)

    def wait(self) -> httpx.Response:
        self._thread.join(timeout=40)
        assert self.response is not None
        return self.response


def is_taken(online: Online) -> bool:
    keys = online.redis.keys(f"pressrun:live:{{{MODEL}}}:request:*")
    return bool(keys) and all(online.redis.hexists(key, "worker") for key in keys)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_stops_its_request_in_the_engine(start: Start, streams: bool) -> None:
    running = start()
    running.farm.work(step_s=0.05, max_num_seqs=1)  # One at a time: a request that goes on holds up the next.
    if streams:
        leaver = stream(running)
        next(iter(leaver))
        leaver.close()
    else:
        fields = {"model": MODEL, "prompt": ["x"] * 1000, "max_tokens": 1}  # A step each.
        with pytest.raises(httpx.ReadTimeout):
            running.api.http.post("/v1/completions", json=fields, timeout=0.5)
    since = time.monotonic()
    assert post(running).status_code == 200
    assert time.monotonic() - since < 5
    running.farm.until(lambda: running.num_known() == 0)


@pytest.mark.parametrize("streams", [True, False])
def test_what_was_asked_by_an_api_process_that_died_is_stopped(start: Start, streams: bool) -> None:
    running = start()
    running.farm.work(step_s=0.05, max_num_seqs=1)
    body = {"model": MODEL, "prompt": ["xx"] * 1000, "max_tokens": 2, "stream": streams}
    orphan = Call(id="live_x", attempt=1, api="api_dead", url="/v1/completions", model=MODEL, body=body)
    assert running.farm.backend.live.ask(orphan, most_waiting=10, life_s=60) == "ok"
    running.farm.until(lambda: is_taken(running))
    since = time.monotonic()
    assert post(running).status_code == 200
    assert time.monotonic() - since < 5


def test_a_request_that_was_not_answered_yet_survives_its_worker(start: Start) -> None:
    running = start()
    first = running.farm.work(step_s=60)
    later = Later(running)
    running.farm.until(lambda: is_taken(running))
    running.farm.work()
    first.send(signal.SIGKILL)
    since = time.monotonic()
    assert later.wait().json()["choices"][0]["message"]["content"] == "user: hi"
    assert time.monotonic() - since < 6


def test_a_stream_whose_worker_dies_ends_in_an_error_event(start: Start) -> None:
    running = start()
    worker = running.farm.work(step_s=0.05)
    chunks = iter(stream(running))
    next(chunks)
    worker.send(signal.SIGKILL)
    since = time.monotonic()
    with pytest.raises(APIError, match="worker was lost"):
        list(chunks)
    assert time.monotonic() - since < 6
    assert post(running).status_code == 503


def test_a_stopped_worker_that_wakes_adds_nothing_to_an_answer(start: Start) -> None:
    running = start()
    first, second = running.farm.work(step_s=5), running.farm.work(step_s=0.1)
    second.send(signal.SIGSTOP)
    text = "0123456789" * 8
    pieces: list[str] = []

    def read() -> None:
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream(running, text))

    reader = Thread(target=read)
    reader.start()
    running.farm.until(lambda: is_taken(running))
    first.send(signal.SIGSTOP)
    second.send(signal.SIGCONT)
    running.farm.until(lambda: pieces)  # By the second worker; the first's engine goes on.
    first.send(signal.SIGCONT)
    reader.join(timeout=30)
    assert "".join(pieces) == f"user: {text}"
    running.farm.until(lambda: running.num_known() == 0)


@pytest.mark.parametrize("streams", [True, False])
def test_a_request_that_kills_the_engine_fails_and_harms_no_other(start: Start, streams: bool) -> None:
    running = start()
    running.farm.work(step_s=0.02)
    others = [Later(running, f"other {i}") for i in range(4)]
    if streams:
        with pytest.raises(APIError, match="engine crashed"):
            list(stream(running, "kill the engine"))
    else:
        failed = post(running, "kill the engine")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_crashed")
    texts = [other.wait().json()["choices"][0]["message"]["content"] for other in others]
    assert texts == [f"user: other {i}" for i in range(4)]


def test_a_worker_that_is_told_to_stop_finishes_what_streams_and_takes_no_more(start: Start) -> None:
    running = start()
    worker = running.farm.work(step_s=0.05)
    chunks = iter(stream(running, "y" * 40))
    next(chunks)
    worker.send(signal.SIGTERM)
    running.farm.until(lambda: post(running).status_code == 503)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "user: " + "y" * 40
    assert worker.wait() == 0


def test_what_a_stopping_worker_cannot_finish_goes_to_another(start: Start) -> None:
    running = start()
    first = running.farm.work(step_s=60, grace_s=0.5)
    later = Later(running)
    running.farm.until(lambda: is_taken(running))
    running.farm.work()
    first.send(signal.SIGTERM)
    assert later.wait().status_code == 200


def test_a_request_may_not_take_for_ever(start: Start) -> None:
    running = start(online_timeout_s=1.0)
    running.farm.work(step_s=0.05, max_num_seqs=1)
    with pytest.raises(APIError, match="PRESSRUN_ONLINE_TIMEOUT_S"):
        list(stream(running))
    late = running.api.http.post(
        "/v1/completions", json={"model": MODEL, "prompt": ["x"] * 1000, "max_tokens": 1}, timeout=30
    )
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
    running.farm.until(lambda: running.num_known() == 0)
    assert post(running).status_code == 200


def test_too_many_are_told_to_come_again(start: Start) -> None:
    running = start(max_waiting_requests=2)
    assert post(running).status_code == 404  # Nobody ever served it.
    worker = running.farm.work()
    worker.send(signal.SIGSTOP)
    time.sleep(BEAT_S)  # Until then what comes is taken for it, as if it had been stopped a little later.
    waiting = [Later(running) for _ in range(2)]
    running.farm.until(lambda: running.redis.zcard(f"pressrun:live:{{{MODEL}}}:waiting") == 2)
    with pytest.raises(RateLimitError) as many:
        stream(running)
    assert many.value.response.headers["retry-after"] == "1"
    running.farm.until(lambda: post(running).status_code == 503)  # It is silent: nobody serves the model.
    with pytest.raises(InternalServerError) as away:
        stream(running)
    assert (away.value.code, away.value.response.headers["retry-after"]) == ("model_unavailable", "2")
    assert [one.wait().status_code for one in waiting] == [503, 503]
    worker.send(signal.SIGCONT)
    running.farm.until(lambda: post(running).status_code == 200)


def test_a_slow_client_gets_all_of_its_stream_and_delays_nobody(start: Start) -> None:
    running = start()
    running.farm.work(step_s=0.001)
    slow = iter(stream(running, LONG))
    next(slow)
    time.sleep(1.0)
    assert post(running).status_code == 200
    assert "".join(chunk.choices[0].delta.content or "" for chunk in slow) == f"user: {LONG}"


@pytest.mark.parametrize("keep_alive_s", [0.1, 0.0])
def test_a_stream_that_falls_silent_is_sent_comments(start: Start, keep_alive_s: float) -> None:
    running = start(stream_keep_alive_s=keep_alive_s)
    running.farm.work(step_s=0.5)
    body = {"model": MODEL, "prompt": "abc", "stream": True}
    with running.api.http.stream("POST", "/v1/completions", json=body, timeout=30) as answer:
        sent = answer.read()
    assert (sent.count(b": keep-alive\n\n") >= 4) is (keep_alive_s > 0)
    assert sent.count(b"data: ") == 4  # None of the tokens and of the end is lost to a comment.
    chunks = running.api.openai.completions.create(**body)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abc"


def test_requests_go_to_a_worker_of_their_model(start: Start) -> None:
    running = start()
    running.farm.work()
    other = running.farm.work(model="other", step_s=0.05)

    def ask(model: str) -> httpx.Response:
        return running.api.http.post("/v1/completions", json={"model": model, "prompt": model, "max_tokens": 8})

    assert {model.id for model in running.api.openai.models.list()} == {MODEL, "other"}
    for model in (MODEL, "other") * 5:
        answer = ask(model)
        assert (answer.json()["model"], answer.json()["choices"][0]["text"]) == (model, model)
    other.send(signal.SIGKILL)
    running.farm.until(lambda: ask("other").status_code == 503)
    assert ask(MODEL).status_code == 200


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[tuple[EmbeddedValkey, Online]]:
    """A server on a Valkey of its own."""
    with (
        EmbeddedValkey(tmp_path) as valkey,
        Redis.from_url(valkey.url) as redis,
        online(redis, valkey.url, tmp_path) as running,
    ):
        yield valkey, running


def test_a_restart_of_redis_costs_a_stream_only_time(mortal: tuple[EmbeddedValkey, Online]) -> None:
    valkey, running = mortal
    running.farm.work(step_s=0.05)
    chunks = iter(stream(running, "z" * 100))
    text = next(chunks).choices[0].delta.content
    os.kill(int((valkey.folder / "valkey.pid").read_text()), signal.SIGKILL)
    time.sleep(2.5)  # Longer than a worker may be silent.
    valkey.start()
    text += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "user: " + "z" * 100
    assert post(running).status_code == 200


def test_who_waits_does_not_wait_while_the_answers_of_a_batch_are_written(start: Start) -> None:
    online = start()
    online.farm.work(max_num_seqs=1000, decode_s=0.01)
    batch = online.farm.batch(online.farm.many(600))  # 6 s of writing, of 128 answers and more at once.
    online.farm.until(lambda: online.farm.num_done(batch) > 0)
    waits = []
    for _ in range(3):
        started = time.monotonic()
        assert post(online, max_tokens=1).status_code == 200
        waits.append(time.monotonic() - started)
    assert online.farm.num_done(batch) < 600, "the batch was over too soon to say anything"
    assert max(waits) < 1
