"""Rows that wait for a slow client are put together."""

from __future__ import annotations

import json
from typing import Any

from pressrun.api.chunks import Chunks, Rows
from pressrun.jobs.requests import parse_body

CHAT = "/v1/chat/completions"


def choices_of(events: bytes) -> list[Any]:
    chunks = [json.loads(event.removeprefix("data: ")) for event in events.decode().split("\n\n") if event]
    return [choice for chunk in chunks for choice in chunk["choices"]]


def chunks() -> Chunks:
    return Chunks(CHAT, parse_body(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}))


def test_what_waits_is_one_row_a_choice_however_many_came() -> None:
    rows = Rows()
    for i in range(1000):
        rows.add(i % 2, {"content": "ab"[i % 2]}, {"content": [{"token": "x"}], "refusal": None}, None)
    assert len(rows._rows) == 2
    rows.add(0, {}, None, "stop")
    choices = choices_of(chunks().events(rows.take()))
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, "assistant", None, None]
    said = [(c["index"], c["delta"].get("content"), c["finish_reason"]) for c in choices if "role" not in c["delta"]]
    assert said == [(0, "a" * 500, None), (1, "b" * 500, None), (0, None, "stop")]
    assert [len(c["logprobs"]["content"]) for c in choices if c["logprobs"]] == [500, 500]
    assert rows.take() == []


def test_what_is_no_text_or_of_another_kind_stays_apart() -> None:
    rows = Rows()
    call = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]}
    for delta in ({"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "so"}, call, {"content": "!"}):
        rows.add(0, delta, None, None)
    deltas = [choice["delta"] for choice in choices_of(chunks().events(rows.take()))[1:]]
    assert deltas == [{"reasoning_content": "hm"}, {"content": "so"}, call, {"content": "!"}]
