"""From the shape that a line asks for to the engine's grammar: what each takes in, and what is refused by name."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pressrun.engine.grammars import byte_tokenizer, compile_grammar
from pressrun.engine.request import ModelInfo
from pressrun.jobs.records import Line, LineResult
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.prompts import Prepared, Prompts

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def prepared(url: str = TEXT, **fields: Any) -> Prepared | LineResult:
    given: dict[str, Any] = {"model": "m", "temperature": 0, "max_tokens": 9}
    given |= {"prompt": "hi"} if url == TEXT else {"messages": [{"role": "user", "content": "hi"}]}
    info = ModelInfo(max_model_len=100, vocab_size=256, eos_token_ids=(0,))
    line = Line(index=0, custom_id="a", url=url, body=given | fields)
    (result,) = Prompts(ByteTokenizer(), info, "m").prepare([line])
    return result


def grammar(url: str = TEXT, **fields: Any) -> str | None:
    result = prepared(url, **fields)
    assert isinstance(result, Prepared), result
    return result.params[0].grammar


def takes(grammar: str, text: str) -> bool:
    """Whether a text follows the grammar from beginning to end."""
    matcher, tokens = compile_grammar(grammar, byte_tokenizer()), list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def named(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema} | fields}


@pytest.mark.parametrize("url", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "taken", "refused"),
    [
        (
            {"response_format": {"type": "json_object"}},
            ['{"a": [1, null]}', "{}", "{\n" + 31 * " " + '"a": 1\n}'],
            ["[]", "hello", "{", '{"a":' + 33 * " " + "1}"],
        ),
        ({"response_format": named(PERSON)}, ['{"name": "x"}', '{"name":"","b":1}'], ["{}", '{"name": 1}']),
        ({"response_format": named(PERSON, strict=False)}, ['{"name": "x"}'], ["{}"]),
        ({"structured_outputs": {"json": PERSON}}, ['{"name": "x"}'], ["{}"]),
        ({"structured_outputs": {"json": json.dumps(PERSON)}}, ['{"name": "x"}'], ["{}"]),
        ({"structured_outputs": {"json_object": True}}, ['{"a": 1}'], ["1"]),
        ({"structured_outputs": {"regex": r"\d{2,3}"}}, ["12", "123"], ["1", "1234", "x"]),
        (
            {"structured_outputs": {"choice": ["é", 'a"b', "x\n", "back\\slash", "a b"]}},
            ["é", 'a"b', "x\n", "back\\slash", "a b"],
            ["e", "a", "", "a b "],
        ),
        ({"structured_outputs": {"grammar": 'start: n ("+" n)*\nn: /[0-9]+/'}}, ["1", "1+22"], ["1+", "+"]),
    ],
)
def test_every_shape_becomes_a_grammar_that_takes_it_and_nothing_else(
    url: str, fields: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    found = grammar(url, **fields)
    assert found is not None
    assert [text for text in taken if not takes(found, text)] == []
    assert [text for text in refused if takes(found, text)] == []


def test_plain_text_has_no_grammar() -> None:
    assert grammar() is None
    assert grammar(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"response_format": named({"type": "object", "properties": {"a": {"not": {}}}})},
            "response_format.json_schema.schema",
            'it holds keywords that are not supported: ["not"]',
        ),
        # What a schema says of itself does not make it lenient.
        (
            {"response_format": named({"uniqueItems": True, "x-guidance": {"lenient": True}})},
            "response_format.json_schema.schema",
            '["uniqueItems"]',
        ),
        ({"response_format": named({"type": "strin"})}, "response_format.json_schema.schema", "Invalid type: strin"),
        ({"response_format": named({"$ref": "#/a"})}, "response_format.json_schema.schema", "does not exist"),
        ({"response_format": named({"$ref": "https://a.b/c"})}, "response_format.json_schema.schema", "https://a.b/c"),
        ({"response_format": named({"const": "\ud800"})}, "response_format.json_schema.schema", "a surrogate pair"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "must be a JSON object"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
        ({"structured_outputs": {"json": "[" * 60000}}, "structured_outputs.json", "no JSON"),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex", "look-around"),
        ({"structured_outputs": {"regex": "(" * 30000 + ")" * 30000}}, "structured_outputs.regex", "invalid regex"),
        ({"structured_outputs": {"grammar": "start: foo"}}, "structured_outputs.grammar", 'unknown name: "foo"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "structured_outputs.grammar", "a Lark grammar"),
        ({"structured_outputs": {"grammar": "start: " + "(" * 30000}}, "structured_outputs.grammar", "nested"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "a grammar says itself"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "a grammar says itself"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_field_and_quickly(fields: dict[str, Any], param: str, said: str) -> None:
    started = time.monotonic()
    result = prepared(**fields)
    assert time.monotonic() - started < 1.0
    assert isinstance(result, LineResult)
    response = json.loads(result.data)["response"]
    error = response["body"]["error"]
    assert (response["status_code"], error["param"], error["code"]) == (400, param, "invalid_value")
    assert said in error["message"]


def test_lines_of_the_same_shape_are_twins_and_of_another_are_not() -> None:
    def twin(schema: dict[str, Any]) -> bytes | None:
        result = prepared(response_format=named(schema))
        assert isinstance(result, Prepared)
        return result.twin

    assert twin(PERSON) == twin(dict(PERSON)) is not None
    assert twin(PERSON) != twin(PERSON | {"required": []})
