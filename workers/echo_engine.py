"""A stand-in for the engine that answers at once with the prompt, for tests and measurements of the service.

A token is a byte of UTF-8. Streams get one token a step. Sampling parameters other than `max_tokens` change nothing in
an echo.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Any

from ..engine.request import (
    Attend,
    Embedding,
    Lifetime,
    Load,
    ModelInfo,
    Output,
    PromptLogprob,
    Request,
    TokenLogprob,
)
from .rendering import PLAINLY, Rendering

PAGE_SIZE = 16
NUM_PAGES = 2**20
EMBEDDING_SIZE = 8


class EchoEngine:
    """Finishes at most `max_num_seqs` requests a step, or gives as many streams a token; a step takes `step_s`."""

    def __init__(self, *, max_model_len: int = 131072, max_num_seqs: int = 256, step_s: float = 0.0) -> None:
        self.info = ModelInfo(max_model_len=max_model_len, vocab_size=256, embedding_size=EMBEDDING_SIZE)
        self.max_num_seqs = max_num_seqs
        self.step_s = step_s
        self._arrivals = count()
        self._waiting: list[tuple[int, int, Request]] = []
        self._arrived_at: dict[str, float] = {}
        self._streamed: dict[str, int] = {}  # Tokens of a stream that have been given.
        self._num_prompt_tokens = self._num_generated_tokens = 0

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            heapq.heappush(self._waiting, (request.priority, next(self._arrivals), request))
            self._arrived_at[request.id] = time.monotonic()

    def abort(self, ids: Iterable[str]) -> None:
        gone = set(ids)
        for id in gone:
            self._arrived_at.pop(id, None)
            self._streamed.pop(id, None)
        self._waiting = [entry for entry in self._waiting if entry[2].id not in gone]
        heapq.heapify(self._waiting)

    def has_work(self) -> bool:
        return bool(self._waiting)

    def step(self, attend: Attend | None = None) -> list[Output]:
        # It is short, so that nobody is attended to meanwhile.
        if self.step_s:
            time.sleep(self.step_s)
        size = min(self.max_num_seqs, len(self._waiting))
        outputs = []
        for priority, arrival, request in [heapq.heappop(self._waiting) for _ in range(size)]:
            outputs.append(self._next_token(request) if request.stream else self._answer(request))
            if outputs[-1].finish_reason is None:
                heapq.heappush(self._waiting, (priority, arrival, request))
        return outputs

    def load(self) -> Load:
        return Load(
            num_rows=self.max_num_seqs,
            num_running=len(self._streamed),
            num_waiting=len(self._waiting),
            num_free_pages=NUM_PAGES,
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            num_preemptions=0,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=0,
            num_generated_tokens=self._num_generated_tokens,
        )

    def _next_token(self, request: Request) -> Output:
        """One more token of a stream."""
        place = self._streamed.get(request.id, 0)
        length = min(len(request.prompt), request.params.max_tokens)
        if place + 1 >= length:
            self._streamed.pop(request.id, None)
            whole = self._answer(request)
            return replace(whole, token_ids=whole.token_ids[place:], logprobs=whole.logprobs and whole.logprobs[place:])
        self._streamed[request.id] = place + 1
        token = request.prompt[place]
        num_top = request.params.logprobs
        return Output(
            id=request.id, token_ids=[token], logprobs=None if num_top is None else [_certain(token, num_top)]
        )

    def _answer(self, request: Request) -> Output:
        params = request.params
        if request.embedding is not None:
            return self._embed(request, request.embedding)
        tokens = list(request.prompt[: params.max_tokens])
        self._num_prompt_tokens += len(request.prompt)
        self._num_generated_tokens += len(tokens)
        return Output(
            id=request.id,
            token_ids=tokens,
            # All of it, or as much as was allowed: there is no token that ends a sequence.
            finish_reason="length",
            logprobs=None if params.logprobs is None else [_certain(token, params.logprobs) for token in tokens],
            prompt_logprobs=None if params.prompt_logprobs is None else _read(request.prompt, params.prompt_logprobs),
            lifetime=self._lifetime(request, len(tokens)),
        )

    def _embed(self, request: Request, asked: Embedding) -> Output:
        """How often bytes of each kind come, as a stand-in for what they mean."""
        self._num_prompt_tokens += len(request.prompt)
        counts = [0.0] * EMBEDDING_SIZE
        for token in request.prompt:
            counts[token % EMBEDDING_SIZE] += 1
        counts = counts[: asked.dimensions]
        length = math.hypot(*counts) or 1.0
        return Output(
            id=request.id,
            token_ids=[],
            finish_reason="stop",
            embedding=array("f", [count / length for count in counts]).tobytes(),
            lifetime=self._lifetime(request, 0),
        )

    def _lifetime(self, request: Request, num_tokens: int) -> Lifetime:
        now = time.monotonic()
        return Lifetime(
            arrived_at=self._arrived_at.pop(request.id),
            admitted_at=now,
            first_token_at=now,
            ended_at=now,
            num_prompt_tokens=len(request.prompt),
            num_generated_tokens=num_tokens,
        )


def _certain(token: int, num_top: int) -> TokenLogprob:
    return TokenLogprob(token_id=token, logprob=0.0, top=((token, 0.0),)[:num_top])


def _read(prompt: Sequence[int], num_top: int) -> list[PromptLogprob]:
    return [PromptLogprob(token_id=t, logprob=0.0, rank=1, top=((t, 0.0),)[:num_top]) for t in prompt[1:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoFactory:
    """Builds an echo engine in the engine's process."""

    max_model_len: int = 131072
    max_num_seqs: int = 256
    step_s: float = 0.0

    def __call__(self) -> EchoEngine:
        return EchoEngine(max_model_len=self.max_model_len, max_num_seqs=self.max_num_seqs, step_s=self.step_s)


class ByteTokenizer:
    """Bytes for tokens: as fast as a tokenizer can be. A conversation is written down with all that is asked of it."""

    chat_template = "tools enable_thinking reasoning_effort verbosity"
    special_tokens: Mapping[str, int] = MappingProxyType({})

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Sequence[int]]:
        return [text.encode() for text in texts]

    def encode_words(self, words: Sequence[str]) -> list[Sequence[int]]:
        return self.encode(words)

    def chat(self, messages: Sequence[dict[str, Any]], how: Rendering = PLAINLY) -> Sequence[int]:
        return "\n".join([*_told(how), *map(_written, messages)]).encode()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> str:
        return bytes(token_ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def _told(how: Rendering) -> list[str]:
    """All that is not as usual."""
    if how == PLAINLY:
        return []
    given = asdict(how)
    return [f"{name}: {json.dumps(given[name])}" for name, usual in asdict(PLAINLY).items() if given[name] != usual]


def _written(message: dict[str, Any]) -> str:
    more = {name: value for name, value in message.items() if name not in ("role", "content", "name")}
    return f"{message['role']}: {message['content']}{json.dumps(more) if more else ''}"
