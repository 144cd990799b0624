"""How many tokens a request may need, guessed from its body before any tokenizer has seen it.

Four bytes are taken for a token, as is usual for English; what is to be written counts as asked for. Knows neither
models nor templates, and takes any body: what cannot be run is refused elsewhere.
"""

from __future__ import annotations

from typing import Any

from .arranging import prompt_bytes

BYTES_A_TOKEN = 4
UNSAID_OUTPUT = 256  # For a request that does not say how much may be written.


def estimate_tokens(body: dict[str, Any]) -> int:
    """Prompt and answers of a request, in tokens."""
    prompts = _num_prompt_tokens(body)
    wanted = (_count(body.get(name)) for name in ("max_completion_tokens", "max_tokens"))
    output = next((tokens for tokens in wanted if tokens), UNSAID_OUTPUT)
    answers = len(prompts) * (_count(body.get("n")) or 1)
    return sum(prompts) + answers * output


def _num_prompt_tokens(body: dict[str, Any]) -> list[int]:
    """The tokens of each prompt: a completion may have several, as text or as token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], str):
            return [_of_bytes(len(prompt_bytes({"prompt": one}))) for one in prompt]
        return [len(one) for one in prompt] if all(isinstance(one, list) for one in prompt) else [len(prompt)]
    return [_of_bytes(len(prompt_bytes(body)))]


def _of_bytes(size: int) -> int:
    return -(-size // BYTES_A_TOKEN)


def _count(value: Any) -> int:
    """A number of tokens or answers as far as it can be one: what is not is refused when the line runs."""
    return value if isinstance(value, int) and 0 < value < 2**31 else 0
