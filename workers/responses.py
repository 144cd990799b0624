"""From an engine's outputs to the body that OpenAI's API would have answered with.

Token ids become text here, once a line is complete. Knows nothing of where the body goes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ..engine.request import Output, TokenLogprob
from ..jobs.embeddings import EmbeddingRequest
from ..jobs.errors import UserError
from ..jobs.ids import passing_id
from ..jobs.lines import answered, refused
from ..jobs.records import RESPONSES, LineResult, Usage
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from ..jobs.response_requests import parse_responses
from .asked import Body
from .embeddings import embedding_answer
from .prompt_logprobs import add_scores
from .prompts import Prepared, Tokenizer
from .response_objects import response_object
from .said import Choice, Said, num_thinking_tokens, said_in


def result_of(prepared: Prepared, outputs: Sequence[Output], tokenizer: Tokenizer) -> LineResult:
    """How a line ended; `outputs` are whole, in the order of its requests."""
    for output in outputs:
        if output.finish_reason in ("error", "abort"):
            message = output.error or "The engine aborted this request."
            return refused(prepared.line, UserError(message, status=500, code="server_error"))
    body, usage = answer(prepared, outputs, tokenizer)
    return answered(prepared.line, body, usage)


def answer(prepared: Prepared, outputs: Sequence[Output], tokenizer: Tokenizer) -> tuple[dict[str, Any], Usage]:
    """The response body of a line that ran, and what it used."""
    body = prepared.body
    if isinstance(body, EmbeddingRequest):
        return embedding_answer(body, prepared.prompts, outputs)
    kept = prepared.kept_tokens
    choices = [choice_of(body, output, tokenizer, kept) for output in outputs]
    chat = isinstance(body, ChatCompletionRequest)
    if chat:
        choices = [_read(prepared, choice) for choice in choices]
    usage = _usage(prepared, outputs, _num_thinking_tokens(prepared, outputs, choices, tokenizer))
    if isinstance(body, CompletionRequest) and body.echo:
        texts = prompt_texts(body, prepared, tokenizer)
        choices = [replace(choice, text=texts[i // body.n] + choice.text) for i, choice in enumerate(choices)]
    if prepared.line.url == RESPONSES:
        return response_object(parse_responses(prepared.line.body), body, choices[0], usage), usage
    fields: dict[str, Any] = {
        "id": passing_id("chatcmpl-" if chat else "cmpl-"),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [
            (_chat_choice if chat else _text_choice)(place, choice, tokenizer) for place, choice in enumerate(choices)
        ],
        "usage": _usage_fields(usage),
        "system_fingerprint": None,
    }
    if isinstance(body, ChatCompletionRequest) and body.service_tier is not None:
        fields["service_tier"] = "default"
    add_scores(fields, body, prepared.prompts, outputs, tokenizer)
    return fields, usage


def _read(prepared: Prepared, choice: Choice) -> Choice:
    """The same choice with what its text means."""
    # Where there are only words, no parser is set to work to find that out.
    said = Said(content=choice.text) if prepared.is_plain else said_in(prepared.new_parser(), choice.text)
    return Choice(text=choice.text, finish_reason=choice.finish_reason, logprobs=choice.logprobs, said=said)


def choice_of(body: Body, output: Output, tokenizer: Tokenizer, keep: Collection[int] = ()) -> Choice:
    """The visible part of a sequence: neither the token that ended it, nor its stop string, unless asked for."""
    tokens = output.token_ids
    by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
    if by_token and not body.include_stop_str_in_output:
        tokens = tokens[:-1]
    text = tokenizer.decode(tokens, skip_special_tokens=body.skip_special_tokens, keep=keep)
    logprobs = None if output.logprobs is None else output.logprobs[: len(tokens)]
    if isinstance(output.stop_reason, str):
        # What stands before min_tokens does not stop a sequence, so there the last one is meant.
        place = (text.rfind if body.min_tokens else text.find)(output.stop_reason)
        if place >= 0:
            text = text[: place + len(output.stop_reason) * body.include_stop_str_in_output]
            logprobs = _within(logprobs, len(text.encode()), tokenizer)
    return Choice(text=text, finish_reason=output.finish_reason or "stop", logprobs=logprobs)


def prompt_texts(body: CompletionRequest, prepared: Prepared, tokenizer: Tokenizer) -> list[str]:
    """What each prompt says: as it was given, or what its tokens stand for."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    given = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    return given or [tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens) for ids in prepared.prompts]


def _within(logprobs: list[TokenLogprob] | None, size: int, tokenizer: Tokenizer) -> list[TokenLogprob] | None:
    """Those of the tokens that begin within the first `size` bytes."""
    if logprobs is None:
        return None
    kept, offset = 0, 0
    while kept < len(logprobs) and offset < size:
        offset += len(tokenizer.token_bytes(logprobs[kept].token_id))
        kept += 1
    return logprobs[:kept]


def _num_thinking_tokens(
    prepared: Prepared, outputs: Sequence[Output], choices: Sequence[Choice], tokenizer: Tokenizer
) -> int:
    if prepared.style.thoughts is None:
        return 0
    return sum(
        num_thinking_tokens(choice.said, output.token_ids, prepared.style, tokenizer)
        for choice, output in zip(choices, outputs, strict=True)
    )


def _usage(prepared: Prepared, outputs: Sequence[Output], num_thinking_tokens: int) -> Usage:
    """A prompt counts once, however many choices it has; as cached counts what was there before the line came."""
    n, cached = prepared.body.n, [output.num_cached_tokens for output in outputs]
    if n > 1:
        cached = [min(cached[at : at + n]) for at in range(0, len(cached), n)]
    return Usage(
        input_tokens=sum(map(len, prepared.prompts)),
        cached_tokens=sum(cached),
        output_tokens=sum([len(output.token_ids) for output in outputs]),
        reasoning_tokens=num_thinking_tokens,
    )


def _usage_fields(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _chat_choice(place: int, choice: Choice, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "index": place,
        "message": _message(choice.said),
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs, tokenizer),
        "finish_reason": chat_finish_reason(choice.finish_reason, calls_tools=bool(choice.said.calls)),
    }


def chat_finish_reason(reason: str, *, calls_tools: bool) -> str:
    """OpenAI's word for how a chat choice ended."""
    return "tool_calls" if calls_tools and reason == "stop" else reason


def _message(said: Said) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in said.calls
    ]
    content = said.content or (None if calls or said.thoughts else "")
    fields: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    fields |= {"tool_calls": calls} if calls else {}
    return fields | ({"reasoning_content": said.thoughts} if said.thoughts else {})


def chat_logprobs(entries: list[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """What a chat choice, or a piece of one, tells of its tokens."""
    return {"content": [_chat_token(entry, tokenizer) for entry in entries], "refusal": None}


def _chat_token(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [_token_fields(token, logprob, tokenizer) for token, logprob in entry.top]
    return _token_fields(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": top}


def _token_fields(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    # JSON has no infinity: a token that cannot be drawn gets OpenAI's stand-in for one.
    return {"token": raw.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}


def _text_choice(place: int, choice: Choice, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = None if choice.logprobs is None else text_logprobs(choice.logprobs, tokenizer)
    return {"index": place, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish_reason}


def text_logprobs(entries: list[TokenLogprob], tokenizer: Tokenizer, *, offset: int = 0) -> dict[str, Any]:
    """What a text choice, or a piece of one that begins `offset` characters behind its start, tells of its tokens."""
    tokens = [_token_fields(entry.token_id, entry.logprob, tokenizer) for entry in entries]
    tops = [[_token_fields(token, logprob, tokenizer) for token, logprob in entry.top] for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{token["token"]: token["logprob"] for token in top} for top in tops],
        "text_offset": offsets,
    }
