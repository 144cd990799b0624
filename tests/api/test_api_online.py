"""Requests that are answered on their connection: by a real worker with a stand-in engine, through the `openai` SDK."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from redis import Redis

from .online import MODEL, Online, online

JAVASCRIPT_SDK = "openai@6.49.0"
ROUND_TRIP = Path(__file__).with_name("openai_round_trip.mjs")


@pytest.fixture(scope="session")
def javascript(test_data: Path) -> Path:
    """A folder with the JavaScript SDK in it, kept between runs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node")
    folder = test_data / "javascript" / JAVASCRIPT_SDK
    if not (folder / "node_modules" / "openai" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), JAVASCRIPT_SDK]
        subprocess.run(command, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def shared(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    """A server with one worker for all tests of this module."""
    with Redis.from_url(redis_server) as redis:
        redis.flushall()
        with online(redis, redis_server, tmp_path_factory.mktemp("online")) as running:
            running.farm.work(step_s=0.002)
            yield running


def ask(online: Online, text: str = "hi", **body: Any) -> Any:
    fields: Any = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body
    return online.api.openai.chat.completions.create(**fields)


def texts_of(chunks: Iterable[Any]) -> dict[int, str]:
    """What was said in each choice."""
    texts: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += (choice.text if hasattr(choice, "text") else choice.delta.content) or ""
    return texts


def test_a_chat_is_answered_as_a_job_is(shared: Online) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1}
    posted = shared.api.http.post("/v1/chat/completions", json=body)
    assert (posted.status_code, posted.headers["content-type"]) == (200, "application/json")
    job = shared.api.http.post("/v1/jobs", json={"url": "/v1/chat/completions", "body": body}).json()
    shared.farm.until(lambda: shared.api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "completed")
    polled = shared.api.http.get(f"/v1/jobs/{job['id']}").json()["response"]["body"]
    own = {"id", "created"}
    assert {k: v for k, v in posted.json().items() if k not in own} == {k: v for k, v in polled.items() if k not in own}
    assert posted.json()["choices"][0]["message"]["content"] == "user: hi"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_what_the_wait_for_it_was_made_of(shared: Online, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "abc", "stream": stream}
    started = time.monotonic()
    answer = shared.api.http.post("/v1/completions", json=body)
    took_ms = (time.monotonic() - started) * 1000
    parts = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [name for name, _ in parts] == ["api", "redis", "prompt", "sending", "inbox", "engine", "return", "text"]
    durations = {name: float(duration) for name, duration in parts}
    assert all(duration >= 0 for duration in durations.values())
    assert durations["engine"] >= (2 if stream else 0)
    assert sum(durations.values()) <= took_ms


def test_a_stream_says_the_role_the_text_the_end_and_the_usage(shared: Online) -> None:
    chunks = list(ask(shared, "grüß dich 👍🏽", stream=True, stream_options={"include_usage": True}))
    whole = ask(shared, "grüß dich 👍🏽")
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert texts_of(chunks) == {0: whole.choices[0].message.content}
    assert all("\ufffd" not in (choice.delta.content or "") for chunk in chunks for choice in chunk.choices)
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-2:] == [None, "length"]
    assert len(chunks) > 5, "the text came in one piece"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_a_stream_ends_with_done_and_has_usage_only_if_asked(shared: Online) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with shared.api.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


def test_the_time_to_the_first_event_of_streams_is_counted_by_route(shared: Online) -> None:
    name = 'pressrun:http_first_event_seconds_count{method="POST",route="/v1/completions"}'

    def counted() -> float:
        lines = shared.api.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = counted()
    for streams in (True, False):
        shared.api.http.post("/v1/completions", json={"model": MODEL, "prompt": "hi", "stream": streams})
    shared.api.http.post("/v1/completions", json={"model": MODEL, "prompt": 0, "stream": True})  # Refused.
    assert counted() == before + 1


def test_choices_and_prompts_of_a_completion_come_by_their_index(shared: Online) -> None:
    common: Any = {"model": MODEL, "prompt": ["one", "two"], "n": 2, "max_tokens": 8, "echo": True}
    chunks = list(shared.api.openai.completions.create(**common, stream=True))
    assert texts_of(chunks) == {0: "oneone", 1: "oneone", 2: "twotwo", 3: "twotwo"}
    whole = shared.api.openai.completions.create(**common)
    assert texts_of(chunks) == {choice.index: choice.text for choice in whole.choices}
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_log_probabilities_of_a_stream_are_those_of_the_whole(shared: Online) -> None:
    chunks = list(ask(shared, "süß", logprobs=True, top_logprobs=1, stream=True))
    told = [
        one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content or ()
    ]
    whole = ask(shared, "süß", logprobs=True, top_logprobs=1)
    assert told == whole.choices[0].logprobs.content
    common: Any = {"model": MODEL, "prompt": "abc", "logprobs": 1, "max_tokens": 8}
    pieces = [
        chunk.choices[0].logprobs
        for chunk in shared.api.openai.completions.create(**common, stream=True)
        if chunk.choices[0].logprobs
    ]
    entire = shared.api.openai.completions.create(**common).choices[0].logprobs
    assert entire is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for piece in pieces for one in getattr(piece, name)] == getattr(entire, name)


def test_a_prompt_is_scored_without_an_answer(shared: Online) -> None:
    body: dict[str, Any] = {"model": MODEL, "prompt": ["abc", "d"], "max_tokens": 0, "echo": True, "logprobs": 1}
    scored = shared.api.openai.completions.create(**body)
    assert [(one.text, one.finish_reason) for one in scored.choices] == [("abc", "length"), ("d", "length")]
    assert [one.logprobs.tokens for one in scored.choices if one.logprobs] == [["a", "b", "c"], ["d"]]
    assert [one.logprobs.token_logprobs for one in scored.choices if one.logprobs] == [[None, 0.0, 0.0], [None]]
    assert scored.usage is not None
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (4, 0)
    job = shared.api.http.post("/v1/jobs", json={"url": "/v1/completions", "body": body}).json()
    shared.farm.until(lambda: shared.api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "completed")
    polled = shared.api.http.get(f"/v1/jobs/{job['id']}").json()["response"]["body"]
    assert polled["choices"] == scored.model_dump()["choices"]
    pieces = shared.api.openai.completions.create(model=MODEL, prompt="abc", max_tokens=0, echo=True, stream=True)
    assert [(one.choices[0].text, one.choices[0].finish_reason) for one in pieces] == [("abc", "length")]
    with pytest.raises(BadRequestError) as chat:
        ask(shared, max_tokens=0)
    assert chat.value.param == "max_tokens"


CALLS = """<think>Where is it?</think>So: <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>
<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>"""


def test_thoughts_and_calls_of_a_stream_are_those_of_the_whole(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    styles: Any = {"tool_call_parser": "hermes", "reasoning_parser": "think", "served_model_name": "styled"}
    with (
        Redis.from_url(redis_server) as redis,
        online(redis, redis_server, tmp_path_factory.mktemp("styles"), **styles) as running,
    ):
        running.farm.work(step_s=0.002)
        whole = ask(running, CALLS, model="styled", tools=[tool]).choices[0]
        chunks = list(ask(running, CALLS, model="styled", tools=[tool], stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert texts_of(chunks)[0] == whole.message.content
    thoughts = [getattr(choice.delta, "reasoning_content", None) or "" for choice in choices]
    assert "".join(thoughts) == getattr(whole.message, "reasoning_content", "")
    calls: dict[int, str] = defaultdict(str)
    for call in [call for choice in choices for call in choice.delta.tool_calls or ()]:
        calls[call.index] += (call.function.name or "") + (call.function.arguments or "")
    told = [call.function.name + call.function.arguments for call in whole.message.tool_calls]
    assert list(calls.values()) == told
    assert len(told) == 2
    assert choices[-1].finish_reason == whole.finish_reason


def test_the_asynchronous_client_streams_many_at_once(shared: Online) -> None:
    async def one(sdk: AsyncOpenAI, text: str) -> str:
        messages: Any = [{"role": "user", "content": text}]
        stream = await sdk.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return texts_of([chunk async for chunk in stream])[0]

    async def many() -> list[str]:
        async with AsyncOpenAI(base_url=f"{shared.api.url}/v1", api_key="none", max_retries=0) as sdk:
            return await asyncio.gather(*(one(sdk, f"question {i}") for i in range(20)))

    assert asyncio.run(many()) == [f"user: question {i}" for i in range(20)]


def test_what_cannot_be_served_is_said_before_a_stream_begins(shared: Online) -> None:
    with pytest.raises(BadRequestError) as wrong:
        ask(shared, temperature=3, stream=True)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_value")
    with pytest.raises(BadRequestError) as long:
        ask(shared, "x" * 5000, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError) as lone:
        ask(shared, stream_options={"include_usage": True})
    assert lone.value.param == "stream_options"
    with pytest.raises(BadRequestError) as scored:
        ask(shared, stream=True, extra_body={"prompt_logprobs": 1})
    assert (scored.value.param, scored.value.code) == ("prompt_logprobs", "unsupported_parameter")
    with pytest.raises(NotFoundError) as unknown:
        shared.api.openai.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert unknown.value.code == "model_not_found"
    half = shared.api.http.post("/v1/completions", content=b'{"model": "\\ud800", "prompt": "x"}')
    assert half.status_code == 400


def test_nothing_of_an_answered_request_stays(shared: Online) -> None:
    ask(shared)
    list(ask(shared, stream=True))
    tenant = shared.farm.backend.quotas
    shared.farm.until(lambda: shared.num_known() == 0 and tenant.held("default").num_jobs == 0)
    assert shared.redis.zcard(f"pressrun:live:{{{MODEL}}}:waiting") == 0


def test_a_tenant_that_holds_all_its_tokens_is_told_so(shared: Online) -> None:
    shared.farm.backend.store.tenants.set("default", max_enqueued_tokens=10)
    try:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
        refused = shared.api.http.post("/v1/chat/completions", json=body)
    finally:
        shared.farm.backend.store.tenants.set("default", max_enqueued_tokens=None)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "token_limit_exceeded")


def test_embeddings_are_answered_on_their_connection(shared: Online) -> None:
    embed = shared.api.openai.embeddings.create
    whole = embed(model=MODEL, input=["aab", "b"])
    assert [(one.index, one.object) for one in whole.data] == [(0, "embedding"), (1, "embedding")]
    assert (whole.usage.prompt_tokens, whole.usage.total_tokens) == (4, 4)
    length = math.hypot(*whole.data[0].embedding)
    assert length == pytest.approx(1, abs=1e-6)
    assert whole.data[1].embedding == embed(model=MODEL, input="b", encoding_format="float").data[0].embedding
    with pytest.raises(BadRequestError, match="dimensions"):
        embed(model=MODEL, input="b", dimensions=10**6)


def test_a_prompt_or_a_conversation_is_told_as_tokens_and_back(shared: Online) -> None:
    def post(path: str, **body: Any) -> Any:
        answer = shared.api.http.post(path, json={"model": MODEL} | body)
        return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["error"]["param"])

    text = post("/tokenize", prompt="hé", return_token_strs=True)
    assert text == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": list("hé".encode()),
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    chat = post("/tokenize", messages=[{"role": "user", "content": "hi"}])
    assert (chat["tokens"], chat["token_strs"]) == (list(b"user: hi"), None)
    assert post("/tokenize", prompt="x", add_special_tokens=False)["tokens"] == [120]
    assert post("/detokenize", tokens=chat["tokens"]) == {"prompt": "user: hi"}
    assert post("/detokenize", tokens=[256]) == (400, "tokens")
    assert post("/tokenize", prompt=["a"]) == (400, "prompt")
    assert post("/tokenize", prompt="a", colour="red") == (400, "colour")
    assert post("/tokenize", prompt="a", model="nobody") == (404, "model")


def test_the_javascript_sdk_gets_a_whole_answer_a_stream_and_an_error(shared: Online, javascript: Path) -> None:
    command = ["node", str(ROUND_TRIP), str(javascript), f"{shared.api.url}/v1", MODEL]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    got = json.loads(ran.stdout)
    assert (got["whole"], got["streamed"]) == ("user: grüß dich", "user: grüß dich")
    assert got["usage"]["completion_tokens"] == len("user: grüß dich".encode())
    assert got["error"] == {"status": 400, "param": "temperature", "code": "invalid_value"}
