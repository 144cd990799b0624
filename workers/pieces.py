"""Pieces of one choice of an answer, put together."""

from __future__ import annotations

from dataclasses import replace

from ..engine.request import Output


def joined(earlier: Output | None, output: Output) -> Output:
    """The pieces of a choice so far, which are used up, with one more, which stays as it is."""
    if earlier is None:
        logprobs = None if output.logprobs is None else list(output.logprobs)
        return replace(output, token_ids=list(output.token_ids), logprobs=logprobs)
    earlier.token_ids.extend(output.token_ids)
    if earlier.logprobs is not None:
        earlier.logprobs.extend(output.logprobs or ())
    return replace(
        output,
        token_ids=earlier.token_ids,
        logprobs=earlier.logprobs,
        num_cached_tokens=max(earlier.num_cached_tokens, output.num_cached_tokens),
    )
