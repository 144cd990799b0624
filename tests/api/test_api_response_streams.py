"""`/v1/responses` as a stream: by a real worker with a stand-in engine, through both clients of the `openai` SDK."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from redis import Redis

from .online import MODEL, Online, online

STYLES: Any = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
WRITTEN = """<think>Where is it?</think>So: <tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>"""


@pytest.fixture(scope="module")
def shared(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    """A server with one worker for all tests of this module."""
    with Redis.from_url(redis_server) as redis:
        redis.flushall()
        with online(redis, redis_server, tmp_path_factory.mktemp("responses"), **STYLES) as running:
            running.farm.work(step_s=0.002)
            yield running


def ask(online: Online, text: str, **fields: Any) -> Any:
    return online.api.openai.responses.create(model=MODEL, input=text, **fields)


def delta_of(events: list[Any], kind: str) -> str:
    return "".join(event.delta for event in events if event.type == f"response.{kind}.delta")


def test_a_stream_says_what_the_whole_response_says(shared: Online) -> None:
    whole = ask(shared, WRITTEN, tools=[TOOL])
    events = list(ask(shared, WRITTEN, tools=[TOOL], stream=True))
    last = events[-1].response
    assert (events[0].type, events[-1].type, last.status) == ("response.created", "response.incomplete", "incomplete")
    assert delta_of(events, "output_text") == last.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(events) > 20, "the text came in one piece"
    (call,) = [item for item in last.output if item.type == "function_call"]
    assert delta_of(events, "function_call_arguments") == call.arguments == '{"city": "Köln"}'
    assert last.usage == whole.usage


def test_the_sdk_gathers_a_stream_into_a_response(shared: Online) -> None:
    with shared.api.openai.responses.stream(model=MODEL, input="grüß dich 👍🏽") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == "user: grüß dich 👍🏽"
    assert not any("\ufffd" in snapshot for snapshot in snapshots)


def test_the_asynchronous_client_reads_many_at_once(shared: Online) -> None:
    async def one(sdk: AsyncOpenAI, text: str) -> str:
        async with sdk.responses.stream(model=MODEL, input=text) as stream:
            return delta_of([event async for event in stream], "output_text")

    async def created(sdk: AsyncOpenAI, text: str) -> str:
        stream = await sdk.responses.create(model=MODEL, input=text, stream=True)
        return delta_of([event async for event in stream], "output_text")

    async def many() -> list[str]:
        async with AsyncOpenAI(base_url=f"{shared.api.url}/v1", api_key="none", max_retries=0) as sdk:
            return await asyncio.gather(*((one if i % 2 else created)(sdk, f"question {i}") for i in range(12)))

    assert asyncio.run(many()) == [f"user: question {i}" for i in range(12)]


def test_what_cannot_be_served_is_said_before_a_stream_begins(shared: Online) -> None:
    for fields, param in (
        ({"temperature": 3}, "temperature"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ):
        with pytest.raises(BadRequestError) as wrong:
            ask(shared, "hi", stream=True, **fields)
        assert wrong.value.param == param
    with pytest.raises(BadRequestError) as long:
        ask(shared, "x" * 5000, stream=True)
    assert (long.value.param, long.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(NotFoundError):
        shared.api.openai.responses.create(model="nobody", input="hi", stream=True)


def test_a_client_that_leaves_stops_its_response(shared: Online) -> None:
    leaver = ask(shared, "x" * 3000, stream=True)
    next(iter(leaver))
    leaver.close()
    shared.farm.until(lambda: shared.num_known() == 0, timeout_s=3)


def test_a_response_whose_worker_dies_ends_in_error_events(shared: Online) -> None:
    dying = shared.farm.work(model="dying", step_s=0.05)
    events = iter(shared.api.openai.responses.create(model="dying", input="x" * 2000, stream=True))
    assert next(events).type == "response.created"
    dying.send(signal.SIGKILL)
    since = time.monotonic()
    *_, error, last = list(events)
    assert time.monotonic() - since < 6
    assert (error.type, error.code, error.param) == ("error", "worker_lost", None)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.output[0].content[0].text.startswith("u")
