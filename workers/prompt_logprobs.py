"""A prompt's own log-probabilities in a response body: vLLM's `prompt_logprobs`, and OpenAI's echo with `logprobs`.

The engine scores a prompt once, with its first choice. Knows nothing of how bodies are made but for these fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..engine.request import Output, PromptLogprob
from ..jobs.errors import UserError
from ..jobs.requests import ChatCompletionRequest, CompletionRequest

Body = ChatCompletionRequest | CompletionRequest
# Of an answer, alternatives included: each is an object of some 60 bytes, in a worker's memory and in Redis.
MAX_SCORES = 2**18
# JSON has no infinity: a token that cannot be drawn gets OpenAI's stand-in for one.
LEAST = -9999.0


class Spelling(Protocol):
    """What tokens stand for."""

    def token_bytes(self, token_id: int) -> bytes: ...


def num_scores(body: Body) -> int | None:
    """How many alternatives the engine is to report beside each token of the prompt; None for no scores."""
    counts = [body.prompt_logprobs, body.logprobs if isinstance(body, CompletionRequest) and body.echo else None]
    return max((count for count in counts if count is not None), default=None)


def check_scores(body: Body, prompts: Sequence[Sequence[int]]) -> None:
    """Raises UserError for more than an answer can hold."""
    count = num_scores(body)
    wanted = 0 if count is None else sum(map(len, prompts)) * body.n * (1 + count)
    if wanted > MAX_SCORES:
        field = "echo" if body.prompt_logprobs is None else "prompt_logprobs"
        message = f"Invalid value for '{field}': {wanted} log-probabilities of prompts would be reported, and at most"
        message += f" {MAX_SCORES} are allowed. Ask for fewer choices, prompts or alternatives."
        raise UserError(message, param=field, code="invalid_value")


def add_scores(
    fields: dict[str, Any],
    body: Body,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Output],
    spelling: Spelling,
) -> None:
    """Add what was asked of prompts to a response body; outputs are in the order of its choices."""
    for place, choice in enumerate(fields["choices"]):
        at = place // body.n
        scored = outputs[at * body.n].prompt_logprobs
        if scored is None:
            continue
        if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
            choice["logprobs"] = _echoed(prompts[at], scored, body.logprobs, choice["logprobs"], spelling)
        if body.prompt_logprobs is not None:
            holder = fields if isinstance(body, ChatCompletionRequest) else choice
            holder["prompt_logprobs"] = [None, *(_listed(one, body.prompt_logprobs, spelling) for one in scored)]


def _listed(one: PromptLogprob, count: int, spelling: Spelling) -> dict[str, dict[str, Any]]:
    """vLLM's: by token id, the token itself and the likeliest."""
    ranked = [(token, logprob, place) for place, (token, logprob) in enumerate(one.top[:count], 1)]
    return {
        str(token): {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": _text(token, spelling)}
        for token, logprob, rank in [*ranked, (one.token_id, one.logprob, one.rank)]
    }


def _echoed(
    prompt: Sequence[int],
    scored: Sequence[PromptLogprob],
    count: int,
    drawn: dict[str, Any],
    spelling: Spelling,
) -> dict[str, Any]:
    """The four lists of a completion's log-probabilities, with those of the prompt in front."""
    tokens = [_text(token, spelling) for token in prompt]
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [{_text(token, spelling): max(value, LEAST) for token, value in one.top[:count]} for one in scored]
    return {
        "tokens": tokens + drawn["tokens"],
        "token_logprobs": [None, *(max(one.logprob, LEAST) for one in scored), *drawn["token_logprobs"]],
        "top_logprobs": [None, *tops, *drawn["top_logprobs"]],
        "text_offset": offsets + [offset + later for later in drawn["text_offset"]],
    }


def _text(token: int, spelling: Spelling) -> str:
    return spelling.token_bytes(token).decode(errors="replace")
