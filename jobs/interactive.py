"""Native jobs in RQ: they wait by priority, and by arrival where that is the same.

Their model's workers look at their queue first. RQ knows only the order of a list, so a new job is put where it
belongs in it. Knows nothing of lines.
"""

from __future__ import annotations

from collections.abc import Iterable

from rq.job import Job

from .queue import enqueue, queue_of, rq_job_id, rq_queue
from .store import Store


def enqueue_jobs(store: Store, model: str, jobs: Iterable[tuple[str, int]]) -> None:
    """Queue jobs of one model, as (id, priority), in one round trip: each is there with its place, or not at all."""
    queue_key = rq_queue(store.redis, queue_of("job", model)).key
    records = Job.key_for("")
    with store.redis.pipeline(transaction=True) as pipe:
        for job_id, priority in jobs:
            name = rq_job_id(job_id, 0)
            enqueue(store.redis, "job", model, [(job_id, 0)], pipe)
            store.scripts["place"](keys=[queue_key, Job.key_for(name)], args=[name, priority, records], client=pipe)
        pipe.execute()
