"""Grammars of tools, by llguidance itself: what must be called is, by its schema, and parsers read what they allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import AutoTokenizer

from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT
from pressrun.jobs.requests import ChatCompletionRequest, parse_body
from pressrun.workers.parsing.style import TAGS, Style, parser_of
from pressrun.workers.parsing.thoughts import Tags
from pressrun.workers.said import said_in
from pressrun.workers.thought_grammars import after_thought
from pressrun.workers.tool_grammars import grammar_of_tools

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1}},
}
# Of those that every byte-level vocabulary can spell.
LETTERS = st.characters(max_codepoint=0x2FFF, exclude_categories=["C"])
FORMATS = ["hermes", "llama3", "mistral", "mistral-args", "qwen3_coder"]

pytestmark = pytest.mark.model


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER, NOW = tool("weather", parameters=SCHEMA), tool("now")


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]"]})
    return tokenizer


@pytest.fixture(scope="module")
def matching(vocabulary: Any) -> LLTokenizer:
    return from_tokenizer(vocabulary)


def style(vocabulary: Any, name: str, thoughts: str | None = None) -> Style:
    ids = {text: vocabulary.convert_tokens_to_ids(text) for text in ("[TOOL_CALLS]", "[ARGS]")}
    known = {"mistral": ["[TOOL_CALLS]"], "mistral-args": ["[TOOL_CALLS]", "[ARGS]"]}.get(name, [])
    tags = TAGS[thoughts] if thoughts else None
    return Style(tools=name.partition("-")[0], thoughts=tags, markers={text: ids[text] for text in known})


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER, NOW]}
    request = parse_body(CHAT, body | fields)
    assert isinstance(request, ChatCompletionRequest)
    return request


def allows(grammar: str | None, text: str, vocabulary: Any, matching: LLTokenizer) -> bool:
    """Whether the whole text follows the grammar, and may end there."""
    assert grammar is not None
    matcher = LLMatcher(matching, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = vocabulary.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def written(name: str, *calls: tuple[str, str]) -> str:
    """Calls as a model of the format writes them; arguments are JSON."""
    if name == "qwen3_coder":
        return "\n".join(_between_tags(function, json.loads(arguments)) for function, arguments in calls)
    key = "parameters" if name == "llama3" else "arguments"
    objects = [f'{{"name": "{function}", "{key}": {arguments}}}' for function, arguments in calls]
    if name == "hermes":
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
    if name == "llama3":
        return "; ".join(objects)
    if name == "mistral":
        return f"[TOOL_CALLS][{', '.join(objects)}]"
    return "".join(f"[TOOL_CALLS]{function}[ARGS]{arguments}" for function, arguments in calls)


def _between_tags(function: str, arguments: dict[str, Any]) -> str:
    """As Qwen3-Coder's chat template writes a call."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={function}>\n{parameters}</function>\n</tool_call>"


ROME, WRONG = ("weather", '{"city": "Rome"}'), ("weather", '{"town": "Rome"}')


@pytest.mark.parametrize("name", FORMATS)
def test_a_required_call_is_made_with_arguments_by_its_schema(
    name: str, vocabulary: Any, matching: LLTokenizer
) -> None:
    way = style(vocabulary, name)
    grammar = grammar_of_tools(chat(tool_choice="required"), way)
    good = [[ROME], [("now", "{}")], [ROME, ("weather", '{"city": "Oslo", "days": 2}')]]
    bad = [[WRONG], [("later", "{}")], [("now", '{"a": 1}')], [("weather", '{"city": "Oslo", "days": 0}')]]
    assert [allows(grammar, written(name, *calls), vocabulary, matching) for calls in good] == [True] * 3
    assert [allows(grammar, written(name, *calls), vocabulary, matching) for calls in bad] == [False] * 4
    assert not allows(grammar, "Sunny.", vocabulary, matching)
    said = said_in(parser_of(way, chat().offered), written(name, *good[2]))
    assert [(call.name, call.arguments) for call in said.calls] == good[2]


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_function_is_the_only_one_and_only_once_if_so_wanted(
    name: str, vocabulary: Any, matching: LLTokenizer
) -> None:
    body = chat(tool_choice={"type": "function", "function": {"name": "now"}}, parallel_tool_calls=False)
    grammar = grammar_of_tools(body, style(vocabulary, name))
    now = ("now", "{}")
    assert allows(grammar, written(name, now), vocabulary, matching)
    assert not allows(grammar, written(name, ROME), vocabulary, matching)
    assert not allows(grammar, written(name, now, now), vocabulary, matching)


@pytest.mark.parametrize("name", FORMATS)
def test_strict_functions_are_called_by_their_schemas_and_need_not_be_called(
    name: str, vocabulary: Any, matching: LLTokenizer
) -> None:
    strict = tool("weather", parameters=SCHEMA, strict=True)
    grammar = grammar_of_tools(chat(tools=[strict, NOW]), style(vocabulary, name))
    free = "" if name == "llama3" else "Let me see. "
    assert allows(grammar, "Sunny, I <think>.", vocabulary, matching)
    assert allows(grammar, free + written(name, ROME), vocabulary, matching)
    assert allows(grammar, free + written(name, ("now", '{"any": 1}')), vocabulary, matching)
    assert not allows(grammar, free + written(name, WRONG), vocabulary, matching)


@pytest.mark.parametrize("thinks", [True, False])
def test_a_thought_may_come_before_a_required_call(thinks: bool, vocabulary: Any, matching: LLTokenizer) -> None:
    way = style(vocabulary, "hermes", "think")
    calls = grammar_of_tools(chat(tool_choice="required"), way)
    assert calls is not None
    grammar = after_thought(calls, way, thinks=thinks)
    call, opening = written("hermes", ROME), "" if thinks else "<think>"
    assert allows(grammar, f"{opening}So < it >.\n</think>\n\n{call}", vocabulary, matching)
    assert allows(grammar, call, vocabulary, matching) is not thinks
    assert not allows(grammar, f"{opening}hm</think>Sunny.", vocabulary, matching)


ANSWERS = [
    LLMatcher.grammar_from_json_schema({"enum": ["yes"]}),
    LLMatcher.grammar_from_regex('"yes"'),
    LLMatcher.grammar_from_lark(r'start: "\"yes\""'),
]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("answer", ANSWERS, ids=["schema", "regex", "lark"])
def test_a_thought_may_come_before_whatever_else_is_asked_for(
    answer: str, special: bool, vocabulary: Any, matching: LLTokenizer
) -> None:
    tags = Tags(open="[ARGS]", close="[TOOL_CALLS]") if special else TAGS["think"]
    way = replace(style(vocabulary, "mistral-args" if special else "hermes"), thoughts=tags)
    maybe, surely = (after_thought(answer, way, thinks=thinks) for thinks in (False, True))
    assert allows(maybe, '"yes"', vocabulary, matching)
    assert allows(maybe, f'{tags.open}no {{ </t{tags.close}\n"yes"', vocabulary, matching)
    assert not allows(maybe, f'{tags.open}no{tags.close}"no"', vocabulary, matching)
    assert allows(surely, f'hm{tags.close}"yes"', vocabulary, matching)
    assert not allows(surely, '"yes"', vocabulary, matching)


def test_a_model_that_does_not_think_gets_the_grammar_alone(vocabulary: Any) -> None:
    assert after_thought("start: /a/", style(vocabulary, "hermes"), thinks=False) == "start: /a/"


def test_no_schema_asks_to_be_followed_loosely(vocabulary: Any, matching: LLTokenizer) -> None:
    loose = {"type": "object", "x-guidance": {"lenient": True, "whitespace_pattern": ".*"}}
    way = style(vocabulary, "llama3")
    grammar = grammar_of_tools(chat(tools=[tool("a", parameters=loose)], tool_choice="required"), way)
    assert allows(grammar, '{"name": "a", "parameters": {"b": 1}}', vocabulary, matching)
    assert not allows(grammar, '{"name": "a", "parameters": {"b":' + " " * 50 + "1}}", vocabulary, matching)
    unfollowed = chat(tools=[tool("a", parameters=loose | {"not": {}})], tool_choice="required")
    with pytest.raises(UserError):
        grammar_of_tools(unfollowed, way)


def test_nothing_is_forced_unless_a_call_must_be_made_or_be_strict(vocabulary: Any) -> None:
    way = style(vocabulary, "hermes")
    assert grammar_of_tools(chat(), way) is None
    assert grammar_of_tools(chat(tool_choice="none"), way) is None
    assert grammar_of_tools(chat(tools=[tool("a", strict=False)]), way) is None


def test_a_schema_that_cannot_be_followed_is_refused_by_name(vocabulary: Any) -> None:
    bad = tool("bad", parameters={"type": "object", "not": {}})
    for fields in (
        {"tool_choice": "required"},
        {"tools": [NOW, tool("bad", strict=True, parameters=bad["function"]["parameters"])]},
    ):
        with pytest.raises(UserError) as caught:
            grammar_of_tools(chat(**{"tools": [NOW, bad], **fields}), style(vocabulary, "hermes"))
        assert caught.value.param == "tools[1].function.parameters"
        assert '"not"' in caught.value.message


def test_only_functions_that_may_be_called_are_looked_at(vocabulary: Any) -> None:
    bad = tool("bad", parameters={"type": "object", "not": {}})
    now = {"type": "function", "function": {"name": "now"}}
    assert grammar_of_tools(chat(tools=[bad, NOW], tool_choice=now), style(vocabulary, "hermes"))


@settings(max_examples=40)
@given(city=st.text(LETTERS, max_size=8), days=st.none() | st.integers(1, 10**6), name=st.sampled_from(FORMATS))
def test_whatever_a_required_call_holds_is_read_as_it_was_written(
    city: str, days: int | None, name: str, vocabulary: Any, matching: LLTokenizer
) -> None:
    way, body = style(vocabulary, name), chat(tool_choice="required")
    arguments = {"city": city} | ({} if days is None else {"days": days})
    text = written(name, ("weather", json.dumps(arguments, ensure_ascii=False)))
    assert allows(grammar_of_tools(body, way), text, vocabulary, matching)
    (call,) = said_in(parser_of(way, body.offered), text).calls
    assert json.loads(call.arguments) == arguments
