"""Messages and tools: who may say what, and errors that name the entry."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from pressrun.jobs.errors import UserError
from pressrun.jobs.records import CHAT
from pressrun.jobs.requests import ChatCompletionRequest, parse_body

HI = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}


def chat(*messages: Any, **fields: Any) -> ChatCompletionRequest:
    request = parse_body(CHAT, {"model": "m", "messages": list(messages) or [HI]} | fields)
    assert isinstance(request, ChatCompletionRequest)
    return request


def calling(**function: Any) -> dict[str, Any]:
    """An assistant's message with one call."""
    return {"role": "assistant", "tool_calls": [CALL | {"function": CALL["function"] | function}]}  # type: ignore[operator]


def test_all_five_roles_are_taken_with_what_belongs_to_them() -> None:
    request = chat(
        {"role": "system", "content": "Be terse."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        HI | {"name": "ann"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "refusal": "Never."},
    )
    assert [message.text for message in request.messages] == ["Be terse.", "Be kind.", "hi", "", "2", "No.", "Never."]


def test_an_answer_can_be_sent_back_as_the_sdk_holds_it() -> None:
    answer = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [CALL]}
    )
    (message,) = chat(answer.model_dump()).messages
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "add"


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ({"role": "user", "content": None}, "messages[0].content", "Missing"),
        ({"role": "assistant"}, "messages[0].content", "Missing"),
        ({"role": "tool", "content": "2"}, "messages[0].tool_call_id", "Missing"),
        (HI | {"tool_calls": [CALL]}, "messages[0]", "a message of role 'user' has no 'tool_calls'"),
        (HI | {"tool_call_id": "x"}, "messages[0]", "has no 'tool_call_id'"),
        (HI | {"content": [{"type": "refusal", "refusal": "x"}]}, "messages[0]", "has no part of type 'refusal'"),
        (HI | {"content": [{"type": "text"}]}, "messages[0].content[0].text", "Missing"),
        (
            HI | {"content": [{"type": "text", "text": "a", "refusal": "b"}]},
            "messages[0].content[0].refusal",
            "has none",
        ),
        (HI | {"content": [{"type": "input_audio"}]}, "messages[0].content[0].type", "'input_audio' parts are not"),
        (HI | {"content": [{"type": "poem"}]}, "messages[0].content[0].type", "'text' or 'refusal'"),
        (calling(arguments="[1]"), "messages[0].tool_calls[0].function.arguments", "a JSON object"),
        (calling(arguments="{"), "messages[0].tool_calls[0].function.arguments", "a JSON object"),
        (calling(arguments='{"a": NaN}'), "messages[0].tool_calls[0].function.arguments", "a JSON object"),
        (calling(arguments='{"a": "\\ud800"}'), "messages[0].tool_calls[0].function.arguments", "surrogate"),
        (calling(arguments="[" * 100_000), "messages[0].tool_calls[0].function.arguments", "a JSON object"),
        (calling(arguments={}), "messages[0].tool_calls[0].function.arguments", "expected a string"),
        (calling(name=""), "messages[0].tool_calls[0].function.name", "at least 1 character"),
    ],
)
def test_a_message_that_cannot_be_says_where_and_why(message: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        chat(message)
    assert caught.value.param == param
    assert said in caught.value.message


def test_tools_are_offered_and_wanted_as_the_choice_says() -> None:
    other = {"type": "function", "function": {"name": "sub"}}
    assert [tool.function.name for tool in chat(tools=[TOOL, other]).offered] == ["add", "sub"]
    assert chat(tools=[TOOL, other]).wanted == []
    assert chat(tools=[TOOL], tool_choice="none").offered == []
    assert len(chat(tools=[TOOL, other], tool_choice="required").wanted) == 2
    named = {"type": "function", "function": {"name": "sub"}}
    (wanted,) = chat(tools=[TOOL, other], tool_choice=named).wanted
    assert wanted.function.name == "sub"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": []}, "tools", "at least 1 item"),
        ({"tools": [TOOL, TOOL]}, "tools", "two functions are called 'add'"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "custom", "function": {"name": "a"}}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "must be 'object'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"x": "\ud800"}}}]},
            "tools[0].function.parameters",
            "surrogate",
        ),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed when 'tools' are given"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls", "only allowed when 'tools' are given"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tools": [TOOL], "tool_choice": "function"}, "tool_choice", "an object"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "it names a function"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", "Missing"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "mul"}}},
            "tool_choice",
            "no function in 'tools' is called 'mul'",
        ),
        ({"functions": [{"name": "a"}]}, "functions", "use 'tools'"),
        ({"function_call": "auto"}, "function_call", "use 'tool_choice'"),
    ],
)
def test_tools_that_cannot_be_called_say_where_and_why(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert said in caught.value.message
