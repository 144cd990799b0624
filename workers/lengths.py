"""How long an answer may be: what the request asks for, what the model's defaults say, and what fits.

Knows nothing of how prompts become tokens.
"""

from __future__ import annotations

from ..jobs.errors import UserError
from ..jobs.generation import Defaults
from ..jobs.requests import ChatCompletionRequest
from .asked import Body


def most_tokens(body: Body, num_prompt: int, *, context: int, defaults: Defaults) -> int:
    """Most tokens to write after a prompt of so many. Raises UserError where what is asked for does not fit."""
    room = context - num_prompt
    limit, min_tokens = body.limit, body.min_tokens
    is_too_long = limit is not None and limit > room and _limit_name(body) is not None
    if num_prompt == 0 or room < 1 or min_tokens > room or is_too_long:
        raise _misfit(body, num_prompt, context)
    wanted = defaults.max_tokens if limit is None else limit
    most = room if wanted is None or wanted > room else wanted
    if defaults.most_tokens is not None and most > defaults.most_tokens:
        most = defaults.most_tokens
    if min_tokens > most:
        raise UserError(_too_few(body, most, defaults), param="min_tokens", code="invalid_value")
    return most


def _misfit(body: Body, num_prompt: int, context: int) -> UserError:
    """What does not fit into the context, first of all the prompt itself."""
    what, room = "messages" if isinstance(body, ChatCompletionRequest) else "prompt", context - num_prompt
    if num_prompt == 0:
        return UserError(f"The {what} must hold at least one token.", param=what, code="invalid_value")
    message = f"This model's maximum context length is {context} tokens."
    message += f" However, your {what} resulted in {num_prompt} tokens"
    if room < 1:
        message += f". Please reduce the length of the {what}."
        return UserError(message, param=what, code="context_length_exceeded")
    name, wanted = _limit_name(body), body.limit
    if name is None or wanted is None or wanted <= room:
        name, wanted = "min_tokens", body.min_tokens
    message += f" and '{name}' asks for {wanted}: at most {room} fit."
    return UserError(message, param=name, code="context_length_exceeded")


def _too_few(body: Body, most: int, defaults: Defaults) -> str:
    """Why so many tokens cannot be had, although they fit."""
    least = f"Invalid value for 'min_tokens': {body.min_tokens} is larger than the {most} tokens that"
    if most == defaults.most_tokens:
        return f"{least} an answer has here at most."
    return f"{least} an answer has if 'max_tokens' is left out: give it too."


def _limit_name(body: Body) -> str | None:
    """The field that sets the most tokens to write, if one does."""
    if isinstance(body, ChatCompletionRequest) and body.max_completion_tokens is not None:
        return "max_completion_tokens"
    return "max_tokens" if body.max_tokens is not None else None
