"""The `response` that `/v1/responses` answers with: what it repeats of the request, its items, and how it ends.

Whole answers and the events of streams are made of the same pieces. Knows nothing of where texts come from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .errors import UserError
from .generation import NEUTRAL
from .ids import passing_id
from .records import Usage
from .response_requests import ResponsesRequest

Status = Literal["in_progress", "completed", "incomplete"]
Item = dict[str, Any]


def begun(asked: ResponsesRequest, sampling: Mapping[str, float] = NEUTRAL) -> dict[str, Any]:
    """OpenAI's object, of which nothing is written yet. What is not asked for is drawn by `sampling`."""
    return {
        "id": passing_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **_repeated(asked),
        "temperature": sampling["temperature"] if asked.temperature is None else asked.temperature,
        "top_p": sampling["top_p"] if asked.top_p is None else asked.top_p,
    }


def ended(
    response: dict[str, Any], output: Sequence[Item], usage: dict[str, Any] | None, status: Status
) -> dict[str, Any]:
    """The same response, `completed`, or `incomplete` where it was cut off."""
    whole = status == "completed"
    end = {
        "completed_at": int(time.time()) if whole else None,
        "status": status,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
    }
    return response | end | {"output": list(output), "usage": usage}


def failed(response: dict[str, Any], output: Sequence[Item], error: UserError) -> dict[str, Any]:
    """The same response, which will not be whole. OpenAI has one code for what was the server's fault."""
    why = {"code": "server_error", "message": error.message}
    return response | {"status": "failed", "error": why, "output": list(output)}


def thought_item(id: str, parts: Sequence[dict[str, Any]], status: Status) -> Item:
    """What was thought before the answer."""
    return {"id": id, "type": "reasoning", "summary": [], "content": list(parts), "status": status}


def thought_part(text: str) -> dict[str, Any]:
    """The one piece of a thought."""
    return {"type": "reasoning_text", "text": text}


def message_item(id: str, parts: Sequence[dict[str, Any]], status: Status) -> Item:
    """What was said to the reader."""
    return {"id": id, "type": "message", "role": "assistant", "content": list(parts), "status": status}


def message_part(text: str) -> dict[str, Any]:
    """The one piece of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(id: str, call_id: str, name: str, arguments: str, status: Status) -> Item:
    """A call of a function."""
    fields = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": id, "type": "function_call", **fields, "status": status}


def usage_fields(usage: Usage) -> dict[str, Any]:
    """What it used, in this object's words."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _repeated(asked: ResponsesRequest) -> dict[str, Any]:
    choice = asked.tool_choice
    return {
        "model": asked.model,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "tools": [tool.model_dump() for tool in asked.tools],
        "tool_choice": choice.type if choice.name is None else choice.model_dump(),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "text": {"format": {"type": "text"}} | asked.text.model_dump(by_alias=True, exclude_none=True),
        "reasoning": {"effort": asked.reasoning.effort, "summary": None},
        "truncation": asked.truncation,
        "metadata": asked.metadata or {},
        "prompt_cache_key": asked.prompt_cache_key,
        "safety_identifier": asked.safety_identifier,
        "user": asked.user,
        "service_tier": "default",
        "background": False,
        "previous_response_id": None,
        "store": False,
        "top_logprobs": 0,
    }
