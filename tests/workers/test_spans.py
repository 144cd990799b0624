"""Traces through the whole service: a real server, real workers, and a collector that reads what they send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from ..api.conftest import served
from ..collector import Collector, Got, collecting
from .conftest import CHAT, MODEL, Farm, farm_on

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


class Traced:
    """A farm whose server and workers tell a collector."""

    def __init__(self, farm: Farm, collector: Collector, http: httpx.Client) -> None:
        self.farm, self.collector, self.http = farm, collector, http

    def batch(self, lines: list[dict[str, Any]], **headers: str) -> str:
        raw = "\n".join(map(json.dumps, lines)).encode()
        file = self.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", raw)}).json()
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        return self.http.post("/v1/batches", json=body, headers=headers).json()["id"]

    def told(self, name: str, number: int) -> list[Got]:
        """The spans of a name, once there are so many."""
        self.farm.until(lambda: len(self.collector.spans(name)) >= number)
        return self.collector.spans(name)


@pytest.fixture
def make_traced(redis: Redis, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    farms: list[Farm] = []
    with collecting() as collector:
        contexts, clients = [], []

        def make(**changes: Any) -> Traced:
            farm = farm_on(redis, redis_server, tmp_path, otlp_endpoint=collector.url, **changes)
            farms.append(farm)
            context = served(farm.backend.settings)
            url = context.__enter__()
            contexts.append(context)
            farm.work()
            clients.append(httpx.Client(base_url=url))
            return Traced(farm, collector, clients[-1])

        yield make
        for client in clients:
            client.close()
        for farm in farms:
            for worker in farm.workers:
                worker.end()
        for context in contexts:
            context.__exit__(None, None, None)
        for farm in farms:
            farm.backend.close()


def test_a_job_is_one_trace_from_its_caller_to_the_engine_and_back(make_traced: Any) -> None:
    traced = make_traced()
    body = traced.farm.ask("x", "hello", temperature=0.5)["body"]
    job = traced.http.post("/v1/jobs", json={"url": CHAT, "body": body}, headers=HEADERS).json()
    (phase, *_) = traced.told("engine.decode", 1)
    (line,) = traced.told("llm_request", 1)
    (of_job,) = traced.told("job", 1)
    (request,) = traced.told("POST /v1/jobs", 1)
    assert {one.trace_id for one in (phase, line, of_job, request)} == {TRACE}
    chain = [phase.parent_id, line.parent_id, of_job.parent_id, request.parent_id]
    assert chain == [line.span_id, of_job.span_id, request.span_id, CALLER]
    assert request.attributes["http.response.status_code"] == 202
    assert request.start_ns <= of_job.start_ns <= line.start_ns <= line.end_ns
    assert of_job.attributes["pressrun.job.id"] == job["id"]
    asked = {name: line.attributes[f"gen_ai.{name}"] for name in ("request.max_tokens", "request.temperature")}
    assert asked == {"request.max_tokens": 8, "request.temperature": 0.5}
    assert line.attributes["gen_ai.usage.completion_tokens"] == 8
    assert 0 <= line.attributes["gen_ai.latency.time_to_first_token"] <= line.attributes["gen_ai.latency.e2e"]
    assert {one.name for one in traced.collector.spans() if one.parent_id == line.span_id} == {
        "engine.queue",
        "engine.prefill",
        "engine.decode",
    }


@pytest.mark.parametrize("streams", [False, True])
def test_an_online_request_is_one_trace_from_its_caller_to_the_engine(make_traced: Any, streams: bool) -> None:
    traced = make_traced()
    traced.farm.until(lambda: traced.http.get("/v1/models").json()["data"])
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 3, "stream": streams}
    assert traced.http.post("/v1/completions", json=body, headers=HEADERS).status_code == 200
    (phase, *_) = traced.told("engine.decode", 1)
    (asked,) = traced.told("llm_request", 1)
    (request,) = traced.told("POST /v1/completions", 1)
    assert {one.trace_id for one in (phase, asked, request)} == {TRACE}
    assert [phase.parent_id, asked.parent_id, request.parent_id] == [asked.span_id, request.span_id, CALLER]
    assert asked.attributes["gen_ai.usage.completion_tokens"] == 3
    assert asked.attributes["pressrun.attempt"] == 1
    assert request.start_ns <= asked.start_ns <= phase.start_ns


def test_an_online_request_that_nobody_samples_is_not_told(make_traced: Any) -> None:
    traced = make_traced()
    traced.farm.until(lambda: traced.http.get("/v1/models").json()["data"])
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 3}
    for flags in ("00", "01"):
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}
        assert traced.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert len(traced.told("llm_request", 1)) == 1


def test_a_batch_has_one_span_and_none_for_its_lines(make_traced: Any) -> None:
    traced = make_traced()
    traced.batch(traced.farm.many(20), **HEADERS)
    (batch,) = traced.told("batch", 1)
    (request,) = traced.told("POST /v1/batches", 1)
    assert (batch.trace_id, batch.parent_id) == (TRACE, request.span_id)
    assert batch.attributes["pressrun.lines.completed"] == 20
    assert batch.attributes["gen_ai.request.model"] == MODEL
    assert {"in_progress", "finalizing"} <= set(batch.events)
    assert traced.collector.spans("llm_request") == []


def test_some_lines_of_a_batch_are_told_and_always_the_same(make_traced: Any) -> None:
    traced = make_traced(traced_lines=0.5)
    traced.batch(traced.farm.many(60), **HEADERS)
    (batch,) = traced.told("batch", 1)
    spans = traced.told("llm_request", 15)
    assert len(spans) < 45
    assert {span.parent_id for span in spans} == {batch.span_id}
    assert len({span.attributes["pressrun.custom_id"] for span in spans}) == len(spans)


def test_a_span_says_that_a_line_failed_and_nothing_of_what_it_asked(make_traced: Any) -> None:
    traced = make_traced()
    body = traced.farm.ask("x", "a secret that will kill the engine")["body"]
    traced.http.post("/v1/jobs", json={"url": CHAT, "body": body}, headers=HEADERS)
    (line,) = traced.told("llm_request", 1)
    assert (line.failed, line.error) == (True, "engine_crashed")
    assert b"secret" not in b"".join(request.body for request in traced.collector.receiver.got)


def test_a_caller_that_is_not_traced_gets_no_spans_and_one_without_a_trace_begins_one(make_traced: Any) -> None:
    traced = make_traced()
    traced.http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    traced.http.get("/health")
    traced.http.get("/v1/files/file-none")
    (span,) = traced.told("GET /v1/files/{file_id}", 1)
    assert (span.parent_id, span.trace_id == TRACE, span.failed) == ("", False, False)
    assert {one.name for one in traced.collector.spans()} == {"GET /v1/files/{file_id}"}


def test_a_collector_that_is_away_costs_nobody_time(make_traced: Any, caplog: pytest.LogCaptureFixture) -> None:
    traced = make_traced()
    traced.collector.receiver.answers = [500]
    traced.batch(traced.farm.many(8), **HEADERS)
    traced.farm.until(lambda: traced.http.get("/v1/batches").json()["data"][0]["status"] == "completed")
