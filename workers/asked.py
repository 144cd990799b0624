"""What a request asks beside its prompt, as templates and engines are told: found out once for lines that are alike.

Knows nothing of how many tokens there is room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from ..engine.refusals import find_fault
from ..engine.request import ModelInfo, SamplingParams
from ..jobs.errors import UserError
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from .chats import rendering_of
from .grammars import grammar_of
from .parsing.style import Style
from .prompt_logprobs import num_scores
from .rendering import PLAINLY, Rendering
from .thought_grammars import after_thought
from .tool_grammars import grammar_of_tools

Body = ChatCompletionRequest | CompletionRequest


class Words(Protocol):
    """What is asked of a tokenizer here."""

    def encode_words(self, words: Sequence[str]) -> Sequence[Sequence[int]]:
        """The ids of pieces of text."""


class Asked:
    """Made of any of the requests that are alike. Everything raises UserError, every time, for what cannot be had."""

    def __init__(self, body: Body, *, words: Words, info: ModelInfo, style: Style) -> None:
        self._body, self._words, self._info, self._style = body, words, info, style
        self._params: dict[tuple[int, str | None], SamplingParams] = {}

    @cached_property
    def rendering(self) -> Rendering:
        """How a conversation is to be written down."""
        return rendering_of(self._body, self._style) if isinstance(self._body, ChatCompletionRequest) else PLAINLY

    def grammar(self, *, thinks: bool, has_thought: bool) -> str | None:
        """What the text must follow behind a prompt that ends within a thought, or after one; None where it is free."""
        grammar = self._grammar
        if grammar is None or has_thought or not isinstance(self._body, ChatCompletionRequest):
            return grammar
        return after_thought(grammar, self._style, thinks=thinks)

    def params(self, max_tokens: int, grammar: str | None) -> SamplingParams:
        """How a sequence is drawn: one object for equal ones, which is sent to the engine once."""
        known = self._params.get((max_tokens, grammar))
        if known is None:
            known = self._params[max_tokens, grammar] = self._checked(self._drawn(max_tokens, grammar))
        return known

    @cached_property
    def _grammar(self) -> str | None:
        """A shape, or calls that must be made, which come first."""
        calls = grammar_of_tools(self._body, self._style) if isinstance(self._body, ChatCompletionRequest) else None
        return calls or grammar_of(self._body)

    @cached_property
    def bad_words(self) -> tuple[tuple[int, ...], ...]:
        """Each word's tokens, at the beginning of a text and after a space.

        vLLM leaves the second out where it has more or fewer tokens, and lets such words through.
        """
        words = [word.lstrip() for word in self._body.bad_words]
        encoded = self._words.encode_words([f"{space}{word}" for word in words for space in ("", " ")])
        return tuple(dict.fromkeys(map(tuple, encoded)))

    def _drawn(self, max_tokens: int, grammar: str | None) -> SamplingParams:
        body = self._body
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=max(body.top_k, 0),
            min_p=body.min_p,
            seed=body.seed,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            stop=tuple(body.stop),
            stop_token_ids=tuple(known_tokens(body.stop_token_ids, "stop_token_ids", self._info)),
            ignore_eos=body.ignore_eos,
            logprobs=body.num_logprobs,
            logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
            allowed_token_ids=tuple(body.allowed_token_ids or ()),
            bad_words_token_ids=self.bad_words,
            grammar=grammar,
            prompt_logprobs=num_scores(body),
        )

    def _checked(self, params: SamplingParams) -> SamplingParams:
        fault = find_fault(params, self._info)
        if fault is not None:
            message = f"Invalid value for '{fault.field}': {fault.reason}."
            raise UserError(message, param=fault.field, code="invalid_value")
        return params


def known_tokens(tokens: list[int], param: str, info: ModelInfo) -> list[int]:
    """The same tokens. Raises UserError for one that the model does not have."""
    if max(tokens, default=0) >= info.vocab_size:
        message = f"Invalid value for '{param}': token {max(tokens)} is not in the model's vocabulary."
        raise UserError(f"{message} It has {info.vocab_size} tokens.", param=param, code="invalid_value")
    return tokens
