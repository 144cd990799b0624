"""The spans of lines: one for each line below its batch's or job's, and below it one for each phase in the engine.

Every job has them; of a batch only some lines, because a span for each would be more than what it tells is worth. The
names of attributes are vLLM's. Knows nothing of how spans are sent.

https://github.com/vllm-project/vllm/blob/main/vllm/tracing.py
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

from ..engine.request import Lifetime
from ..jobs.records import LineResult
from ..jobs.requests import ChatCompletionRequest, CompletionRequest
from ..jobs.traces import Place, Span, Traces, Value, span_of
from .prompts import Prepared
from .runs import Flying

SHARES = 2**32  # As many values as a line's checksum has.


class LineSpans:
    """Call `tell` with each line that has ended. `share` of the lines of batches are told."""

    def __init__(self, traces: Traces, *, worker: str, share: float) -> None:
        self._traces, self._worker, self._share = traces, worker, share
        # From the clock of lifetimes to Unix time.
        self._ahead_ns = time.time_ns() - time.monotonic_ns()

    def tell(self, flying: Flying, result: LineResult) -> None:
        """Tell of a line, if its batch or job is traced and it is one of those that are."""
        batch = flying.shard.claim.batch
        if not self._traces.is_on or batch.trace is None or not self._is_told(flying):
            return
        parent = span_of(batch)
        if parent is None:
            return
        lives = [output.lifetime for output in flying.outputs if output.lifetime is not None]
        place = parent.below()
        if not flying.is_twin:
            self._tell_phases(place, lives)
        self._traces.tell(
            Span(
                name="llm_request",
                place=place,
                parent=parent,
                start_ns=self._unix_ns(flying.shard.since),
                end_ns=time.time_ns(),
                kind="server",
                attributes=self._attributes(flying, result, lives),
                error=None if result.error is None else result.error.code,
            )
        )

    def _is_told(self, flying: Flying) -> bool:
        """The same for the same line, whoever runs it and however often."""
        line, batch = flying.prepared.line, flying.shard.claim.batch
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

    def _attributes(self, flying: Flying, result: LineResult, lives: Sequence[Lifetime]) -> dict[str, Value]:
        prepared = flying.prepared
        return {
            "gen_ai.request.id": f"{flying.shard.claim.batch.id}-{prepared.line.index}",
            "gen_ai.response.model": prepared.body.model,
            "gen_ai.usage.prompt_tokens": result.usage.input_tokens,
            "gen_ai.usage.completion_tokens": result.usage.output_tokens,
            "gen_ai.usage.num_sequences": prepared.num_choices,
            "pressrun.custom_id": prepared.line.custom_id,
            "pressrun.worker": self._worker,
            "pressrun.is_twin": flying.is_twin,
            **_asked(prepared),
            **(_latencies(lives[0]) if lives and not flying.is_twin else {}),
        }

    def _unix_ns(self, monotonic_s: float) -> int:
        return int(monotonic_s * 1e9) + self._ahead_ns


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
