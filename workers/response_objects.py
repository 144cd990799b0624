"""The `response` that `/v1/responses` answers with: what was asked, and what was thought, said and called.

Knows nothing of how the request was run.
"""

from __future__ import annotations

import time
from typing import Any

from ..jobs.ids import passing_id
from ..jobs.records import Usage
from ..jobs.response_requests import ResponsesRequest
from .said import Choice, Said


def response_object(asked: ResponsesRequest, choice: Choice, usage: Usage) -> dict[str, Any]:
    """OpenAI's object. One that was cut off is `incomplete`."""
    now = int(time.time())
    whole = choice.finish_reason != "length"
    return {
        "id": passing_id("resp_"),
        "object": "response",
        "created_at": now,
        "completed_at": now if whole else None,
        "status": "completed" if whole else "incomplete",
        "error": None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "output": _output(choice.said, "completed" if whole else "incomplete"),
        "usage": _usage(usage),
        **_repeated(asked),
    }


def _repeated(asked: ResponsesRequest) -> dict[str, Any]:
    """What the object repeats of the request."""
    choice = asked.tool_choice
    return {
        "model": asked.model,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
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


def _output(said: Said, last_status: str) -> list[dict[str, Any]]:
    """The items in the order in which they were written; only the last may have been cut off."""
    items: list[dict[str, Any]] = []
    if said.thoughts:
        content = [{"type": "reasoning_text", "text": said.thoughts}]
        items.append({"id": passing_id("rs_"), "type": "reasoning", "summary": [], "content": content})
    if said.content or not (said.thoughts or said.calls):
        part = {"type": "output_text", "text": said.content, "annotations": []}
        items.append({"id": passing_id("msg_"), "type": "message", "role": "assistant", "content": [part]})
    for call in said.calls:
        fields = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        items.append({"id": passing_id("fc_"), "type": "function_call"} | fields)
    return [item | {"status": "completed"} for item in items[:-1]] + [items[-1] | {"status": last_status}]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
