"""Native jobs in RQ: they wait by priority, and by arrival where that is the same, in a queue that is looked at first.

RQ knows only the order of a list, so a new job is put where it belongs in it. Knows nothing of lines.
"""

from __future__ import annotations

from collections.abc import Iterable

from rq.job import Job

from .queue import INTERACTIVE_QUEUE, enqueue, rq_job_id, rq_queue
from .store import Store


def enqueue_jobs(store: Store, jobs: Iterable[tuple[str, int]]) -> None:
    """Queue jobs, as (id, priority), in one round trip: each is there with its place, or not at all."""
    queue_key = rq_queue(store.redis, INTERACTIVE_QUEUE).key
    records = Job.key_for("")
    with store.redis.pipeline(transaction=True) as pipe:
        for job_id, priority in jobs:
            name = rq_job_id(job_id, 0)
            enqueue(store.redis, "job", [(job_id, 0)], pipe)
            store.scripts["place"](keys=[queue_key, Job.key_for(name)], args=[name, priority, records], client=pipe)
        pipe.execute()
