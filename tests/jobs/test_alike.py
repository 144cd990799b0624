"""Requests that ask for the same of different prompts: read in part, they are what they are when read as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pressrun.jobs.alike import Alike
from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from pressrun.jobs.requests import Request, parse_body

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "seed": 7, "stop": ["x"], "logit_bias": {"5": 1}},
    {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"n": None, "user": "a"},
    {"n": 1},
    {"n": True},
    {"n": 1.0},
    {"user": "\ud800"},
    {"functions": []},
    {"stream_options": {"include_usage": True}},
    {"unknown": 1},
    {f"field{i}": 1 for i in range(200)},
]
MESSAGES: list[Any] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "developer", "content": "be brief", "name": None}, {"role": "user", "content": "there"}],
    [{"role": "user", "content": [{"type": "text", "text": "parts"}]}, {"role": "assistant", "content": "So"}],
    [{"role": "user", "content": "hi", "tool_call_id": "a"}],
    [{"role": "user"}],
    [{"role": "user", "content": "half of a pair: \ud800"}],
    [{"role": "robot", "content": "hi"}, {"role": "user", "content": 1}],
    [],
    None,
    "hi",
    ({"role": "user", "content": "hi"},),
]
PROMPTS: list[Any] = ["hi", "there", "", "\ud800", ["a", "b"], [1, 2], [[1], [2]], [], [[]], None, 5, {"a": 1}]


def outcome(read: Callable[[str, object], Request], endpoint: str, body: object) -> tuple[str, Any]:
    try:
        request = read(endpoint, body)
    except UserError as error:
        return "refused", (error.message, error.param, error.code, error.status)
    return type(request).__name__, (request, request.model_dump(), request.model_fields_set)


@pytest.mark.parametrize(
    ("endpoint", "field", "prompts"), [(CHAT, "messages", MESSAGES), (COMPLETIONS, "prompt", PROMPTS)]
)
def test_requests_read_after_others_that_are_alike_are_what_they_are_by_themselves(
    endpoint: str, field: str, prompts: list[Any]
) -> None:
    alike = Alike()
    asked = [{"model": "m", field: prompt} for prompt in [*prompts, *reversed(prompts)]]
    for body in [*(one | kind for one in asked for kind in KINDS), {"model": "m"}]:
        among_others = outcome(lambda *sent: alike.parse(*sent).request, endpoint, body)
        assert among_others == outcome(parse_body, endpoint, body), body


def test_requests_of_one_kind_share_all_but_their_prompts() -> None:
    alike = Alike()
    asked = [{"model": "m", "messages": messages, "tools": [TOOL]} for messages in MESSAGES[:2]]
    first, second = (alike.parse(CHAT, body) for body in asked)
    assert first.kind == second.kind
    assert first.request.tools is second.request.tools  # type: ignore[union-attr]
    assert first.request.messages[0].text == "hi"  # type: ignore[union-attr]
    assert second.request.messages[0].text == "be brief"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("endpoint", "body"), [(RESPONSES, {"model": "m", "input": "hi"}), (EMBEDDINGS, {"model": "m", "input": "hi"})]
)
def test_other_kinds_of_requests_are_read_as_a_whole(endpoint: str, body: dict[str, Any]) -> None:
    alike = Alike()
    assert [alike.parse(endpoint, body).kind for _ in range(2)] == [None, None]
    assert alike.parse(endpoint, body).request == parse_body(endpoint, body)


@pytest.mark.parametrize("body", [None, [], "hi", 5])
def test_what_is_no_object_is_refused_by_that_name(body: object) -> None:
    with pytest.raises(UserError, match="expected an object"):
        Alike().parse(CHAT, body)
