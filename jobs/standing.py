"""How the deployment stands, as metrics: batches, lines and tokens to come, queues, webhooks, Redis' memory.

Read from Redis when it is asked for, and told again for a while: the longer reading takes, the less often it is done,
because whoever may ask must not be able to slow the work down. All tenants together: none has a label. Knows nothing of
what single workers do (`metrics.py`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .backend import Backend
from .deliveries import DUE
from .fields import as_text
from .metrics import read
from .progress import Progress, progress_of
from .queue import model_of, queues
from .redis_keys import ACTIVE, ENDS

BUSY_SHARE, LEAST_S = 0.02, 1.0  # Of a process' time goes into reading, and what was read is told for so long.
MANY = 500  # Batches in one go, so that Redis does others' work in between.


class Standing:
    """Thread-safe; those who ask at once wait for one reading."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = Lock()
        self._known: list[Metric] = []
        self._read_again_at = 0.0

    def read(self) -> list[Metric]:
        """All of it, with what the workers say of themselves."""
        with self._lock:
            started = time.monotonic()
            if started >= self._read_again_at:
                self._known = [*read(self._backend.store), *_standing(self._backend)]
                now = time.monotonic()
                self._read_again_at = now + max(LEAST_S, (now - started) / BUSY_SHARE)
            return self._known


def _standing(backend: Backend) -> Iterator[Metric]:
    redis, store = backend.redis, backend.store
    ids = store.active("batch")
    batches = [one for at in range(0, len(ids), MANY) for one in progress_of(store, ids[at : at + MANY])]
    yield _by("batches", "Batches that have not ended.", "status", Counter(batch.status for batch in batches))
    yield _one("paused_batches", "Batches that are paused.", sum(batch.paused for batch in batches))
    yield _one("active_jobs", "Native jobs that have not ended.", redis.zcard(ACTIVE["job"]))
    yield _by("batch_lines", "Lines of batches that have not ended.", "state", _lines(batches))
    yield _by("batch_shards", "Shards of batches that have not ended.", "state", _shards(batches))
    text = "Tokens that batches are still expected to need, by estimate."
    yield _by("enqueued_tokens", text, "model_name", _tokens(batches))
    yield _ends(redis.hgetall(ENDS))
    yield _queue_depth(backend)
    yield _one("webhooks_due", "Webhooks that are to be posted, now or later.", redis.zcard(DUE))
    yield _by("workers", "Live workers.", "model_name", Counter(card.id for card in store.live_workers()))
    memory: Any = redis.info("memory")
    yield _one("redis_memory_bytes", "Memory that Redis uses for its data.", memory["used_memory"])
    yield _one("redis_max_memory_bytes", "What Redis may use at most; 0 is no limit.", memory.get("maxmemory", 0))


def _lines(batches: list[Progress]) -> dict[str, int]:
    names = {"left": "lines_left", "completed": "completed", "failed": "failed", "unrun": "unrun"}
    return {state: sum(getattr(batch, name) for batch in batches) for state, name in names.items()}


def _shards(batches: list[Progress]) -> dict[str, int]:
    return {state: sum(getattr(batch, state) for batch in batches) for state in ("waiting", "queued", "leased")}


def _tokens(batches: list[Progress]) -> dict[str, float]:
    """What is still to come of each model, whether it has workers or not."""
    tokens: dict[str, float] = defaultdict(float)
    for batch in batches:
        if batch.model:  # Else it is not validated yet, and nothing is known of it.
            tokens[batch.model] += batch.tokens_left
    return tokens


def _queue_depth(backend: Backend) -> Metric:
    metric = GaugeMetricFamily("pressrun:queue_depth", "Shards that wait in RQ.", labels=("queue", "model_name"))
    for queue in queues(backend.redis):
        metric.add_metric((queue.name, model_of(queue.name) or ""), backend.redis.llen(queue.key))
    return metric


def _ends(raw: Mapping[Any, Any]) -> Metric:
    """What `drop.lua` has counted."""
    metric = CounterMetricFamily("pressrun:ended", "Batches and jobs that ended.", labels=("kind", "status"))
    for field, count in sorted(raw.items()):
        kind, _, status = as_text(field).partition(":")
        metric.add_metric((kind, status), int(count))
    return metric


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pressrun:{name}", text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = GaugeMetricFamily(f"pressrun:{name}", text, labels=(label,))
    for value, number in values.items():
        metric.add_metric((value,), number)
    return metric
