"""Token ids, and the fields that favour or forbid single ones: their limits, with errors that name the entry.

OpenAI's `logit_bias`, vLLM's `allowed_token_ids` and `bad_words`. Knows nothing of vocabularies: which ids and words a
model has is the worker's to say.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from .invalid import whole_text

MAX_INT = 2**31 - 1  # What an engine's arrays hold.
# As in vLLM: what a row of the engine keeps at most.
MAX_TOKEN_IDS, MAX_BAD_WORDS = 1024, 128
# Counted in characters here; the worker counts tokens.
MAX_BAD_WORD = 256
LARGEST_BIAS = 100
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


def _checked_biases(value: Any) -> Any:
    """The same object. Checked before pydantic looks at its entries, whose names it would not tell."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"it has {len(value)} entries, more than the {MAX_TOKEN_IDS} allowed")
    for token, bias in value.items():
        _check_bias(token, bias)
    return value


def _check_bias(token: Any, bias: Any) -> None:
    if not isinstance(token, str) or not _TOKEN_ID.fullmatch(token) or int(token) > MAX_INT:
        raise ValueError(f"its keys must be token ids such as '50256', not {str(token)[:40]!r}")
    if type(bias) not in (int, float) or not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
        raise ValueError(f"the bias of token {token} must be a number from -{LARGEST_BIAS} to {LARGEST_BIAS}")


def _no_blank(value: str) -> str:
    """The same word. A blank one would forbid every space."""
    if not value.strip():
        raise ValueError("it must not be blank")
    return whole_text(value)


TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# The first finding is enough: a line of a million wrong elements must not become a million findings.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
LogitBias = Annotated[dict[str, float], BeforeValidator(_checked_biases)]
AllowedTokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
BadWords = Annotated[
    list[Annotated[str, Field(max_length=MAX_BAD_WORD), AfterValidator(_no_blank)]],
    Field(max_length=MAX_BAD_WORDS, fail_fast=True),
]
