"""From the tokens of a stream to what its reader is told of every choice, as soon as it is certain.

A piece of text is passed on once no character of it is in half, and no stop string may begin in it. What is left when
a choice ends is what `responses.py` makes of the whole, without what was passed on; so a stream says what the whole
answer would have said. Knows nothing of where the pieces go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.request import Output, TokenLogprob
from ..jobs.embeddings import EmbeddingRequest
from ..jobs.records import RESPONSES
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from .deltas import Delta, ToolCallDelta
from .pieces import joined
from .prompts import Prepared, Tokenizer
from .responses import answer, chat_finish_reason, chat_logprobs, choice_of, prompt_texts, text_logprobs

HALF = "\ufffd"  # What a decoder makes of bytes that are no character, or not yet.
Row = tuple[int, dict[str, Any], dict[str, Any] | None, str | None]  # A choice's place, delta, logprobs and end.


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What has become certain of a choice; `finish_reason` is set on the last one."""

    text: str
    logprobs: list[TokenLogprob] | None
    finish_reason: str | None = None


class ChoiceText:
    """The text of one choice, piece by piece."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        assert not isinstance(prepared.body, EmbeddingRequest), "an embedding has no text"
        self._body = prepared.body
        self._kept = prepared.kept_tokens
        self._tokenizer = tokenizer
        self._whole: Output | None = None
        self._text = ""
        self._num_said = 0  # Characters of the text.
        self._num_told = 0  # Tokens whose log-probabilities have been told.
        self._window, self._read = 0, 0  # Tokens from which to decode, and those that the text holds.

    def feed(self, output: Output) -> Piece:
        """New tokens."""
        self._whole = joined(self._whole, output)
        if output.finish_reason is not None:
            return self._end(self._whole)
        self._decode(self._whole.token_ids)
        held = _begun_stop(self._text[self._num_said :], self._body.stop)
        text = self._text[self._num_said : len(self._text) - held]
        self._num_said += len(text)
        return Piece(text=text, logprobs=self._logprobs(self._whole.logprobs, self._num_told if held else self._read))

    def _decode(self, tokens: list[int]) -> None:
        """Add the text of new tokens, which depends on those before, unless it ends within a character."""
        skip, keep = self._body.skip_special_tokens, self._kept
        known = self._tokenizer.decode(tokens[self._window : self._read], skip_special_tokens=skip, keep=keep)
        text = self._tokenizer.decode(tokens[self._window :], skip_special_tokens=skip, keep=keep)
        if not text.endswith(HALF):
            self._text += text[len(known) :]
            self._window, self._read = self._read, len(tokens)

    def _end(self, whole: Output) -> Piece:
        choice = choice_of(self._body, whole, self._tokenizer, self._kept)
        logprobs = self._logprobs(choice.logprobs, len(choice.logprobs or ()))
        return Piece(text=choice.text[self._num_said :], logprobs=logprobs, finish_reason=choice.finish_reason)

    def _logprobs(self, entries: list[TokenLogprob] | None, until: int) -> list[TokenLogprob] | None:
        if entries is None:
            return None
        told, self._num_told = self._num_told, max(self._num_told, until)
        return entries[told : self._num_told]


class AnswerStream:
    """All choices of a request."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        assert not isinstance(prepared.body, EmbeddingRequest), "an embedding has no text"
        self._prepared, self._body = prepared, prepared.body
        self._tokenizer = tokenizer
        self._texts = [ChoiceText(prepared, tokenizer) for _ in range(prepared.num_choices)]
        self._parsers = [prepared.new_parser() for _ in self._texts]
        self._calls_tools = [False] * prepared.num_choices
        self._offsets = [0] * prepared.num_choices
        self._echoes = _echoes(prepared, tokenizer)

    def feed(self, place: int, output: Output) -> list[Row]:
        """What is to be told now that a choice has new tokens."""
        if output.finish_reason in ("error", "abort"):
            return []  # The whole request ends so.
        piece = self._texts[place].feed(output)
        if isinstance(self._body, ChatCompletionRequest):
            return self._chat_rows(place, piece)
        return self._text_rows(place, piece)

    def usage(self, outputs: Sequence[Output]) -> dict[str, Any] | None:
        """What it used, if that is asked for, as it always is of a response; `outputs` are whole."""
        options = self._body.stream_options
        if self._prepared.line.url != RESPONSES and (options is None or not options.include_usage):
            return None
        usage: dict[str, Any] = answer(self._prepared, outputs, self._tokenizer)[0]["usage"]
        return usage

    def _chat_rows(self, place: int, piece: Piece) -> list[Row]:
        parser = self._parsers[place]
        deltas = parser.feed(piece.text) if piece.text else []
        if piece.finish_reason is not None:
            deltas = [*deltas, *parser.close()]
        self._calls_tools[place] |= any(delta.tool_calls for delta in deltas)
        fields = [_delta_fields(delta) for delta in deltas]
        logprobs = chat_logprobs(piece.logprobs, self._tokenizer) if piece.logprobs else None
        if logprobs and not fields:
            fields = [{"content": ""}]
        rows: list[Row] = [(place, delta, None if i else logprobs, None) for i, delta in enumerate(fields)]
        if piece.finish_reason is not None:
            reason = chat_finish_reason(piece.finish_reason, calls_tools=self._calls_tools[place])
            rows.append((place, {}, None, reason))
        return rows

    def _text_rows(self, place: int, piece: Piece) -> list[Row]:
        echo, self._echoes[place] = self._echoes[place], ""
        text = echo + piece.text
        logprobs = None
        if piece.logprobs:
            logprobs = text_logprobs(piece.logprobs, self._tokenizer, offset=self._offsets[place])
            self._offsets[place] += sum(map(len, logprobs["tokens"]))
        if not text and logprobs is None and piece.finish_reason is None:
            return []
        return [(place, {"text": text}, logprobs, piece.finish_reason)]


def _echoes(prepared: Prepared, tokenizer: Tokenizer) -> list[str]:
    """What each choice begins with before its first token."""
    body = prepared.body
    if not isinstance(body, CompletionRequest) or not body.echo:
        return [""] * prepared.num_choices
    texts = prompt_texts(body, prepared, tokenizer)
    return [texts[place // body.n] for place in range(prepared.num_choices)]


def _delta_fields(delta: Delta) -> dict[str, Any]:
    """A delta as OpenAI writes it: only what is new."""
    fields: dict[str, Any] = {}
    if delta.content:
        fields["content"] = delta.content
    if delta.reasoning_content:
        fields["reasoning_content"] = delta.reasoning_content
    if delta.tool_calls:
        fields["tool_calls"] = [_call_fields(call) for call in delta.tool_calls]
    return fields


def _call_fields(call: ToolCallDelta) -> dict[str, Any]:
    first = {} if call.id is None else {"id": call.id, "type": "function"}
    name = {} if call.name is None else {"name": call.name}
    return {"index": call.index, **first, "function": {**name, "arguments": call.arguments}}


def _begun_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
