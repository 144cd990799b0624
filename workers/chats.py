"""From a chat request to what a chat template is given, and clear refusals of what the model's template cannot take.

Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

from ..jobs.errors import UserError
from ..jobs.messages import Message, ToolCall
from ..jobs.requests import ChatCompletionRequest
from ..jobs.strict import json_object
from .parsing.style import Style
from .rendering import Rendering


def messages_of(body: ChatCompletionRequest) -> list[dict[str, Any]]:
    """The messages in the shape that templates know."""
    return [_message(message) for message in body.messages]


def rendering_of(body: ChatCompletionRequest, style: Style) -> Rendering:
    """How the request wants its messages written down. Raises UserError for what the template has no use for."""
    _check_template(body, style)
    tools = tuple(tool.model_dump(exclude_none=True) for tool in body.offered)
    if body.tools:
        _check_tools(body, style)
    for name in body.template_options:
        if not style.knows(name, body.chat_template):
            param = name if name in ("reasoning_effort", "verbosity") else f"chat_template_kwargs.{name}"
            raise UserError(
                f"The model's chat template has no use for '{name}'; remove it.",
                param=param,
                code="unsupported_parameter",
            )
    return Rendering(
        tools=tools,
        template=body.chat_template,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        options=body.template_options,
    )


def _check_template(body: ChatCompletionRequest, style: Style) -> None:
    if body.chat_template is not None and not style.trusts_templates:
        message = "A request may not bring its own chat template here (PRESSRUN_TRUST_REQUEST_CHAT_TEMPLATE)."
        raise UserError(message, param="chat_template", code="unsupported_parameter")


def _check_tools(body: ChatCompletionRequest, style: Style) -> None:
    if not style.knows("tools", body.chat_template):
        message = "The model's chat template knows no tools; remove 'tools'."
        raise UserError(message, param="tools", code="unsupported_parameter")
    if style.tools is None:
        message = "It is not known how the model writes its calls of tools; set PRESSRUN_TOOL_CALL_PARSER."
        raise UserError(message, param="tools", code="unsupported_parameter")


def _message(message: Message) -> dict[str, Any]:
    # OpenAI's newer name for the same role; templates know only the older one.
    role = "system" if message.role == "developer" else message.role
    kept = ("name", "tool_call_id", "reasoning_content")
    named = {name: getattr(message, name) for name in kept if getattr(message, name) is not None}
    calls = [_call(call) for call in message.tool_calls or ()]
    return {"role": role, "content": message.text} | named | ({"tool_calls": calls} if calls else {})


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates write arguments as JSON themselves."""
    function = {"name": call.function.name, "arguments": json_object(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}
