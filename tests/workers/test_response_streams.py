"""A streamed response: from tokens in a worker to the events that a client is sent, and what the SDK makes of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from pressrun.api.chunks import Rows
from pressrun.api.response_events import ResponseEvents
from pressrun.engine.request import ModelInfo, Output
from pressrun.jobs.errors import UserError
from pressrun.jobs.records import RESPONSES, Line
from pressrun.jobs.response_requests import parse_responses
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.parsing.style import TAGS, Style
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import answer
from pressrun.workers.streaming import AnswerStream

TOKENIZER = ByteTokenizer()
STYLE = Style(tools="hermes", thoughts=TAGS["think"], markers={}, template=ByteTokenizer.chat_template)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
BODY = {"model": "m", "input": "hi", "tools": [TOOL], "stream": True}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WRITTEN = st.lists(st.sampled_from(["<think>", "hm ", "</think>", "So: ", CALL, "\n", "<tool_call>{", "ü"]), max_size=7)


def ready() -> Prepared:
    line = Line(index=0, custom_id="a", url=RESPONSES, body=BODY)
    result = Prompts(TOKENIZER, ModelInfo(max_model_len=2000, vocab_size=256), "m", STYLE).prepare_online(line)
    assert isinstance(result, Prepared), result
    return result


def read(sent: bytes) -> list[dict[str, Any]]:
    """The events, each under its own name and valid for the SDK."""
    found = []
    for one in sent.decode().split("\n\n")[:-1]:
        name, data = cast(re.Match[str], re.fullmatch(r"event: (.+)\ndata: (.+)", one)).groups()
        found.append(json.loads(data))
        assert found[-1]["type"] == name
        assert EVENT.validate_python(found[-1], strict=True).type == name
    return found


def told(cuts: list[list[int]], reason: Any) -> list[dict[str, Any]]:
    """The events of tokens that come in these pieces."""
    prepared = ready()
    stream, events = AnswerStream(prepared, TOKENIZER), ResponseEvents(parse_responses(BODY))
    sent = b""
    for place, cut in enumerate(cuts):
        rows, last = Rows(), place == len(cuts) - 1
        for row in stream.feed(0, Output(id="0.0", token_ids=cut, finish_reason=reason if last else None)):
            rows.add(*row)
        sent += events.events(rows.take())
    whole = Output(id="0.0", token_ids=[token for cut in cuts for token in cut], finish_reason=reason)
    return read(sent + events.end(stream.usage([whole])))


def nameless(value: Any) -> Any:
    """The same without what is made up anew for each answer."""
    if isinstance(value, list):
        return [nameless(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: nameless(v) for k, v in value.items() if k not in ("id", "call_id", "created_at", "completed_at")}


@given(written=WRITTEN, reason=st.sampled_from(["stop", "length"]), data=st.data())
@example(written=[CALL, " and so", CALL], reason="stop", data=None)
@example(written=["<think>", "hm"], reason="length", data=None)
@example(written=["<think>", "hm", "</think>", CALL], reason="length", data=None)
@example(written=[], reason="stop", data=None)
def test_a_stream_ends_in_the_whole_response_however_its_tokens_come(
    written: list[str], reason: str, data: st.DataObject | None
) -> None:
    tokens = list("".join(written).encode()) + [0] * (reason == "stop")
    size = data.draw(st.integers(1, 20)) if data is not None else 3
    cuts = [tokens[at : at + size] for at in range(0, len(tokens), size)] or [[]]
    events = told(cuts, reason)
    output = Output(id="0.0", token_ids=tokens, finish_reason=cast(Any, reason))
    assert nameless(events[-1]["response"]) == nameless(answer(ready(), [output], TOKENIZER)[0])
    check_order(events)


def check_order(events: list[dict[str, Any]]) -> None:
    """Numbers count up, items are begun in order, texts are their deltas, and what is done is what is at the end."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert events[0]["response"]["id"] == final["id"]
    texts: dict[int, str] = defaultdict(str)
    begun, done = [], {}
    for event in events:
        place = event.get("output_index", -1)
        if event["type"].endswith(".delta"):
            assert place not in done
            texts[place] += event["delta"]
        elif event["type"] == "response.output_item.added":
            begun.append(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            done[place] = event["item"]
        elif event["type"].endswith(("text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == texts[place]
    assert begun == [item["id"] for item in final["output"]]
    assert [done[place] for place in range(len(begun))] == final["output"]


def test_a_thought_ends_where_the_message_begins() -> None:
    events = told([list(b"<think>hm</think>So."), [0]], "stop")
    types = [event["type"].removeprefix("response.") for event in events]
    assert types == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>hm</think>")


def test_what_was_said_before_a_stream_failed_is_in_its_last_event() -> None:
    events = ResponseEvents(parse_responses(BODY))
    rows = Rows()
    rows.add(0, {"content": "So"}, None, None)
    sent = events.events(rows.take()) + events.failed(UserError("Lost.", code="worker_lost", status=500))
    *_, error, last = read(sent)
    assert (error["type"], error["code"], error["message"]) == ("error", "worker_lost", "Lost.")
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "Lost."}
    (message,) = last["response"]["output"]
    assert (message["content"][0]["text"], message["status"]) == ("So", "incomplete")
