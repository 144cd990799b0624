"""Calls between tags, as Qwen3-Coder writes them: grammars allow what their schemas do, and readers read it back."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from pressrun.engine.grammars import byte_tokenizer
from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT
from pressrun.jobs.requests import ChatCompletionRequest, parse_body
from pressrun.workers.parsing.kinds import ALL, kinds_of
from pressrun.workers.parsing.style import Style, parser_of
from pressrun.workers.said import said_in
from pressrun.workers.tool_grammars import grammar_of_tools

STYLE = Style(tools="qwen3_coder", markers={})
DAYS: Mapping[str, Any] = {"$ref": "#/$defs/days"}
DEFS: Mapping[str, Any] = {"days": {"type": "integer", "minimum": 1}, "word": {"type": "string", "maxLength": 4}}
MAYBE: Mapping[str, Any] = {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]}


def asked(properties: Mapping[str, Any], **more: Any) -> ChatCompletionRequest:
    """A request that must call `f` with all of its parameters."""
    schema = {"type": "object", "properties": properties, "required": list(properties), "$defs": DEFS}
    function = {"name": "f", "parameters": schema | more}
    tools = [{"type": "function", "function": function}]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": "required"}
    request = parse_body(CHAT, body)
    assert isinstance(request, ChatCompletionRequest)
    return request


def written(**values: str) -> str:
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    return f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>"


def read(request: ChatCompletionRequest, text: str) -> Any:
    (call,) = said_in(parser_of(STYLE, request.offered), text).calls
    return json.loads(call.arguments)


def allows(request: ChatCompletionRequest, text: str) -> bool:
    matcher = LLMatcher(byte_tokenizer(), str(grammar_of_tools(request, STYLE)))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


GOOD: list[tuple[Mapping[str, Any], str, Any]] = [
    ({"type": "string"}, "Köln\n & <b>, </parameter", "Köln\n & <b>, </parameter"),
    ({"type": "string"}, "\n", "\n"),
    ({"type": "string"}, "", ""),
    ({}, "5", "5"),
    ({"type": "integer"}, "5", 5),
    (DAYS, "5", 5),
    ({"$ref": "#/$defs/word"}, "5", "5"),
    ({"type": "boolean"}, "true", True),
    ({"type": "array", "items": DAYS}, "[1, 2]", [1, 2]),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, '{"a": "b\\n"}', {"a": "b\n"}),
    ({"enum": ["a b", "", "5"]}, "5", "5"),
    ({"enum": [1, 2, None]}, "null", None),
    ({"type": ["string", "null"], "enum": ["é", None]}, "é", "é"),
    ({"const": "/x/"}, "/x/", "/x/"),
    (MAYBE, "null", None),
    (MAYBE, "12", "12"),
    ({"type": ["string", "null"]}, '"quoted"', '"quoted"'),
    ({"type": "string", "pattern": "^[a-z]+/[0-9]$"}, "ab/1", "ab/1"),
    ({"type": "string", "pattern": "b/"}, "ab/1", "ab/1"),
    ({"type": "string", "minLength": 2, "maxLength": 3, "pattern": r"\$$"}, "ü👍$", "ü👍$"),
]
BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"type": "string"}, "x</function>"),
    ({"type": "string"}, "x\n</parameter>\n<parameter=b>\n1"),
    (DAYS, "0"),
    (DAYS, "one"),
    ({"$ref": "#/$defs/word"}, "12345"),
    ({"type": "array", "items": DAYS}, '["a"]'),
    ({"enum": ["a"]}, "b"),
    (MAYBE, "1"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "ab1"),
    ({"type": "string", "minLength": 2, "maxLength": 3, "pattern": "a"}, "a"),
    ({"type": "string", "minLength": 2, "maxLength": 3, "pattern": "a"}, "abcd"),
]


@pytest.mark.parametrize(("schema", "text", "value"), GOOD)
def test_a_value_that_its_schema_allows_is_allowed_and_read_back(schema: dict[str, Any], text: str, value: Any) -> None:
    request = asked({"a": schema})
    assert allows(request, written(a=text))
    assert read(request, written(a=text)) == {"a": value}
    assert type(read(request, written(a=text))["a"]) is type(value)


@pytest.mark.parametrize(("schema", "text"), BAD)
def test_a_value_that_its_schema_forbids_is_forbidden(schema: dict[str, Any], text: str) -> None:
    assert not allows(asked({"a": schema}), written(a=text))


def test_parameters_come_in_order_and_only_those_that_need_not_be_there_may_be_missing() -> None:
    request = asked({"a": {"type": "integer"}, "b": {}, "c": {}}, required=["b"])
    assert [allows(request, written(**dict.fromkeys(names, "1"))) for names in ("abc", "b", "ab", "bc")] == [True] * 4
    assert [allows(request, written(**dict.fromkeys(names, "1"))) for names in ("", "ac", "ba", "bd")] == [False] * 4
    assert allows(asked({}), written())


@pytest.mark.parametrize(
    ("properties", "more", "said"),
    [
        ({"a": {"type": ["string", "integer"]}}, {}, "of 'a', a string cannot be told"),
        ({"a": {"type": "string", "format": "date"}}, {}, "'format' cannot be followed"),
        ({"a": {"enum": ["</parameter>"]}}, {}, "closing tag"),
        ({"a": {"enum": ["x"], "maxLength": 2}}, {}, "'maxLength' cannot be followed"),
        ({"a": {"type": "string", "pattern": "a(?=b)"}}, {}, "regex parse error"),
        ({"a": {"type": "string", "pattern": "a)(b"}}, {}, "regex parse error"),
        ({"a": {"type": "string", "pattern": "(^a|b)c"}}, {}, "invalid"),
        ({"a>": {}}, {}, "no parameter can be called"),
        ({"a": {}}, {"required": ["a", "b"]}, "'b' is required"),
        ({"a": {}}, {"minProperties": 1}, "'minProperties'"),
        ({"a": {}}, {"anyOf": [{"required": ["a"]}]}, "'anyOf'"),
    ],
)
def test_what_cannot_be_followed_between_tags_is_refused_by_name(
    properties: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        grammar_of_tools(asked(properties, **more), STYLE)
    assert caught.value.param == "tools[0].function.parameters"
    assert said in caught.value.message


def drawn(grammar: str, seed: int) -> str:
    """A text that the grammar allows, byte by byte by chance."""
    chance, matcher, text = random.Random(seed), LLMatcher(byte_tokenizer(), grammar), bytearray()
    ends = [list(end) for end in (b"\n</parameter>\n", b"</function>", b"]", b"}", b'"')]
    while not matcher.is_stopped():
        possible = [end for end in ends if matcher.validate_tokens(end) == len(end)]
        if possible and chance.random() < 0.3:
            step = possible[0]
        else:
            mask = matcher.compute_bitmask()
            allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
            step = [chance.choice(allowed)] if allowed else []
        if not step:
            break
        assert matcher.consume_tokens(step)
        text += bytes(step)
    assert matcher.is_accepting()
    return text.decode()


STRINGS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "pattern": "^[a-z]{2}-[0-9]"},
        {"enum": ["one", "two\n", ""]},
        {"$ref": "#/$defs/word"},
        {"type": ["string", "null"]},
        MAYBE,
    ]
)
OTHERS = st.sampled_from(
    [
        DAYS,
        {"type": "boolean"},
        {"enum": [1, "a", None][:1]},
        {"type": ["integer", "null"]},
        {"type": "array", "items": DAYS, "maxItems": 2},
        {"type": "object", "properties": {"x": DAYS}, "required": ["x"], "additionalProperties": False},
    ]
)


@settings(max_examples=60)
@given(
    properties=st.dictionaries(st.text("abc", min_size=1, max_size=3), STRINGS | OTHERS, max_size=3),
    num_required=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_whatever_a_grammar_allows_is_one_call_by_its_schema(
    properties: dict[str, Any], num_required: int, seed: int
) -> None:
    request = asked(properties, required=list(properties)[:num_required], additionalProperties=False)
    request = request.model_copy(update={"parallel_tool_calls": False})
    text = drawn(str(grammar_of_tools(request, STYLE)), seed)
    (tool,) = request.offered
    jsonschema_rs.validate(tool.function.parameters, read(request, text))


def test_kinds_are_those_of_all_that_a_schema_says() -> None:
    root = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, "b/c": {"type": "array"}}}
    assert kinds_of({"$ref": "#/$defs/b~1c"}, root) == {"array"}
    assert kinds_of({"$ref": "#/$defs/a"}, root) == ALL
    assert kinds_of({"$ref": "#/nowhere"}, root) == ALL
    assert kinds_of({"type": "number", "enum": [1, "a"]}, root) == {"integer", "number"}
    assert kinds_of({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, root) == {"string"}
    assert kinds_of(True, root) == ALL


def test_references_that_branch_again_and_again_are_looked_up_once_each() -> None:
    defs = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(60)}
    assert kinds_of({"$ref": "#/$defs/d0"}, {"$defs": defs | {"d60": {"type": "null"}}}) == {"null"}
