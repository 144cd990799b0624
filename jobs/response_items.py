"""The input of a `/v1/responses` request: items of four kinds, and the chat messages that they amount to.

What an answer's `output` holds may be sent back as it is. Knows nothing of the request around the input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from .messages import Arguments
from .strict import Empty, Strict, Text, missing, without_media

Status = Literal["in_progress", "completed", "incomplete"]
MEDIA = {"input_image", "input_file", "input_audio"}
KINDS = {
    "message": "a-message",  # No word of Python's, so that no error's path holds it.
    "function_call": "a-call",
    "function_call_output": "an-output",
    "reasoning": "a-thought",
}


class Piece(Strict):
    """A part of a message's content."""

    type: Annotated[Literal["input_text", "output_text", "refusal"], without_media(MEDIA)]
    text: Text | None = Field(None, validate_default=True)
    refusal: Text | None = Field(None, validate_default=True)
    annotations: Empty = Field([])
    logprobs: Empty | None = None

    @field_validator("text", "refusal")
    @classmethod
    def _its_own_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "type" in info.data and (info.data["type"] == "refusal") == (info.field_name == "refusal") and value is None:
            raise missing()
        return value

    @property
    def said(self) -> str:
        return (self.refusal if self.type == "refusal" else self.text) or ""


Content = Text | Annotated[list[Piece], Field(fail_fast=True)]


class _Item(Strict):
    """What all items may carry from the answer that they come from."""

    id: Text | None = None
    status: Status | None = None


class MessageItem(_Item):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(_Item):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: Text = Field(min_length=1)
    name: Text = Field(min_length=1)
    arguments: Arguments


class OutputItem(_Item):
    """What a call came to."""

    type: Literal["function_call_output"]
    call_id: Text = Field(min_length=1)
    output: Content


class ReasoningText(Strict):
    """A piece of a thought."""

    type: Literal["reasoning_text"]
    text: Text


class ThoughtItem(_Item):
    """What the assistant thought before it answered; in clear only."""

    type: Literal["reasoning"]
    summary: Empty = Field([])
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    encrypted_content: None = None


def _kind(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return KINDS.get(kind) if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("a-message")]
    | Annotated[CallItem, Tag("a-call")]
    | Annotated[OutputItem, Tag("an-output")]
    | Annotated[ThoughtItem, Tag("a-thought")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message=f"items here are objects of type {', '.join(KINDS)}",
    ),
]


def messages_of_items(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Chat messages: what the assistant thought, said and called in a row is one of them."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] = {}  # The assistant's, to which more may come.
    for item in items:
        role = item.role if isinstance(item, MessageItem) else "tool" if isinstance(item, OutputItem) else "assistant"
        added = _added(item, turn)
        if role == "assistant" and turn and not (added.keys() & turn.keys() - {"role", "tool_calls"}):
            turn.update(added)
            continue
        turn = added if role == "assistant" else {}
        messages.append(added)
    return messages


def _added(item: Item, turn: dict[str, Any]) -> dict[str, Any]:
    """The message that an item makes, or the fields that it adds to the assistant's turn."""
    if isinstance(item, MessageItem):
        return {"role": item.role, "content": _text(item.content)}
    if isinstance(item, OutputItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    if isinstance(item, ThoughtItem):
        return {"role": "assistant", "reasoning_content": "".join(part.text for part in item.content or ())}
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [*turn.get("tool_calls", ()), call]}


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(piece.said for piece in content)
