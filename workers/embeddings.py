"""Embedding requests: from a body to prompts for the engine, and from its vectors to the body of the answer.

Knows nothing of Redis, nor of how a prompt becomes a vector.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from ..engine.refusals import embedding_fault
from ..engine.request import Embedding, ModelInfo, Output
from ..jobs.embeddings import EmbeddingRequest
from ..jobs.errors import UserError
from ..jobs.records import Usage

DIGITS = 9  # So many tell any two float32 apart.
# In one answer: a line of thousands of long vectors would fill a worker's memory, and Redis.
MAX_NUMBERS = 2**20


def asked_of(body: EmbeddingRequest, info: ModelInfo) -> Embedding:
    """What the engine is asked for. Raises UserError where the model cannot give it."""
    if not info.embedding_size:
        message = f"The model `{body.model}` gives no embeddings. Its service has PRESSRUN_POOLING=none, or the model's"
        raise UserError(f"{message} folder names a pooling that is not supported.", param="model", code="invalid_value")
    asked = Embedding(dimensions=body.dimensions)
    fault = embedding_fault(asked, info)
    if fault is not None:
        raise UserError(f"Invalid value for 'dimensions': {fault}.", param="dimensions", code="invalid_value")
    return asked


def check_size(prompts: Sequence[Sequence[int]], asked: Embedding, info: ModelInfo) -> None:
    """Raise UserError where an input does not fit, or the answer would be too large.

    In the context a place is left for the token that ends a sequence in the engine.
    """
    size = asked.dimensions or info.embedding_size
    if len(prompts) * size > MAX_NUMBERS:
        message = f"Invalid value for 'input': {len(prompts)} embeddings of {size} dimensions are more than the"
        message += f" {MAX_NUMBERS} numbers that an answer may hold. Send fewer inputs at a time."
        raise UserError(message, param="input", code="invalid_value")
    most, longest = info.max_model_len - 1, max(map(len, prompts))
    if min(map(len, prompts)) < 1:
        raise UserError("Each input must hold at least one token.", param="input", code="invalid_value")
    if longest > most:
        message = f"This model embeds at most {most} tokens. However, an input has {longest} tokens."
        raise UserError(f"{message} Please reduce its length.", param="input", code="context_length_exceeded")


def embedding_answer(
    body: EmbeddingRequest, prompts: Sequence[Sequence[int]], outputs: Sequence[Output]
) -> tuple[dict[str, Any], Usage]:
    """The response body, and what the line used."""
    num_tokens = sum(map(len, prompts))
    data = [
        {"object": "embedding", "index": place, "embedding": _shown(output, body.encoding_format)}
        for place, output in enumerate(outputs)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    cached = sum(output.num_cached_tokens for output in outputs)
    return (
        {"object": "list", "data": data, "model": body.model, "usage": usage},
        Usage(input_tokens=num_tokens, cached_tokens=cached),
    )


def _shown(output: Output, encoding: str) -> str | list[float]:
    assert output.embedding is not None
    if encoding == "base64":
        return base64.b64encode(output.embedding).decode()
    values = array("f", output.embedding)
    if sys.byteorder == "big":
        values.byteswap()
    return [float(f"{value:.{DIGITS}g}") for value in values]
