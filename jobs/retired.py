"""Models that no worker has served for a day and that nothing waits for: what Redis says of them is forgotten.

A worker that serves one again says so, and all of it begins anew. Knows nothing of what runs.
"""

from __future__ import annotations

import time

from rq import Queue

from .backend import Backend
from .lineup import model_keys
from .live import model_keys as live_keys
from .model_cards import ANSWER_TOKENS, KNOWN_S, SERVED
from .queue import model_of, queues

# What an earlier version wrote down for online requests; the time at which a model was served says more.
OLD_MODELS = "pressrun:live:models"


def forget_retired(backend: Backend) -> list[str]:
    """Forget those models, whatever of them is there. Returns their names."""
    store, redis = backend.store, backend.redis
    redis.delete(OLD_MODELS)
    by_model: dict[str, list[Queue]] = {model: [] for model in store.served()}
    for queue in queues(redis):
        by_model.setdefault(model_of(queue.name) or "", []).append(queue)
    unknown = sorted(by_model.keys() - store.known_models() - {""})
    waiting = backend.lineups.lengths(unknown)
    retired = []
    for model, num_waiting in zip(unknown, waiting, strict=True):
        if not num_waiting and not any(map(_holds_work, by_model[model])) and _retire(backend, model):
            retired.append(model)
            _forget(backend, model, by_model[model])
    return retired


def _holds_work(queue: Queue) -> bool:
    """Whether shards wait in RQ, or were taken from it by a worker that may have died."""
    return queue.connection.exists(queue.key, queue.intermediate_queue_key) > 0


def _retire(backend: Backend, model: str) -> bool:
    args = [model, f"{time.time() - KNOWN_S:.0f}"]
    return bool(backend.store.scripts["retire_model"](keys=[SERVED], args=args))


def _forget(backend: Backend, model: str, of_rq: list[Queue]) -> None:
    pipe = backend.redis.pipeline(transaction=False)
    for queue in of_rq:
        pipe.srem(Queue.redis_queues_keys, queue.key)
    pipe.hdel(ANSWER_TOKENS, model)
    for key in (*model_keys(model), *live_keys(model)):
        pipe.delete(key)
    pipe.execute()
