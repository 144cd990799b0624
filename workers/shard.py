"""One claimed shard while a worker runs it: the lines that were missing, and the results not stored yet.

`run_shard` is the name under which shards are queued in RQ. Workers compare it and call nothing by it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from rq.executions import Execution
from rq.job import Job

from ..jobs.queue import TASK
from ..jobs.records import Claim, LineResult, ShardCommit

ShardKey = tuple[str, int]


def run_shard(batch_id: str, shard: int) -> NoReturn:
    """The task of a queued shard; only `pressrun worker` can run it."""
    raise RuntimeError("shards are run by `pressrun worker`, not by a plain RQ worker")


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One RQ job in hand: the shard that it names, and its execution."""

    job: Job
    key: ShardKey
    interactive: bool
    execution: Execution


@dataclass(slots=True, kw_only=True, eq=False)
class RunningShard:
    """A shard in hand. It is `running` until every line is stored, then `sealing`, and `gone` once let go.

    `num_left` lines that are to be run have no result yet; those that are `finished` are not stored yet. It has `begun`
    once a line is stored, and is in hand `since` then by the monotonic clock.
    """

    claim: Claim
    ticket: Ticket
    num_left: int
    stage: Literal["running", "sealing", "gone"] = "running"
    finished: list[LineResult] = field(default_factory=list)
    begun: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def interactive(self) -> bool:
        return self.ticket.interactive

    @property
    def key(self) -> ShardKey:
        return self.claim.batch.id, self.claim.shard.index

    def commit(self) -> ShardCommit:
        """What is to be stored now."""
        return ShardCommit(
            batch_id=self.claim.batch.id,
            shard=self.claim.shard.index,
            owner=self.claim.owner,
            num_lines=self.claim.shard.num_lines,
            results=tuple(self.finished),
        )


def shard_named_by(job: Job) -> ShardKey:
    """The shard that an RQ job points to. Raises ValueError for a job that is none of ours."""
    if job.func_name != TASK:
        raise ValueError(f"{job.func_name} is not a task of Pressrun: only {TASK} is run from this queue")
    args: list[Any] = list(job.args or ())
    if job.kwargs or len(args) != 2 or not isinstance(args[0], str) or type(args[1]) is not int:
        raise ValueError(f"{TASK} takes a batch id and a shard number, not {args!r} {job.kwargs!r}")
    return args[0], args[1]
