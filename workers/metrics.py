"""What a worker counts: its engine's work, the lines and shards it brought home, and what went wrong meanwhile.

Counting is thread-safe, and says nothing of whose lines they were: there is no tenant, batch or id in any label. Knows
nothing of Redis; `jobs/metrics.py` carries the registry to whoever is asked for it.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..engine.request import Load, Output
from ..jobs.deliveries import Delivery
from ..jobs.records import LineResult
from .engine_metrics import EngineMetrics

TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class WorkerMetrics:
    """One for each worker."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.engine = EngineMetrics(registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pressrun:{name}", text, labels, registry=registry)

        self._lines = counter("lines", "Lines of batches and jobs whose results were stored.", "outcome")
        self._tokens = counter("line_tokens", "Tokens of lines, as their usage says: cached ones are input.", "kind")
        self._bytes = counter("result_bytes", "Bytes of the results that were stored.")
        self.sealed_shards = counter("sealed_shards", "Shards that were sealed in the blob store.")
        self.lost_leases = counter("lost_leases", "Shards in hand that were lost, or that were not to be run any more.")
        self.lapsed_leases = counter("lapsed_leases", "Shards that housekeeping took from silent workers.")
        self._restarts = counter("engine_restarts", "Times that the engine was started again.")
        self._webhooks = counter("webhook_attempts", "Attempts to post a webhook, by what it is then.", "status")
        self.ticks = Histogram(
            "pressrun:housekeeping_tick_seconds", "One look at what there is to do.", registry=registry, buckets=TICKS
        )
        self.tokens_per_s = Gauge(
            "pressrun:tokens_per_second", "What the worker does while it is busy, over a minute.", registry=registry
        )
        for outcome in ("succeeded", "failed", "unrun"):
            self._lines.labels(outcome)
        self._births = 0

    def note_committed(self, results: Sequence[LineResult]) -> None:
        """These results are in the store."""
        for outcome, number in Counts(result.outcome for result in results).items():
            self._lines.labels(outcome).inc(number)
        self._bytes.inc(sum(len(result.data) + 1 for result in results))  # Each has a newline.
        self._tokens.labels("input").inc(sum(result.usage.input_tokens for result in results))
        self._tokens.labels("cached").inc(sum(result.usage.cached_tokens for result in results))
        self._tokens.labels("output").inc(sum(result.usage.output_tokens for result in results))

    def note_attempt(self, delivery: Delivery | None) -> None:
        """A webhook was tried; None: its endpoint was gone."""
        self._webhooks.labels("dropped" if delivery is None else delivery.status).inc()

    def note_engine(self, births: int, load: Load | None, outputs: Iterable[Output]) -> None:
        """What was heard of the engine, which has been started so many times; without a load it is not there."""
        self._restarts.inc(max(0, births - max(1, self._births)))
        self._births = births
        self.engine.note_load(load, births)
        self.engine.note_outputs(outputs)
