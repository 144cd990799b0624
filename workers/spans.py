"""The spans of lines and of online requests, and below each one for each phase in the engine.

A line's lies below its batch's or job's, an online request's below that of the HTTP request. Every job and every online
request has them; of a batch only some lines, because a span for each would be more than what it tells is worth. The
names of attributes are vLLM's. Knows nothing of how spans are sent.

https://github.com/vllm-project/vllm/blob/main/vllm/tracing.py
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

from ..engine.request import Lifetime
from ..jobs.records import Batch, LineResult
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from ..jobs.traces import Place, Span, Traces, Value, parse_traceparent, span_of
from .online import OnlineRequest
from .prompts import Prepared
from .runs import Flying
from .shard import RunningShard

SHARES = 2**32  # As many values as a line's checksum has.


class LineSpans:
    """Call `tell` or `tell_online` with each that has ended. `share` of the lines of batches are told."""

    def __init__(self, traces: Traces, *, worker: str, share: float) -> None:
        self._traces, self._worker, self._share = traces, worker, share
        # From the clock of lifetimes to Unix time.
        self._ahead_ns = time.time_ns() - time.monotonic_ns()

    def tell(self, flying: Flying, result: LineResult) -> None:
        """Tell of a line, if its batch or job is traced and it is one of those that are."""
        assert isinstance(flying.shard, RunningShard)
        batch, since = flying.shard.claim.batch, flying.shard.since
        if not self._traces.is_on or batch.trace is None or not self._is_told(flying, batch):
            return
        parent = span_of(batch)
        if parent is None:
            return
        line, usage = flying.prepared.line, result.usage
        own: dict[str, Value] = {"pressrun.custom_id": line.custom_id, "pressrun.is_twin": flying.is_twin}
        tokens = usage.input_tokens, usage.output_tokens
        attributes = own | self._attributes(flying, f"{batch.id}-{line.index}", tokens)
        self._tell(flying, parent, since, attributes, None if result.error is None else result.error.code)

    def tell_online(self, flying: Flying) -> None:
        """Tell of an online request, if its HTTP request is traced."""
        request = flying.shard
        assert isinstance(request, OnlineRequest)
        parent = parse_traceparent(request.call.trace) if self._traces.is_on else None
        if parent is None:
            return
        prompts, outputs = flying.prepared.prompts, flying.outputs
        tokens = sum(map(len, prompts)), sum(len(output.token_ids) for output in outputs)
        attributes = self._attributes(flying, request.call.id, tokens) | {"pressrun.attempt": request.call.attempt}
        self._tell(flying, parent, request.since, attributes, flying.error)

    def _tell(
        self, flying: Flying, parent: Place, since: float, attributes: dict[str, Value], error: str | None
    ) -> None:
        place = parent.below()
        if not flying.is_twin:
            self._tell_phases(place, _lives(flying))
        self._traces.tell(
            Span(
                name="llm_request",
                place=place,
                parent=parent,
                start_ns=self._unix_ns(since),
                end_ns=time.time_ns(),
                kind="server",
                attributes=attributes,
                error=error,
            )
        )

    def _is_told(self, flying: Flying, batch: Batch) -> bool:
        """The same for the same line, whoever runs it and however often."""
        line = flying.prepared.line
        return batch.kind == "job" or zlib.crc32(f"{batch.id} {line.index}".encode()) < self._share * SHARES

    def _tell_phases(self, place: Place, lives: Sequence[Lifetime]) -> None:
        for life in lives:
            moments = (life.arrived_at, life.admitted_at, life.first_token_at, life.ended_at)
            for name, start, end in zip(("queue", "prefill", "decode"), moments, moments[1:], strict=False):
                if start is not None and end is not None:
                    self._traces.tell(
                        Span(
                            name=f"engine.{name}",
                            place=place.below(),
                            parent=place,
                            start_ns=self._unix_ns(start),
                            end_ns=self._unix_ns(end),
                        )
                    )

    def _attributes(self, flying: Flying, name: str, tokens: tuple[int, int]) -> dict[str, Value]:
        """`tokens` are those of the prompts and of the answers."""
        prepared, lives = flying.prepared, _lives(flying)
        return {
            "gen_ai.request.id": name,
            "gen_ai.response.model": prepared.body.model,
            "gen_ai.usage.prompt_tokens": tokens[0],
            "gen_ai.usage.completion_tokens": tokens[1],
            "gen_ai.usage.num_sequences": prepared.num_choices,
            "pressrun.worker": self._worker,
            **_asked(prepared),
            **(_latencies(lives[0]) if lives and not flying.is_twin else {}),
        }

    def _unix_ns(self, monotonic_s: float) -> int:
        return int(monotonic_s * 1e9) + self._ahead_ns


def _lives(flying: Flying) -> list[Lifetime]:
    return [output.lifetime for output in flying.outputs if output.lifetime is not None]


def _asked(prepared: Prepared) -> dict[str, Value]:
    body = prepared.body
    if not isinstance(body, ChatCompletionRequest | CompletionRequest):
        return {}
    return {
        "gen_ai.request.max_tokens": prepared.params[0].max_tokens,
        "gen_ai.request.temperature": body.temperature,
        "gen_ai.request.top_p": body.top_p,
        "gen_ai.request.n": body.n,
    }


def _latencies(life: Lifetime) -> dict[str, Value]:
    """Of the first sequence of the line."""
    if life.admitted_at is None or life.first_token_at is None:
        return {}
    return {
        "gen_ai.latency.time_in_queue": life.admitted_at - life.arrived_at,
        "gen_ai.latency.time_to_first_token": life.first_token_at - life.arrived_at,
        "gen_ai.latency.e2e": life.ended_at - life.arrived_at,
        "gen_ai.latency.time_in_model_prefill": life.first_token_at - life.admitted_at,
        "gen_ai.latency.time_in_model_decode": life.ended_at - life.first_token_at,
        "gen_ai.latency.time_in_model_inference": life.ended_at - life.admitted_at,
    }
