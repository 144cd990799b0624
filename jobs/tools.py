"""The tools that a chat request offers, and which of them the model may, must or must not call.

Knows nothing of how a model writes a call.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from .strict import JsonObject, Strict, Text, missing

MAX_TOOLS = 128
WORDS = ("none", "auto", "required")
Name = Annotated[str, Field(pattern=r"\A[a-zA-Z0-9_-]{1,64}\z")]


class Function(Strict):
    """What can be called. `parameters` is a JSON schema; without it there are none."""

    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type", "object") != "object":
            raise ValueError("arguments are an object: its 'type' must be 'object'")
        return value


class Tool(Strict):
    """Only functions: OpenAI's custom tools take free text, which no template here knows."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The one that must be called."""

    name: Name


def choice_in_words(value: Any) -> Any:
    """One of OpenAI's words for a choice as the object that it stands for; anything else as it is."""
    if isinstance(value, str) and value not in WORDS:
        raise ValueError("it must be 'none', 'auto', 'required' or an object that names a function")
    return {"type": value} if isinstance(value, str) else value


class ToolChoice(Strict):
    """`none`, `auto` and `required` as OpenAI has them; `function` names the one that must be called."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = Field(None, validate_default=True)

    @field_validator("function")
    @classmethod
    def _named(cls, value: NamedFunction | None, info: ValidationInfo) -> NamedFunction | None:
        if info.data.get("type") == "function" and value is None:
            raise missing()
        return value


class Tooled(Strict):
    """The part of a request that is about tools."""

    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("tools")
    @classmethod
    def _different_names(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two functions are called '{twice}'")
        return value

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") != "function":
            raise ValueError("as an object it names a function: {'type': 'function', 'function': {'name': '…'}}")
        return choice_in_words(value)

    @field_validator("tool_choice", "parallel_tool_calls")
    @classmethod
    def _needs_tools(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and "tools" in info.data and not info.data["tools"]:
            raise ValueError("it is only allowed when 'tools' are given")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _known(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        names = [tool.function.name for tool in info.data.get("tools") or ()]
        if value is not None and value.function is not None and names and value.function.name not in names:
            raise ValueError(f"no function in 'tools' is called '{value.function.name}'")
        return value

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model hears of: none of them where it must not call any."""
        must_not = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if must_not else self.tools or []

    @property
    def wanted(self) -> list[Tool]:
        """The tools of which one must be called; none where the model may do without."""
        choice = self.tool_choice
        if choice is None or choice.type in ("none", "auto"):
            return []
        return [tool for tool in self.offered if choice.function is None or tool.function.name == choice.function.name]
