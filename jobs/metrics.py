"""What workers count, on its way to whoever scrapes the API: each worker's whole registry, as one value in Redis.

Counters run from a worker's birth to its death, and its name is a label: the series of a worker that is gone end, and
none ever goes backwards (docs/decisions/0020). Knows nothing of which metrics there are, so that a new one needs no
change here, and workers and APIs of different versions understand each other.

| key | what |
|---|---|
| `pressrun:metrics:{worker}` | the metrics of a live worker, as JSON |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

from .model_cards import MODEL_TTL_S
from .store import Store

ENGINE = "0"  # A worker has one engine; vLLM numbers those of a process.


def publish(store: Store, worker: str, registry: CollectorRegistry) -> None:
    """Write down what a worker has counted, for as long as its model card counts."""
    store.redis.set(_key(worker), json.dumps(_packed(registry)), ex=MODEL_TTL_S)


def read(store: Store) -> list[Metric]:
    """The metrics of all live workers, labelled with the worker and its model."""
    cards = store.live_workers()
    pipe = store.redis.pipeline(transaction=False)
    for card in cards:
        pipe.get(_key(card.worker))
    merged: dict[str, Metric] = {}
    for card, raw in zip(cards, pipe.execute(), strict=True):
        labels = {"model_name": card.id, "engine": ENGINE, "worker": card.worker}
        for family in json.loads(raw) if raw else ():
            _merge(merged, family, labels)
    return list(merged.values())


def without_created(metrics: Iterable[Metric]) -> Iterable[Metric]:
    """The metrics without the times at which each series began, which nobody asks for and which double some."""
    for metric in metrics:
        metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        yield metric


def _packed(registry: CollectorRegistry) -> list[Any]:
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [[sample.name, sample.labels, sample.value] for sample in metric.samples],
        ]
        for metric in without_created(registry.collect())
    ]


def _merge(merged: dict[str, Metric], family: Any, labels: Mapping[str, str]) -> None:
    name, documentation, kind, samples = family
    metric = merged.setdefault(name, Metric(name, documentation, kind))
    metric.samples += [Sample(sample, own | labels, value) for sample, own, value in samples]


def _key(worker: str) -> str:
    return f"pressrun:metrics:{worker}"
