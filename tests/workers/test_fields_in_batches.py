"""Every field of a request in a line of a real batch: it reaches the answer, or the line says why it cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pressrun.jobs.submit import create_batch, create_file

from .conftest import MODEL, Farm, farm_on

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
# What the stand-in engine echoes is what the model would have been shown.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "user: hi"),
    "labels": (
        {
            "store": False,
            "metadata": {"night": "1"},
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
        },
        "user: hi",
    ),
    "ways": ({"modalities": ["text"], "verbosity": "medium", "priority": -3, "n": 1}, "user: hi"),
    "effort": (
        {"reasoning_effort": "high", "verbosity": "low"},
        'options: {"reasoning_effort": "high", "verbosity": "low"}\nuser: hi',
    ),
    "kwargs": ({"chat_template_kwargs": {"enable_thinking": False}}, 'options: {"enable_thinking": false}\nuser: hi'),
    "special tokens": ({"add_special_tokens": True}, "add_special_tokens: true\nuser: hi"),
    "no opening": ({"add_generation_prompt": False}, "add_generation_prompt: false\nuser: hi"),
    "continued": (
        {
            "messages": [{"role": "assistant", "content": "One,"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
        "add_generation_prompt: false\ncontinue_final_message: true\nassistant: One,",
    ),
    "tool_choice none": ({"tools": [TOOL], "tool_choice": "none"}, "user: hi"),
    "roles": (
        {
            "messages": [
                {"role": "developer", "content": "Be terse."},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "tool", "content": "x", "tool_call_id": "c"},
            ]
        },
        'system: Be terse.\nassistant: No.\ntool: x{"tool_call_id": "c"}',
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str | None]] = {
    "unknown": ({"frobnicate": 1}, "frobnicate"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    "functions": ({"functions": [{"name": "a"}]}, "functions"),
    "audio": ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    "prediction": ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    "web": ({"web_search_options": {}}, "web_search_options"),
    "store": ({"store": True}, "store"),
    "tier": ({"service_tier": "flex"}, "service_tier"),
    "template": ({"chat_template": "{{ messages }}"}, "chat_template"),
    "useless": ({"chat_template_kwargs": {"nonsense": 1}}, "chat_template_kwargs.nonsense"),
    "choice alone": ({"tool_choice": "auto"}, "tool_choice"),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
}


@pytest.fixture
def calling_farm(farm: Farm, redis: Any, redis_server: str, tmp_path: Any) -> Farm:
    """One whose model calls tools as Hermes does, and thinks."""
    changed = farm_on(redis, redis_server, tmp_path, tool_call_parser="hermes", reasoning_parser="think")
    farm.backend = changed.backend
    return farm


def test_each_field_of_a_chat_line_is_honoured_or_refused_by_name(calling_farm: Farm) -> None:
    farm = calling_farm
    farm.work()
    lines = [farm.ask(name, **{"max_tokens": None} | body) for name, (body, _) in (CASES | REFUSED).items()]
    output, errors = farm.results(farm.batch(lines))
    for line in output:
        chat = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert chat.choices[0].message.content == CASES[line["custom_id"]][1], line["custom_id"]
    assert [line["custom_id"] for line in output] == list(CASES)
    found = {line["custom_id"]: line["response"]["body"]["error"]["param"] for line in errors}
    assert found == {name: param for name, (_, param) in REFUSED.items()}


def test_a_line_may_bring_a_template_where_it_is_trusted(
    farm: Farm, redis: Any, redis_server: str, tmp_path: Any
) -> None:
    farm.backend = farm_on(redis, redis_server, tmp_path, trust_request_chat_template=True).backend
    farm.work()
    output, errors = farm.results(farm.batch([farm.ask("a", chat_template="{{ x }}", max_tokens=None)]))
    assert not errors
    content = output[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert content == 'template: "{{ x }}"\nuser: hi'


def test_a_line_calls_tools_and_thinks(calling_farm: Farm) -> None:
    farm = calling_farm
    farm.work()
    # The prompt ends within a thought; its echo is one up to where it ends.
    asked = {"tools": [TOOL], "service_tier": "auto", "max_tokens": None}
    output, errors = farm.results(farm.batch([farm.ask("a", f"hm</think>So:\n{CALL}<think>", **asked)]))
    assert not errors
    chat = ChatCompletion.model_validate(output[0]["response"]["body"], strict=True)
    (choice,) = chat.choices
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning_content"].endswith("user: hm")
    assert chat.usage is not None
    assert chat.usage.completion_tokens_details is not None
    thought = f"{choice.message.model_extra['reasoning_content']}</think>"
    assert chat.usage.completion_tokens_details.reasoning_tokens == len(thought)
    assert chat.service_tier == "default"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
    assert choice.message.content == "So:<think>"


def test_each_field_of_a_completion_line_is_honoured_or_refused_by_name(farm: Farm) -> None:
    farm.work()
    good: dict[str, Any] = {"best": {"n": 2, "best_of": 2}, "bare": {"add_special_tokens": False, "priority": 1}}
    bad: dict[str, Any] = {"suffix": {"suffix": "x"}, "best_of": {"best_of": 2}, "tools": {"tools": [TOOL]}}
    url = "/v1/completions"
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, "prompt": "hi", **body}}
        for name, body in (good | bad).items()
    ]
    raw = "\n".join(map(json.dumps, lines)).encode()
    file = create_file(farm.backend, filename="in.jsonl", purpose="batch", chunks=[raw])
    batch = create_batch(farm.backend, input_file_id=file.id, endpoint=url, completion_window="24h")
    output, errors = farm.results(batch)
    for line in output:
        text = Completion.model_validate(line["response"]["body"], strict=True)
        assert {choice.text for choice in text.choices} == {"hi"}
    assert [line["custom_id"] for line in output] == list(good)
    assert [line["response"]["body"]["error"]["param"] for line in errors] == list(bad)
