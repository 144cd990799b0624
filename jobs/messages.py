"""The messages of a conversation: who says what, which tools were called and what they answered.

OpenAI's five roles, text only: what a text model cannot read is refused by name. What a client gets as an answer it may
send back as it is. Knows nothing of chat templates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from .strict import Empty, Strict, Text, json_object, missing, whole_json, without_media

MAX_CALLS = 128
MEDIA = {"image", "image_url", "input_audio", "audio_url", "video_url", "file"}
# Of a message, beside its role, content and name.
ASSISTANTS = ("tool_calls", "refusal", "reasoning_content", "annotations")


def _spells_an_object(value: str) -> str:
    try:
        whole = json_object(value)
    except ValueError as error:
        raise ValueError("it must be a string that spells a JSON object") from error
    whole_json(whole)
    return value


Arguments = Annotated[Text, AfterValidator(_spells_an_object)]


class Part(Strict):
    """One piece of a message's content: text, or what the assistant said in refusing."""

    type: Annotated[Literal["text", "refusal"], without_media(MEDIA)]
    text: Text | None = Field(None, validate_default=True)
    refusal: Text | None = Field(None, validate_default=True)

    @field_validator("text", "refusal")
    @classmethod
    def _its_own_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", info.field_name if value is not None else None)
        if kind == info.field_name and value is None:
            raise missing()
        if kind != info.field_name and value is not None:
            raise ValueError(f"a part of type '{kind}' has none")
        return value

    @property
    def said(self) -> str:
        return self.text if self.text is not None else self.refusal or ""


class CalledFunction(Strict):
    """Which function the assistant called, and with what: a JSON object in a string."""

    name: Text = Field(min_length=1)
    arguments: Arguments


class ToolCall(Strict):
    """One call of a tool."""

    id: Text = Field(min_length=1)
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: Text | None = Field(None, validate_default=True)
    refusal: Text | None = None
    reasoning_content: Text | None = None
    annotations: Empty | None = None
    content: Text | Annotated[list[Part], Field(fail_fast=True)] | None = Field(None, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value

    @field_validator("tool_call_id")
    @classmethod
    def _tools_say_what_they_answer(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("role") == "tool" and value is None:
            raise missing()
        return value

    @field_validator("content")
    @classmethod
    def _only_the_assistant_may_say_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not any(info.data.get(name) for name in ("tool_calls", "refusal", "reasoning_content")):
            raise missing()
        return value

    @model_validator(mode="after")
    def _what_its_role_has(self) -> Message:
        given = [name for name in ASSISTANTS if getattr(self, name) is not None and self.role != "assistant"]
        given += ["tool_call_id"] * (self.tool_call_id is not None and self.role != "tool")
        if given:
            raise ValueError(f"a message of role '{self.role}' has no '{given[0]}'")
        if self.role != "assistant" and isinstance(self.content, list) and any(one.refusal for one in self.content):
            raise ValueError(f"a message of role '{self.role}' has no part of type 'refusal'")
        return self

    @property
    def text(self) -> str:
        """What is said in it; nothing where it only calls tools."""
        if isinstance(self.content, list):
            return "".join(part.said for part in self.content)
        return self.content if self.content is not None else self.refusal or ""
