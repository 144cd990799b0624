"""What a request may ask: accepted fields, and a clear refusal of everything else."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT, COMPLETIONS, RESPONSES
from pressrun.jobs.requests import UNBUILT, ChatCompletionRequest, CompletionRequest, parse_body

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    request = parse_body(CHAT, {"model": "m", "messages": HI} | fields)
    assert isinstance(request, ChatCompletionRequest)
    return request


def completion(**fields: Any) -> CompletionRequest:
    request = parse_body(COMPLETIONS, {"model": "m", "prompt": "hi"} | fields)
    assert isinstance(request, CompletionRequest)
    return request


def refusal(endpoint: str, body: object) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_body(endpoint, body)
    assert caught.value.status == 400
    return caught.value


def test_a_plain_request_has_openais_defaults() -> None:
    request = chat()
    assert (request.temperature, request.top_p, request.n, request.limit, request.stop) == (1.0, 1.0, 1, None, [])
    assert completion().limit == 16


def test_every_field_is_taken() -> None:
    request = chat(
        max_completion_tokens=5, temperature=0, top_p=0.5, n=2, seed=-3, stop="END", presence_penalty=-2, user="u",
        frequency_penalty=2, top_k=-1, min_p=0.1, repetition_penalty=1.1, min_tokens=1, ignore_eos=True,
        stop_token_ids=[1], skip_special_tokens=False, include_stop_str_in_output=True, logprobs=True, top_logprobs=3,
        response_format={"type": "text"}, modalities=["text"], verbosity="low", reasoning_effort="high", store=False,
        metadata={"a": "b"}, service_tier="auto", prompt_cache_key="k", safety_identifier="s", priority=-5,
        chat_template="{{ messages }}", chat_template_kwargs={"enable_thinking": False}, add_special_tokens=True,
        logit_bias={"50256": -100, "0": 0.5}, allowed_token_ids=[1, 0],
        bad_words=["no", " never "],
    )  # fmt: skip
    assert (request.limit, request.temperature, request.stop, request.num_logprobs) == (5, 0.0, ["END"], 3)


def test_null_is_the_same_as_leaving_it_out() -> None:
    assert chat(temperature=None, tools=None, stop=None, max_tokens=None) == chat()


def test_a_message_of_parts_reads_as_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


def test_log_probabilities_are_counted_beside_each_token() -> None:
    assert chat().num_logprobs is None
    assert chat(logprobs=True).num_logprobs == 0
    assert completion(logprobs=2).num_logprobs == 2
    assert completion().num_logprobs is None


@pytest.mark.parametrize("name", sorted(UNBUILT))
def test_what_is_not_built_is_refused_by_name(name: str) -> None:
    error = refusal(CHAT, {"model": "m", "messages": HI, name: 1})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert name in error.message


@pytest.mark.parametrize(
    ("fields", "param", "code", "said"),
    [
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_tokens": 5.0}, "max_tokens", "invalid_type", "expected an integer, but got a number"),
        ({"max_tokens": True}, "max_tokens", "invalid_type", "expected an integer, but got a boolean"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type", "expected an integer, but got a string"),
        ({"max_tokens": 10**400}, "max_tokens", "invalid_value", "less than or equal to 2147483647"),
        ({"top_k": 2**40}, "top_k", "invalid_value", "less than or equal to 2147483647"),
        ({"stop_token_ids": [2**40]}, "stop_token_ids[0]", "invalid_value", "less than or equal to 2147483647"),
        ({"seed": 2**63}, "seed", "invalid_value", "less than"),
        ({"temperature": 2.1}, "temperature", "invalid_value", "less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature", "invalid_value", ""),
        ({"temperature": float("inf")}, "temperature", "invalid_value", ""),
        ({"temperature": "hot"}, "temperature", "invalid_type", "expected a number, but got a string"),
        ({"n": 0}, "n", "invalid_value", "greater than or equal to 1"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value", "at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
        ({"stop": 5}, "stop", "invalid_type", "expected an array, but got an integer"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value", "5 is larger than max_tokens (4)"),
        (
            {"min_tokens": 5, "max_completion_tokens": 4},
            "max_completion_tokens",
            "invalid_value",
            "4 is smaller than min_tokens (5)",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "it needs 'logprobs' to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "less than or equal to 20"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'json_schema'"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type", "expected an object, but got an array"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "invalid_value", "token ids such as '50256', not 'word'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value", "not '-1'"),
        ({"logit_bias": {"07": 1}}, "logit_bias", "invalid_value", "not '07'"),
        ({"logit_bias": {"7\n": 1}}, "logit_bias", "invalid_value", "its keys must be token ids"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias", "invalid_value", "its keys must be token ids"),
        ({"logit_bias": {"7": 100.5}}, "logit_bias", "invalid_value", "the bias of token 7 must be a number from -100"),
        ({"logit_bias": {"7": float("nan")}}, "logit_bias", "invalid_value", "the bias of token 7"),
        ({"logit_bias": {"7": True}}, "logit_bias", "invalid_value", "the bias of token 7"),
        ({"logit_bias": {"7": 1, "8": None}}, "logit_bias", "invalid_value", "the bias of token 8"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "invalid_value", "1025 entries"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "invalid_value", "at least 1 item"),
        ({"allowed_token_ids": [1, -1]}, "allowed_token_ids[1]", "invalid_value", "greater than or equal to 0"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0]", "invalid_type", "expected an integer"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids", "invalid_value", "at most 1024 items"),
        ({"bad_words": "no"}, "bad_words", "invalid_type", "expected an array, but got a string"),
        ({"bad_words": ["no", " "]}, "bad_words[1]", "invalid_value", "must not be blank"),
        ({"bad_words": ["\ud800"]}, "bad_words[0]", "invalid_value", "unicode"),
        ({"bad_words": ["x" * 257]}, "bad_words[0]", "invalid_value", "at most 256 characters"),
        ({"bad_words": ["no"] * 129}, "bad_words", "invalid_value", "at most 128 items"),
        ({"echo": True}, "echo", "unknown_parameter", "Unrecognized request argument supplied: echo"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter", "Unrecognized request argument supplied: frobnicate"),
        ({"not-a-name": 1}, "not-a-name", "unknown_parameter", "argument supplied: not-a-name"),
        ({"str": 1}, "str", "unknown_parameter", "argument supplied: str"),
        ({"best_of": 1}, "best_of", "unknown_parameter", "argument supplied: best_of"),
        ({"priority": 101}, "priority", "invalid_value", "less than or equal to 100"),
        ({"stream_options": {}}, "stream_options", "invalid_value", "only for requests with 'stream': true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter", "'stream_options.x'"),
        ({"store": True}, "store", "invalid_value", "answers are not stored"),
        ({"service_tier": "flex"}, "service_tier", "invalid_value", "no tier 'flex' here"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type", "expected a string"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value", "at most 64 characters"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value", "17 properties"),
        ({"safety_identifier": "x" * 65}, "safety_identifier", "invalid_value", "at most 64 characters"),
        ({"modalities": ["text", "audio"]}, "modalities", "invalid_value", "at most 1 item"),
        ({"modalities": ["audio"]}, "modalities[0]", "invalid_value", "'text'"),
        ({"verbosity": "huge"}, "verbosity", "invalid_value", "'low', 'medium' or 'high'"),
        ({"reasoning_effort": 3}, "reasoning_effort", "invalid_value", "'low'"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "invalid_value", "'tools' cannot be given"),
        ({"chat_template_kwargs": {"x": ["\ud800"]}}, "chat_template_kwargs", "invalid_value", "surrogate"),
        ({"chat_template": "x" * 65537}, "chat_template", "invalid_value", "at most 65536 characters"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value", "must be false"),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            "messages",
            "invalid_value",
            "the last one must be of role 'assistant'",
        ),
        ({"messages": []}, "messages", "invalid_value", "at least 1 item"),
        ({"messages": None}, "messages", "missing_required_parameter", "'messages'"),
        ({"messages": {}}, "messages", "invalid_type", "expected an array, but got an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", ""),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value", "'system'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "expected a string"),
        ({"messages": [{"role": "user", "content": "x", "a-b": 1}]}, "messages[0].a-b", "unknown_parameter", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "'image_url' parts are not supported",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content",
            "invalid_value",
            "half of a surrogate pair",
        ),
    ],
)
def test_a_chat_request_that_cannot_be_served_says_where_and_why(
    fields: dict[str, Any], param: str | None, code: str, said: str
) -> None:
    error = refusal(CHAT, {"model": "m", "messages": HI} | fields)
    assert (error.param, error.code) == (param, code)
    assert said in error.message


@pytest.mark.parametrize(
    ("prompt", "param", "said"),
    [
        ("", "prompt", "must not be empty"),
        ([], "prompt", "must not be empty"),
        ([[]], "prompt", "must not be empty"),
        ([1, -1], "prompt[1]", "greater than or equal to 0"),
        (["a", 5], "prompt[1]", "expected a string, but got an integer"),
        ([[1], ["a"]], "prompt[1][0]", "expected an integer, but got a string"),
        (5, "prompt", "expected a string, but got an integer"),
        (["a", "\udfff"], "prompt[1]", "half of a surrogate pair"),
        (["a"] * 3000, "prompt", "at most 2048 items"),
    ],
)
def test_a_bad_prompt_says_where_and_why(prompt: Any, param: str, said: str) -> None:
    error = refusal(COMPLETIONS, {"model": "m", "prompt": prompt})
    assert error.param == param
    assert said in error.message


def test_the_prompts_own_log_probabilities_are_taken_up_to_20() -> None:
    assert completion(echo=True, logprobs=1).num_logprobs == 1
    assert chat(prompt_logprobs=20).prompt_logprobs == 20
    error = refusal(COMPLETIONS, {"model": "m", "prompt": "hi", "prompt_logprobs": -1})
    assert (error.param, error.code) == ("prompt_logprobs", "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools' are given"),
        ({"tool_choice": {"type": "function", "name": "add"}}, "tool_choice", "only allowed when 'tools' are given"),
        ({"tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "no tools of type 'web_search'"),
    ],
)
def test_a_response_that_cannot_be_made_says_where_and_why(fields: dict[str, Any], param: str, said: str) -> None:
    error = refusal(RESPONSES, {"model": "m", "input": "hi"} | fields)
    assert error.param == param
    assert said in error.message


def test_a_response_may_choose_freely_among_no_tools() -> None:
    for choice in ("auto", "none"):
        assert parse_body(RESPONSES, {"model": "m", "input": "hi", "tool_choice": choice})


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize("depth", [101, 300])
def test_json_that_is_nested_too_deep_for_what_reads_it_later_is_refused(depth: int) -> None:
    function = {"name": "add", "parameters": nested(depth)}
    fields: list[tuple[str, dict[str, Any]]] = [
        ("chat_template_kwargs", {"chat_template_kwargs": nested(depth)}),
        ("tools[0].function.parameters", {"tools": [{"type": "function", "function": function}]}),
        ("structured_outputs.json", {"structured_outputs": {"json": nested(depth)}}),
    ]
    for param, given in fields:
        error = refusal(CHAT, {"model": "m", "messages": HI} | given)
        assert (error.param, error.code) == (param, "invalid_value")
        assert "nested deeper than 100 levels" in error.message
    assert chat(chat_template_kwargs=nested(99)).chat_template_kwargs == nested(99)


@pytest.mark.parametrize("body", ["text", [1], 5, None])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    error = refusal(CHAT, body)
    assert (error.param, error.code) == ("body", "invalid_type")


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (COMPLETIONS, {"prompt": [0.5] * 1_000_000}),
        (CHAT, {"messages": [{}] * 300_000}),
        (CHAT, {"messages": HI} | {f"key{i}": 1 for i in range(300_000)}),
        (CHAT, {"messages": [{f"key{i}": 1 for i in range(300_000)}]}),
        (CHAT, {"messages": HI, "logit_bias": {f"key{i}": 1 for i in range(300_000)}}),
        (CHAT, {"messages": HI, "bad_words": [0.5] * 1_000_000}),
        (CHAT, {"messages": HI, "metadata": {f"key{i}": 1 for i in range(300_000)}}),
        (CHAT, {"messages": HI, "modalities": [0.5] * 1_000_000}),
        (CHAT, {"messages": HI, "tools": [0.5] * 1_000_000}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [0.5] * 1_000_000}]}),
        (RESPONSES, {"input": [0.5] * 1_000_000}),
        (RESPONSES, {"input": [{"role": "user", "content": [0.5] * 1_000_000}]}),
        (RESPONSES, {"input": [{"type": "reasoning", "content": [0.5] * 1_000_000}]}),
        (RESPONSES, {"input": "hi", "tools": [0.5] * 1_000_000}),
    ],
)
def test_a_million_mistakes_cost_no_more_than_one(endpoint: str, fields: dict[str, Any]) -> None:
    started = time.monotonic()
    refusal(endpoint, {"model": "m"} | fields)
    assert time.monotonic() - started < 1.0
