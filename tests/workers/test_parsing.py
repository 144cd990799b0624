"""Thoughts and calls in a model's text: what they are read as, whatever pieces the text comes in."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressrun.jobs.tools import Tool
from pressrun.workers.parsing.style import FORMATS, TAGS, Style, parser_of
from pressrun.workers.said import Said, said_in

WEATHER = Tool.model_validate(
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}},
            },
        },
    }
)
ROME = ("weather", {"city": "Rome"})
OSLO = ("weather", {"city": "Oslo", "days": 2})


def style(tools: str | None = None, thoughts: str | None = None) -> Style:
    return Style(tools=tools, thoughts=TAGS[thoughts] if thoughts else None, markers={})


def read(text: str, tools: str | None = None, thoughts: str | None = None, **how: Any) -> Said:
    return said_in(parser_of(style(tools, thoughts), [WEATHER], **how), text)


def calls(said: Said) -> list[tuple[str | None, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in said.calls]


def called(city: str = "Rome", **more: Any) -> str:
    return json.dumps({"name": "weather", "arguments": {"city": city, **more}})


def llama(city: str = "Rome", **more: Any) -> str:
    return json.dumps({"name": "weather", "parameters": {"city": city, **more}})


CODER = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n{}</function>\n</tool_call>"
FOUND: list[tuple[str, str, str, list[Any]]] = [
    ("hermes", f"<tool_call>\n{called()}\n</tool_call>", "", [ROME]),
    ("hermes", f"Let me see.\n<tool_call>{called()}</tool_call>\n", "Let me see.", [ROME]),
    ("hermes", f"<tool_call>{called()}</tool_call>\n<tool_call>{called('Oslo', days=2)}</tool_call>", "", [ROME, OSLO]),
    # The tag in a string ends nothing.
    ("hermes", f"<tool_call>{called('</tool_call> {')}</tool_call>!", "!", [("weather", {"city": "</tool_call> {"})]),
    # Models that stop before the closing tag, or are stopped within it.
    ("hermes", f"<tool_call>{called()}", "", [ROME]),
    ("hermes", f"<tool_call>{called()}\n</tool_", "", [ROME]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>', "", [ROME]),
    ("qwen3_coder", CODER.format(""), "", [ROME]),
    (
        "qwen3_coder",
        "So:\n" + CODER.format("<parameter=days>\n2\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n"),
        "So:",
        [("weather", {"city": "Rome", "days": 2, "exact": True})],
    ),
    ("qwen3_coder", CODER.format("<parameter=days>soon</parameter>"), "", [("weather", ROME[1] | {"days": "soon"})]),
    ("llama3", llama(), "", [ROME]),
    ("llama3", f"<|python_tag|>{llama()}; {llama('Oslo', days=2)}", "", [ROME, OSLO]),
    ("llama3", f" {llama()};{llama('Oslo', days=2)} Done.", "Done.", [ROME, OSLO]),
    ("llama3", f"I ask.<|python_tag|>{llama()}", "I ask.", [ROME]),
    ("mistral", f"[TOOL_CALLS] [{called()}, {called('Oslo', days=2)}]", "", [ROME, OSLO]),
    ("mistral", 'Hm. [TOOL_CALLS]weather[ARGS]{"city": "Rome"}', "Hm.", [ROME]),
    (
        "mistral",
        '[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Rome"}[TOOL_CALLS]weather{"city": "Oslo", "days": 2}',
        "",
        [ROME, OSLO],
    ),
]
# What is no call stays as it stands.
WORDS = [
    ("hermes", "Plain words,\n and < signs. \n"),
    ("hermes", "<tool_call>no json</tool_call>"),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'),
    ("hermes", '<tool_call>{"name": 5}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>'),
    ("hermes", "<tool_call>" + '{"a":' * 100_000),
    ("hermes", "x <tool_"),
    ("qwen3_coder", "<tool_call><function=weather>city is Rome</function></tool_call>"),
    ("qwen3_coder", "<tool_call><function=weather><parameter=city>Rome"),
    ("llama3", '{"name": "somebody", "parameters": {}}'),
    ("llama3", '{"city": "Rome"}'),
    ("llama3", '<|python_tag|>brave_search.call(query="Rome")'),
    ("llama3", "I see {" + llama() + "}"),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS] what? {"),
    ("mistral", f'[TOOL_CALLS][{called()}, "and"]'),
]


@pytest.mark.parametrize(("tools", "text", "content", "found"), FOUND)
def test_calls_are_found_in_each_format(tools: str, text: str, content: str, found: list[Any]) -> None:
    said = read(text, tools)
    assert (said.content, calls(said)) == (content, found)
    assert len({call.id for call in said.calls}) == len(found)
    pattern = "[a-zA-Z0-9]{9}" if tools == "mistral" else "call_[0-9a-f]{30}"
    assert all(re.fullmatch(pattern, call.id or "") for call in said.calls)
    assert [call.index for call in said.calls] == list(range(len(found)))


@pytest.mark.parametrize(("tools", "text"), WORDS)
def test_what_is_no_whole_call_stays_content(tools: str, text: str) -> None:
    assert read(text, tools) == Said(content=text)


def test_a_good_call_beside_a_bad_one_is_found() -> None:
    said = read(f"<tool_call>oops</tool_call> <tool_call>{called()}</tool_call>", "hermes")
    assert (said.content, calls(said)) == ("<tool_call>oops</tool_call>", [ROME])


def test_a_second_call_is_left_out_where_the_client_wants_one() -> None:
    text = f"<tool_call>{called()}</tool_call><tool_call>{called('Oslo')}</tool_call>"
    assert calls(read(text, "hermes", parallel=False)) == [ROME]


def test_without_tools_on_offer_all_is_content() -> None:
    text = f"<tool_call>{called()}</tool_call>"
    assert said_in(parser_of(style("hermes"), []), text) == Said(content=text)


@pytest.mark.parametrize(
    ("text", "thinks", "thoughts", "content"),
    [
        ("<think>\nhm </think>\n\nYes. ", False, "hm", "Yes. "),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("<think>hm</think>Yes.", True, "hm", "Yes."),
        ("Yes, <think>no</think>", False, "", "Yes, <think>no</think>"),
        ("hm, it", True, "hm, it", ""),
        ("<think></think>Yes.", False, "", "Yes."),
        ("<thi", False, "", "<thi"),
        (" \n Yes", False, "", " \n Yes"),
    ],
)
def test_thoughts_stand_apart_from_the_answer(text: str, thinks: bool, thoughts: str, content: str) -> None:
    assert read(text, thoughts="think", thinks=thinks) == Said(content=content, thoughts=thoughts)


def test_calls_come_after_thoughts_and_are_not_looked_for_in_them() -> None:
    said = read(f"<think>a <tool_call> b</think>\n<tool_call>{called()}</tool_call>", "hermes", "think")
    assert (said.thoughts, said.content, calls(said)) == ("a <tool_call> b", "", [ROME])


PIECES = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "weather", "<think>", "</think>"]
PIECES += [called(), llama(), f"[{called()}]", CODER.format(""), "<function=weather>", "</function>", "{", "}", '"']
PIECES += ["\\", ";", "[", "]", " ", "\n", "<", "word", "é🙂", ","]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.sampled_from(
    [text for _, text, *_ in FOUND] + [text for _, text in WORDS if len(text) < 1000]
)


@given(
    tools=st.sampled_from([None, *FORMATS]),
    thoughts=st.sampled_from([None, *TAGS]),
    thinks=st.booleans(),
    text=TEXTS,
    cuts=st.lists(st.integers(0, 200)),
)
def test_the_same_is_read_whatever_the_pieces(
    tools: str | None, thoughts: str | None, thinks: bool, text: str, cuts: list[int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    whole = read(text, tools, thoughts, thinks=thinks)
    by_letter = fed(list(text), tools, thoughts, thinks)
    by_cut = fed([text[a:b] for a, b in pairwise(places)], tools, thoughts, thinks)
    assert comparable(by_letter) == comparable(by_cut) == comparable(whole)


def fed(pieces: list[str], tools: str | None, thoughts: str | None, thinks: bool) -> Said:
    parser = parser_of(style(tools, thoughts), [WEATHER], thinks=thinks)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.close()
    return Said(
        content="".join(delta.content for delta in deltas),
        thoughts="".join(delta.reasoning_content for delta in deltas),
        calls=tuple(call for delta in deltas for call in delta.tool_calls),
    )


def comparable(said: Said) -> tuple[Any, ...]:
    return said.content, said.thoughts, calls(said), [call.index for call in said.calls]


def test_words_are_passed_on_as_they_come() -> None:
    parser = parser_of(style("hermes", "think"), [WEATHER])
    heard = [parser.feed(piece) for piece in ("<think>", "so", " it", "</think>", " Yes", ", ", "<", "b>")]
    told = [[delta.content or delta.reasoning_content for delta in deltas] for deltas in heard]
    assert told == [[], ["so"], [" it"], [], ["Yes"], [","], [], [" <b>"]]


@pytest.mark.parametrize("tools", sorted(FORMATS))
@pytest.mark.parametrize(
    "unit", ["<tool_call>{", "<|python_tag|>{", '[TOOL_CALLS][["', "<tool_call><function=a>", "\n "]
)
def test_a_text_of_nothing_but_beginnings_is_read_in_time(tools: str, unit: str) -> None:
    text = unit * (60_000 // len(unit))
    started = time.monotonic()
    assert fed([text[at : at + 4] for at in range(0, len(text), 4)], tools, "think", False).content == text
    assert time.monotonic() - started < 5.0
