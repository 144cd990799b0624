"""`/v1/responses` in batches: from its items to a prompt, and to a response that the SDK reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response

from pressrun.engine.request import ModelInfo, Output
from pressrun.jobs.errors import UserError
from pressrun.jobs.records import RESPONSES, Line
from pressrun.jobs.requests import ChatCompletionRequest, parse_body
from pressrun.jobs.submit import create_batch, create_file
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.parsing.style import TAGS, Style
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import answer

from .conftest import MODEL, Farm

TOKENIZER = ByteTokenizer()
STYLE = Style(tools="hermes", thoughts=TAGS["think"], markers={}, template=ByteTokenizer.chat_template)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}


def chat(**fields: Any) -> ChatCompletionRequest:
    request = parse_body(RESPONSES, {"model": MODEL, "input": "hi"} | fields)
    assert isinstance(request, ChatCompletionRequest)
    return request


def ready(**fields: Any) -> Prepared:
    line = Line(index=0, custom_id="a", url=RESPONSES, body={"model": MODEL, "input": "hi"} | fields)
    (result,) = Prompts(TOKENIZER, ModelInfo(max_model_len=2000, vocab_size=256), MODEL, STYLE).prepare([line])
    assert isinstance(result, Prepared), result
    return result


def response(written: str, reason: Any = "length", **fields: Any) -> Response:
    output = Output(id="0.0", token_ids=list(written.encode()), finish_reason=reason)
    body, _ = answer(ready(**fields), [output], TOKENIZER)
    return Response.model_validate(body, strict=True)


def test_text_and_instructions_are_a_conversation() -> None:
    request = chat(instructions="Be terse.", max_output_tokens=7, temperature=0, reasoning={"effort": "low"})
    assert [(message.role, message.text) for message in request.messages] == [("system", "Be terse."), ("user", "hi")]
    assert (request.limit, request.temperature, request.reasoning_effort) == (7, 0, "low")


def test_a_format_of_text_is_a_shape() -> None:
    given = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    shape = chat(text={"format": given}).response_format
    assert shape is not None
    assert shape.json_schema is not None
    assert (shape.json_schema.name, shape.json_schema.json_schema) == ("answer", {"type": "object"})
    assert response("{}", text={"format": given}).text is not None


def test_items_that_the_assistant_makes_in_a_row_are_one_message() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"type": "output_text", "text": "I ask.", "annotations": []}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
        thought,
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]},
        CALL | {"id": "fc_1", "status": "completed"},
        CALL | {"call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "And warm."},
    ]
    user, turn, tool, *more = chat(input=items).messages
    assert (user.text, tool.text, tool.tool_call_id) == ("Rome?", "sunny", "call_1")
    assert (turn.reasoning_content, turn.text) == ("hm", "I ask.")
    assert turn.tool_calls is not None
    assert [call.id for call in turn.tool_calls] == ["call_1", "call_2"]
    assert [message.text for message in more] == ["Sunny.", "And warm."]


def test_an_answer_can_be_sent_back() -> None:
    first = response(
        f"hm</think>So:<tool_call>{json.dumps({'name': 'weather'})}</tool_call>", "stop", input="x<think>", tools=[TOOL]
    )
    back = [{"role": "user", "content": "x"}, *(item.model_dump(exclude_none=True) for item in first.output)]
    _, turn = chat(input=back).messages
    assert (turn.reasoning_content, turn.text) == ("hm", "So:")
    assert turn.tool_calls is not None


def test_a_response_says_what_was_thought_said_and_called() -> None:
    called = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\0'
    labels = {"metadata": {"a": "b"}, "user": "u", "tool_choice": "auto", "parallel_tool_calls": False}
    found = response(f"hm</think>So: {called}", "stop", input="x<think>", tools=[TOOL], **labels)
    thought, message, call = found.output
    assert (found.status, found.incomplete_details, found.metadata) == ("completed", None, {"a": "b"})
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "hm"
    assert message.type == "message"
    assert found.output_text == "So:"
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Rome"}', "completed")
    assert found.usage is not None
    assert found.usage.output_tokens_details.reasoning_tokens == len("hm</think>")
    assert found.tools[0].type == "function"


def test_a_response_that_was_cut_off_is_incomplete() -> None:
    found = response("hello", max_output_tokens=5)
    assert found.incomplete_details is not None
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (message,) = found.output
    assert message.type == "message"
    assert (found.output_text, message.status) == ("hello", "incomplete")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"store": True}, "store", "not stored"),
        ({"frobnicate": 1}, "frobnicate", "Unknown parameter"),
        ({"messages": []}, "messages", "Unknown parameter"),
        ({"input": None}, "input", "Missing"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "items here are objects of type message"),
        ({"input": [5]}, "input[0]", "items here are objects"),
        ({"input": [{"role": "user"}]}, "input[0].content", "Missing"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "'input_image' parts are not supported",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "Missing"),
        ({"input": [CALL | {"arguments": "["}]}, "input[0].arguments", "a JSON object"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "no tools of type 'web_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name", "Missing"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "is called 'x'"),
        ({"truncation": "auto"}, "truncation", "'disabled'"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "at most 0 items"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'json_schema'"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "'text.format.name'"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_own_name(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert said in caught.value.message


def test_lines_of_a_batch_ask_for_responses(farm: Farm) -> None:
    farm.work()
    bodies: dict[str, dict[str, Any]] = {
        "text": {"input": "hi", "instructions": "Be terse."},
        "twin": {"input": "hi", "metadata": {"a": "1"}, "temperature": 0},
        "other twin": {"input": "hi", "metadata": {"a": "2"}, "temperature": 0},
        "long": {"input": "x" * 5000},
        "effort": {"input": "hi", "text": {"verbosity": "high"}, "reasoning": {"effort": "low"}},
        "state": {"input": "hi", "conversation": "c"},
        "chat": {"input": "hi", "max_tokens": 5},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": RESPONSES, "body": {"model": MODEL, **body}}
        for name, body in bodies.items()
    ]
    raw = "\n".join(map(json.dumps, lines)).encode()
    file = create_file(farm.backend, filename="in.jsonl", purpose="batch", chunks=[raw])
    batch = create_batch(farm.backend, input_file_id=file.id, endpoint=RESPONSES, completion_window="24h")
    output, errors = farm.results(batch)
    found = {line["custom_id"]: Response.model_validate(line["response"]["body"], strict=True) for line in output}
    assert found["text"].output_text == "system: Be terse.\nuser: hi"
    assert [found[name].metadata for name in ("twin", "other twin")] == [{"a": "1"}, {"a": "2"}]
    assert found["effort"].output_text.endswith("user: hi")
    assert {line["custom_id"]: line["response"]["body"]["error"]["param"] for line in errors} == {
        "long": "input",
        "state": "conversation",
        "chat": "max_tokens",
    }
