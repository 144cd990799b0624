"""How many tokens a line will take, guessed from its body before any tokenizer sees it.

A token is taken to be four bytes of prompt; an answer is taken to be as long as the model's answers were, but no longer
than the line allows. What a body gets wrong is not judged here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .arranging import prompt_bytes
from .records import COMPLETIONS, EMBEDDINGS

BYTES_PER_TOKEN = 4
DEFAULT_ANSWER_TOKENS = 256.0  # Of a model that has answered nothing yet.
MAX_CHOICES = 128  # A line that asks for more will be refused.
COMPLETION_TOKENS = 16  # OpenAI's default for completions.
MAX_TOKENS = 2**31 - 1  # No line is allowed more.


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTokens:
    """Tokens of a line's prompt and answers: as many as are expected, and as many as it allows, which limits count."""

    expected: float
    asked: float


def line_tokens(endpoint: str, body: Mapping[str, Any], answer_tokens: float = DEFAULT_ANSWER_TOKENS) -> LineTokens:
    """An estimate for one line. `answer_tokens` is how long answers are, as far as is known."""
    if endpoint == EMBEDDINGS:
        inputs = _prompt_tokens({"prompt": body.get("input")})
        return LineTokens(expected=inputs, asked=inputs)
    prompt, limit = _prompt_tokens(body), _limit(endpoint, body)
    num_answers = min(_count(body.get("n")) or 1, MAX_CHOICES) * _num_prompts(body)
    answer = answer_tokens if limit is None else min(limit, answer_tokens)
    longest = DEFAULT_ANSWER_TOKENS if limit is None else min(limit, MAX_TOKENS)
    return LineTokens(expected=prompt + num_answers * answer, asked=prompt + num_answers * longest)


def _limit(endpoint: str, body: Mapping[str, Any]) -> int | None:
    default = COMPLETION_TOKENS if endpoint == COMPLETIONS else None
    names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
    return next((limit for name in names if (limit := _count(body.get(name))) is not None), default)


def _prompt_tokens(body: Mapping[str, Any]) -> float:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            return len(prompt)
        return sum(_prompt_tokens({"prompt": one}) for one in prompt if isinstance(one, str | list))
    tools = body.get("tools")
    return (len(prompt_bytes(dict(body))) + (len(json.dumps(tools)) if tools else 0)) / BYTES_PER_TOKEN


def _num_prompts(body: Mapping[str, Any]) -> int:
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
