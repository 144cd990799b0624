"""Results as they come: pages, waiting, events, and that those who wait cost the others nothing."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from openai.types import Batch

from pressrun.api import results as results_module
from pressrun.api.waiting import Waiting
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import StoreUnavailable
from pressrun.jobs.lines import answered, requests_of
from pressrun.jobs.records import Line, ShardCommit, Usage
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.store import Store

from .conftest import CHAT, Api, ServeApi, jsonl, request_line, seal_results


def running(api: Api, num_lines: int) -> Batch:
    data = jsonl(*(request_line(f"c{i:04}") for i in range(num_lines)))
    file = api.openai.files.create(file=("in.jsonl", data), purpose="batch")
    batch = api.openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    validate_batch(api.backend, batch.id)
    return batch


def finish(backend: Backend, batch: Batch) -> None:
    seal_results(backend, batch.id, lambda line: answered(line, {"asked": line.index}, Usage()))


def names(lines: Iterator[str] | list[str]) -> list[str]:
    return [json.loads(line)["custom_id"] for line in lines]


def events(stream: httpx.Response) -> Iterator[dict[str, str]]:
    """What an EventSource makes of a stream; comments are left out."""
    event: dict[str, str] = {}
    for line in stream.iter_lines():
        if line.startswith(":"):
            continue
        if not line:
            if event:
                yield event
            event = {}
            continue
        name, _, value = line.partition(": ")
        event[name] = value


def test_a_client_that_pages_gets_every_line_once(api: Api) -> None:
    batch = running(api, 150)  # Three shards.
    empty = api.http.get(f"/v1/batches/{batch.id}/results")
    assert (empty.status_code, empty.content) == (200, b"")
    assert empty.headers["Pressrun-After-Line"] == "0"
    assert (empty.headers["Pressrun-Has-More"], empty.headers["Pressrun-Status"]) == ("true", "in_progress")
    finish(api.backend, batch)
    seen: list[str] = []
    has_more = "true"
    while has_more == "true":
        page = api.http.get(f"/v1/batches/{batch.id}/results", params={"after_line": len(seen), "limit": 40})
        assert page.headers["Content-Type"] == "application/jsonl"
        seen += page.text.splitlines()
        assert page.headers["Pressrun-After-Line"] == str(len(seen))
        has_more = page.headers["Pressrun-Has-More"]
    assert names(seen) == [f"c{i:04}" for i in range(150)]
    output = api.openai.batches.retrieve(batch.id).output_file_id
    assert api.openai.files.content(str(output)).text.splitlines() == seen


def test_results_can_be_had_as_a_table(api: Api) -> None:
    batch = running(api, 3)
    finish(api.backend, batch)
    output = api.openai.batches.retrieve(batch.id).output_file_id
    answer = api.http.get(f"/v1/files/{output}/content", params={"format": "parquet"})
    assert answer.headers["Content-Disposition"].endswith(f"{batch.id}_output.parquet")
    assert pq.read_table(io.BytesIO(answer.content)).column("custom_id").to_pylist() == ["c0000", "c0001", "c0002"]


def test_a_page_waits_for_its_first_line_and_no_longer(api: Api) -> None:
    batch = running(api, 3)
    started = time.monotonic()
    page = api.http.get(f"/v1/batches/{batch.id}/results", params={"wait": 1})
    assert (page.text, time.monotonic() - started >= 1) == ("", True)
    timer = threading.Timer(0.5, finish, [api.backend, batch])
    timer.start()
    page = api.http.get(f"/v1/batches/{batch.id}/results", params={"wait": 30}, timeout=40)
    assert len(page.text.splitlines()) == 3
    assert 1.5 <= time.monotonic() - started < 10
    timer.join()


def test_a_stream_gives_each_line_with_its_cursor_and_says_when_it_is_done(api: Api) -> None:
    batch = running(api, 100)
    url, accept = f"/v1/batches/{batch.id}/results", {"Accept": "text/event-stream"}
    timer = threading.Timer(0.3, finish, [api.backend, batch])
    timer.start()
    with api.http.stream("GET", url, headers=accept, timeout=30) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        found = events(stream)
        first = [next(found) for _ in range(30)]
    assert [event["id"] for event in first] == [str(i) for i in range(1, 31)]
    timer.join()
    with api.http.stream("GET", url, headers=accept | {"Last-Event-ID": first[-1]["id"]}, timeout=30) as stream:
        *rest, done = events(stream)
    assert names([event["data"] for event in first + rest]) == [f"c{i:04}" for i in range(100)]
    assert done == {"id": "100", "event": "done", "data": json.dumps({"batch_id": batch.id, "lines": 100})}


def test_a_stream_without_news_is_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "HEARTBEAT_S", 0.1)
    batch = running(api, 1)
    with api.http.stream(
        "GET", f"/v1/batches/{batch.id}/results", headers={"Accept": "text/event-stream"}, timeout=10
    ) as stream:
        lines = stream.iter_lines()
        assert [next(lines), next(lines), next(lines)] == [": still running", "", ": still running"]


@pytest.mark.parametrize(
    ("params", "headers", "param"),
    [
        ({"after_line": -1}, {}, "after_line"),
        ({"after_line": 4}, {}, "after_line"),
        ({"limit": 0}, {}, "limit"),
        ({"limit": 10_001}, {}, "limit"),
        ({"wait": 61}, {}, "wait"),
        ({"order": "finished"}, {}, "order"),
        ({"limit": 5}, {"Accept": "text/event-stream"}, "limit"),
        ({"wait": 5}, {"Accept": "text/event-stream"}, "wait"),
        ({}, {"Accept": "text/event-stream", "Last-Event-ID": "x"}, "Last-Event-ID"),
        ({}, {"Accept": "text/event-stream", "Last-Event-ID": "9"}, "after_line"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_name(
    api: Api, params: dict[str, Any], headers: dict[str, str], param: str
) -> None:
    batch = running(api, 3)
    answer = api.http.get(f"/v1/batches/{batch.id}/results", params=params, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_results_of_an_unknown_batch_are_404(api: Api) -> None:
    for accept in ("*/*", "text/event-stream"):
        answer = api.http.get("/v1/batches/batch_none/results", headers={"Accept": accept})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_two_hundred_who_wait_do_not_keep_others_waiting(serve: ServeApi) -> None:
    api = serve()
    batch = running(api, 3)
    url = f"{api.url}/v1/batches/{batch.id}/results"
    limits = httpx.Limits(max_connections=None)

    async def poll_all() -> list[int]:
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            answers = await asyncio.gather(*(client.get(url, params={"wait": 30}) for _ in range(200)))
        return [len(answer.text.splitlines()) for answer in answers]

    with ThreadPoolExecutor(1) as pool:
        polls = pool.submit(asyncio.run, poll_all())
        time.sleep(1.5)
        waits = []
        for _ in range(20):
            started = time.monotonic()
            assert api.http.get("/v1/files").status_code == 200
            waits.append(time.monotonic() - started)
        assert not polls.done()
        finish(api.backend, batch)
        assert polls.result(timeout=30) == [3] * 200
    assert sorted(waits)[10] < 0.1


def test_lines_that_redis_may_still_lose_are_not_shown(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Store) -> None:
        raise StoreUnavailable("the disk is full")

    batch = running(api, 200)
    seal_results_of_first(api.backend, batch)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "make_durable", refuse)
        assert api.http.get(f"/v1/batches/{batch.id}/results").status_code == 503
    assert len(api.http.get(f"/v1/batches/{batch.id}/results").text.splitlines()) == 64


def test_lines_read_from_a_redis_that_has_restarted_since_are_read_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = running(api, 200)
    seal_results_of_first(api.backend, batch)
    runs = iter(["before", "after", "after", "after"])
    monkeypatch.setattr(Store, "server_run", lambda _: next(runs))
    page = asyncio.run(Waiting(api.backend).page(batch.id, 0, 10, "default"))
    assert (len(page.lines), page.server_run) == (10, "after")
    assert list(runs) == []


def seal_results_of_first(backend: Backend, batch: Batch) -> None:
    """Only the first shard has run."""
    claim = backend.shards.claim(batch.id, 0, "me", lease_s=30)
    assert claim is not None
    lines: list[Line] = list(requests_of(backend.blobs, claim.batch, claim.shard))
    results = tuple(answered(line, {}, Usage()) for line in lines)
    backend.shards.commit([ShardCommit(batch_id=batch.id, shard=0, owner="me", num_lines=len(lines), results=results)])
    seal_shard(backend, claim)
