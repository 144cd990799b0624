"""A whole answer as the `response` of `/v1/responses`. Knows nothing of how the request was run."""

from __future__ import annotations

from typing import Any

from ..jobs.ids import passing_id
from ..jobs.records import Usage
from ..jobs.requests import Sampled
from ..jobs.response_objects import (
    Item,
    Status,
    begun,
    call_item,
    ended,
    message_item,
    message_part,
    thought_item,
    thought_part,
    usage_fields,
)
from ..jobs.response_requests import ResponsesRequest
from .deltas import ToolCallDelta
from .said import Choice, Said


def response_object(asked: ResponsesRequest, drawn: Sampled, choice: Choice, usage: Usage) -> dict[str, Any]:
    """OpenAI's object. One that was cut off is `incomplete`. `drawn` is the request as it was run."""
    status: Status = "incomplete" if choice.finish_reason == "length" else "completed"
    sampling = {"temperature": drawn.temperature, "top_p": drawn.top_p}
    return ended(begun(asked, sampling), _output(choice.said, status), usage_fields(usage), status)


def _output(said: Said, status: Status) -> list[Item]:
    """The items in the order in which they were begun.

    A thought ends where anything follows it, a call is told when it is whole, and a message may go on to the end.
    """
    speaks = bool(said.content) or not (said.thoughts or said.calls)
    items: list[Item] = []
    if said.thoughts:
        end = "completed" if speaks or said.calls else status
        items.append(thought_item(passing_id("rs_"), [thought_part(said.thoughts)], end))
    items += map(_call, said.calls[: said.num_calls_first])
    if speaks:
        items.append(message_item(passing_id("msg_"), [message_part(said.content)], status))
    items += map(_call, said.calls[said.num_calls_first :])
    return items


def _call(call: ToolCallDelta) -> Item:
    return call_item(passing_id("fc_"), call.id or "", call.name or "", call.arguments, "completed")
