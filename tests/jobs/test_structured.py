"""What shapes a request may ask for, and how it is told what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest

from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT, COMPLETIONS
from pressrun.jobs.requests import ChatCompletionRequest, CompletionRequest, parse_body

HI = {"messages": [{"role": "user", "content": "hi"}]}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def parsed(endpoint: str = CHAT, **fields: Any) -> ChatCompletionRequest | CompletionRequest:
    given = HI if endpoint == CHAT else {"prompt": "hi"}
    return parse_body(endpoint, {"model": "m"} | given | fields)


def named(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema} | fields}}


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_chat_and_completions_take_every_shape(endpoint: str) -> None:
    asked = parsed(endpoint, **named(PERSON, strict=True, description="who")).response_format
    assert asked is not None
    assert asked.json_schema is not None
    assert asked.json_schema.json_schema == PERSON
    for shape in (
        {"json": PERSON},
        {"json": '{"type": "object"}'},
        {"json_object": True},
        {"regex": "a+"},
        {"choice": ["yes", "no"]},
        {"grammar": 'start: "a"'},
    ):
        assert parsed(endpoint, structured_outputs=shape).structured_outputs is not None
    both = parsed(endpoint, response_format={"type": "text"}, structured_outputs={"regex": "a"})
    assert both.structured_outputs is not None
    assert parsed(endpoint, response_format={"type": "json_object"}).structured_outputs is None


@pytest.mark.parametrize(
    ("fields", "param", "code", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'json_object'"),
        ({"response_format": "json"}, "response_format", "invalid_type", "expected an object"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
            "Missing required parameter",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
            "response_format.json_schema",
            "invalid_value",
            "belongs to the type 'json_schema', not to 'text'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
            "",
        ),
        (named([]), "response_format.json_schema.schema", "invalid_type", "expected an object, but got an array"),
        (named({}, name="a b"), "response_format.json_schema.name", "invalid_value", "pattern"),
        (named({}, nmae="a"), "response_format.json_schema.nmae", "unknown_parameter", "nmae"),
        (named({"const": "x" * 65536}), "response_format.json_schema.schema", "invalid_value", "65536 allowed"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value", "not 0 of them"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs",
            "invalid_value",
            "not 2 of them",
        ),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "invalid_type", "expected"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value", "at least 1 item"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]", "invalid_type", "a string"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice", "invalid_value", "1024 items"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "invalid_value", "at least 1 character"),
        ({"structured_outputs": {"regex": "\ud800"}}, "structured_outputs.regex", "invalid_value", "unicode"),
        (
            {"structured_outputs": {"grammar": "a" * 65537}},
            "structured_outputs.grammar",
            "invalid_value",
            "65537 bytes",
        ),
        (
            {"structured_outputs": {"structural_tag": "a"}},
            "structured_outputs.structural_tag",
            "unknown_parameter",
            "structural_tag",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "invalid_value",
            "'response_format' asks for a shape too",
        ),
        ({"guided_json": PERSON}, "guided_json", "unsupported_parameter", "use 'structured_outputs': {'json': …}"),
        ({"guided_choice": ["a"]}, "guided_choice", "unsupported_parameter", "{'choice': …}"),
    ],
)
def test_a_shape_that_cannot_be_read_says_where_and_why(
    fields: dict[str, Any], param: str | None, code: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        parsed(**fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert said in caught.value.message
