"""What the engine does, under vLLM's names, so that dashboards made for it show Pressrun.

Requests are looked at once, when they end: the engine tells their times then (`engine/lifetimes.py`). The time between
tokens is a request's own mean, counted once for each of its gaps. Knows nothing of lines or of Redis.

Names and buckets: https://github.com/vllm-project/vllm/blob/main/vllm/v1/metrics/loggers.py
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from functools import partial
from operator import mul

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..engine.request import Lifetime, Load, Output

LATENCIES = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
PER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
REASONS = ("stop", "length", "abort", "error")


class EngineMetrics:
    """Call `note_load` with what the engine says of itself, and `note_outputs` with what it gives."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = LATENCIES) -> Histogram:
            return Histogram(f"vllm:{name}", text, registry=registry, buckets=buckets)

        self._running = gauge("num_requests_running", "Requests in the engine's steps.")
        self._waiting = gauge("num_requests_waiting", "Requests in the engine that wait for a row.")
        cache = "Share of the KV cache's pages that are owned. 1 means all."
        self._usage = (gauge("kv_cache_usage_perc", cache), gauge("gpu_cache_usage_perc", cache))
        # By the fields of Load that they follow.
        self._totals = {
            "num_prompt_tokens": (
                counter("prompt_tokens", "Prompt tokens of requests that were begun."),
                counter("prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache."),
            ),
            "num_cached_tokens": (counter("prefix_cache_hits", "Prompt tokens that were found in the prefix cache."),),
            "num_generated_tokens": (counter("generation_tokens", "Tokens that were drawn."),),
            "num_preemptions": (counter("num_preemptions", "Requests that were put back to wait."),),
        }
        # There is no speculation yet: none was drafted.
        for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
            counter(f"spec_decode_{name}", "Speculative decoding is not built; always 0.")
        success = Counter(
            "vllm:request_success", "Requests that ended, by how.", ["finished_reason"], registry=registry
        )
        self._ended = {reason: success.labels(reason) for reason in REASONS}
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._generated = histogram("request_generation_tokens", "Tokens drawn for a request.", TOKENS)
        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN)
        per_token = "From one token to the next: the mean of each request, once for each of its gaps."
        self._gaps = (
            histogram("time_per_output_token_seconds", per_token, PER_TOKEN),
            histogram("inter_token_latency_seconds", per_token, PER_TOKEN),
        )
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the end.")
        self._queue = histogram("request_queue_time_seconds", "From arrival to a row in the engine.")
        self._prefill = histogram("request_prefill_time_seconds", "From a row in the engine to the first token.")
        self._decode = histogram("request_decode_time_seconds", "From the first token to the end.")
        self._inference = histogram("request_inference_time_seconds", "From a row in the engine to the end.")
        self._last: tuple[int, Load | None] = (0, None)

    def note_load(self, load: Load | None, birth: int) -> None:
        """What the engine's `birth`-th life says of itself now; None between two lives."""
        if load is None:
            for one in (self._running, self._waiting, *self._usage):
                one.set(0)
            return
        last_birth, last = self._last
        if load is last and birth == last_birth:
            return
        self._running.set(load.num_running)
        self._waiting.set(load.num_waiting)
        for usage in self._usage:
            usage.set(1 - load.num_free_pages / load.num_pages)
        for field, counters in self._totals.items():
            # A new life counts from nought.
            before = getattr(last, field) if last is not None and last_birth == birth else 0
            for total in counters:
                total.inc(getattr(load, field) - before)
        self._last = birth, load

    def note_outputs(self, outputs: Iterable[Output]) -> None:
        """Count the requests that ended with these outputs."""
        ended = [output for output in outputs if output.finish_reason is not None]
        for reason, number in Counts(str(output.finish_reason) for output in ended).items():
            self._ended[reason].inc(number)
        # What was cut short is left out: it would say that the engine is fast.
        whole = [output.lifetime for output in ended if output.lifetime is not None and output.finish_reason != "abort"]
        if whole:
            self._note_lifetimes(whole)

    def _note_lifetimes(self, lives: list[Lifetime]) -> None:
        times = [_times(life) for life in lives]
        observe(self._prompt, [life.num_prompt_tokens for life in lives])
        observe(self._generated, [life.num_generated_tokens for life in lives])
        observe(self._first, [first - arrived for arrived, _, first, _ in times])
        observe(self._whole, [ended - arrived for arrived, _, _, ended in times])
        observe(self._queue, [admitted - arrived for arrived, admitted, _, _ in times])
        observe(self._prefill, [first - admitted for _, admitted, first, _ in times])
        observe(self._decode, [ended - first for _, _, first, ended in times])
        observe(self._inference, [ended - admitted for _, admitted, _, ended in times])
        num_gaps = [max(0, life.num_generated_tokens - 1) for life in lives]
        means = [(ended - first) / max(1, gaps) for (_, _, first, ended), gaps in zip(times, num_gaps, strict=True)]
        for histogram in self._gaps:
            observe(histogram, means, num_gaps)


def _times(life: Lifetime) -> tuple[float, float, float, float]:
    assert life.admitted_at is not None
    assert life.first_token_at is not None
    return life.arrived_at, life.admitted_at, life.first_token_at, life.ended_at


def observe(histogram: Histogram, values: Sequence[float], counts: Sequence[int] | None = None) -> None:
    """Observe values, each so many times (once, if not said), with one visit to every bucket.

    The library takes a lock twice for each value, which is felt where thousands of requests end in a second.
    """
    places = list(map(partial(bisect_left, histogram._upper_bounds), values))
    found = Counts(places) if counts is None else _weighed(places, counts)
    for place, count in found.items():
        histogram._buckets[place].inc(count)
    histogram._sum.inc(sum(values) if counts is None else sum(map(mul, values, counts)))


def _weighed(places: Sequence[int], counts: Sequence[int]) -> Counts[int]:
    found = Counts[int]()
    for place, count in zip(places, counts, strict=True):
        found[place] += count
    return found
