"""The body of `/v1/responses`, as far as it is about text and keeps no state, and the chat request it amounts to.

What would need state between requests is refused by name. Knows nothing of answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .constraints import MAX_INT
from .errors import UserError
from .generation import Temperature, TopP
from .invalid import invalid_type
from .labels import Labels
from .response_items import Item, MessageItem, messages_of_items
from .strict import JsonObject, Strict, Text, missing, parsed
from .tools import MAX_TOOLS, Function, Name, choice_in_words

UNSERVED = {
    "background", "background_options", "context_management", "conversation", "image", "max_tool_calls", "moderation",
    "previous_response_id", "prompt", "prompt_cache_options", "stream_options", "top_logprobs",
}  # fmt: skip
# What a field is called here and in the chat request.
CHAT_NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}


class FunctionTool(Function):
    """A function on offer; chat has the same fields one object deeper."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _no_other_kind(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] != "function":
            raise ValueError(f"only functions can be offered, no tools of type '{value['type'][:40]}'")
        return value


class Choice(Strict):
    """As chat's, but that the function's name is not one object deeper."""

    type: Literal["none", "auto", "required", "function"]
    name: Name | None = Field(None, validate_default=True)

    @field_validator("name")
    @classmethod
    def _named(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("type") == "function" and value is None:
            raise missing()
        return value


class TextFormat(Strict):
    """Free text, any JSON object, or one by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """What the text of an answer is like."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    """How much a model thinks; summaries are not written."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ResponsesRequest(Labels):
    """A request that is answered by one response."""

    model: str
    input: Text | Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field([])
    tool_choice: Choice = Choice(type="auto", name=None)
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    reasoning: Reasoning = Reasoning()
    truncation: Literal["disabled"] = "disabled"
    include: Annotated[list[Any], Field(max_length=0)] = Field([])
    stream: bool = False
    user: Text | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        return choice_in_words(value)

    @field_validator("tool_choice")
    @classmethod
    def _needs_tools(cls, value: Choice, info: ValidationInfo) -> Choice:
        if value.type in ("required", "function") and not info.data.get("tools", True):
            raise ValueError("it is only allowed when 'tools' are given")
        return value

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value:
            raise ValueError("it must not be empty")
        return value

    def as_chat(self) -> dict[str, Any]:
        """The body of the chat request that asks the same."""
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        instructions = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return {
            "model": self.model,
            "messages": instructions + messages_of_items(items),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "reasoning_effort": self.reasoning.effort,
            "verbosity": self.text.verbosity,
            "response_format": _response_format(self.text.format),
            "stream": self.stream,
            **self._tools(),
        }

    def _tools(self) -> dict[str, Any]:
        if not self.tools:
            return {}
        choice = self.tool_choice
        named = choice.type if choice.name is None else {"type": "function", "function": {"name": choice.name}}
        functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in self.tools]
        return {
            "tools": [{"type": "function", "function": function} for function in functions],
            "tool_choice": named,
            "parallel_tool_calls": self.parallel_tool_calls,
        }


def _response_format(given: TextFormat | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.type != "json_schema":
        return {"type": given.type}
    described = given.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
    return {"type": "json_schema", "json_schema": described}


def parse_responses(body: object) -> ResponsesRequest:
    """The request in `body`. Raises UserError that names the field and the fix."""
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    for name in (name for name in UNSERVED if body.get(name) is not None):
        raise UserError(f"'{name}' is not supported; remove it.", param=name, code="unsupported_parameter")
    return parsed(ResponsesRequest, body)


def in_own_terms(error: UserError) -> UserError:
    """An error that was found in the chat request, about the field of this one."""
    param = error.param or ""
    name = next((name for name in CHAT_NAMES if re.match(rf"{re.escape(name)}(?![\w])", param)), None)
    if name is None or error.code == "unknown_parameter":
        return error  # Of a field that is not in the chat request, the name is the client's own.
    own = CHAT_NAMES[name] + param[len(name) :]
    return UserError(error.message.replace(f"'{param}'", f"'{own}'"), param=own, code=error.code, status=error.status)
