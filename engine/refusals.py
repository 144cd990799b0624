"""Why a model cannot draw as some sampling parameters ask, in words for whoever asked.

Of what constrains the tokens only; lengths are the engine's to judge. Knows nothing of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from .request import Embedding, ModelInfo, SamplingParams

# Bounds what the engine keeps of a word, and compares with what was generated last.
MAX_BAD_WORD_TOKENS = 32
HEADLESS = "the model was saved without its head, and gives embeddings only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A field, and what is wrong with it."""

    field: str
    reason: str


def find_fault(params: SamplingParams, info: ModelInfo) -> Fault | None:
    """What keeps the model from drawing as asked, None if nothing does.

    A row must always be left with a token to draw, whatever it has generated. So a bad word's last token and, with
    min_tokens, all that would end the sequence count as forbidden throughout.
    """
    if params.grammar is not None and (fault := _grammar_fault(params)) is not None:
        return fault
    if not params.is_constrained:
        return None
    words = params.bad_words_token_ids
    biased = [token for token, _ in params.logit_bias]
    asked = {
        "logit_bias": biased,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": [token for word in words for token in word],
    }
    for field, tokens in asked.items():
        unknown = [token for token in tokens if not 0 <= token < info.vocab_size]
        if unknown:
            reason = f"token {unknown[0]} is not in the model's vocabulary, which has {info.vocab_size} tokens"
            return Fault(field=field, reason=reason)
    wrong = [len(word) for word in words if not 1 <= len(word) <= MAX_BAD_WORD_TOKENS]
    if wrong:
        return Fault(field="bad_words", reason=f"one has {wrong[0]} tokens, and 1 to {MAX_BAD_WORD_TOKENS} are allowed")
    return _nothing_left(params, info)


def embedding_fault(asked: Embedding, info: ModelInfo) -> str | None:
    """What keeps the model from giving the embedding that is asked for, in words; None if nothing does."""
    if not info.embedding_size:
        return "the model gives no embeddings (PRESSRUN_POOLING)"
    if asked.dimensions is not None and not 1 <= asked.dimensions <= info.embedding_size:
        return f"dimensions must be from 1 to {info.embedding_size}, not {asked.dimensions}"
    return None


def _grammar_fault(params: SamplingParams) -> Fault | None:
    """Where a grammar ends, the token that ends the sequence is all that is left."""
    reason = "a grammar says itself where the text may end: leave out one of them"
    if params.min_tokens:
        return Fault(field="min_tokens", reason=reason)
    if params.ignore_eos:
        return Fault(field="ignore_eos", reason=reason)
    return None


def _nothing_left(params: SamplingParams, info: ModelInfo) -> Fault | None:
    forbidden = {word[-1] for word in params.bad_words_token_ids}
    if params.min_tokens:
        forbidden |= params.ending_ids(info.eos_token_ids)
    if params.allowed_token_ids and forbidden.issuperset(params.allowed_token_ids):
        reason = "each of them ends one of the bad_words, or ends the sequence before min_tokens: allow one more"
        return Fault(field="allowed_token_ids", reason=reason)
    if len(forbidden) >= info.vocab_size:
        return Fault(field="bad_words", reason="they leave no token that may be drawn")
    return None
