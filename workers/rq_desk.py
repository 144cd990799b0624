"""What RQ sees of a worker: its birth, state, heartbeats, and every shard in hand as an execution.

RQ is where shards wait, and where operators look (`rq info`, `rq suspend`, rq-dashboard). Who may write to a shard is
not decided here: that is the store's lease. So everything here may be done twice or too late without harm.
Knows nothing of lines or engines.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import worker_registration
from rq.command import handle_command, parse_payload
from rq.exceptions import DeserializationError
from rq.executions import Execution
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.utils import now, utcformat
from rq.worker.base import BaseWorker, WorkerStatus

from ..jobs.queue import RESULT_TTL_S, queue_of
from .shard import ShardKey, Ticket, shard_named_by

log = logging.getLogger(__name__)
WORKER_TTL_S = 30

# Moves up to ARGV[i] job ids from KEYS[2i-1], a queue, to KEYS[2i], its intermediate queue. Returns them by queue.
# When Redis' memory is full it is refused as a whole (`#!lua`): what was taken could not be begun.
TAKE = """#!lua
local taken = {}
for i = 1, #ARGV do
  local ids = {}
  if tonumber(ARGV[i]) > 0 then ids = redis.call('LPOP', KEYS[2 * i - 1], ARGV[i]) or {} end
  if #ids > 0 then redis.call('RPUSH', KEYS[2 * i], unpack(ids)) end
  taken[i] = ids
end
return taken
"""
# Deletes a job unless it has been queued or started afresh since. KEYS: the job and what else is kept of it.
# ARGV: worker, start time.
DELETE_OWN = """
local started = redis.call('HMGET', KEYS[1], 'worker_name', 'started_at')
if started[1] == ARGV[1] and started[2] == ARGV[2] then redis.call('DEL', unpack(KEYS)) end
"""


class RqDesk(BaseWorker):
    """A worker of its model's two queues, that of jobs first. Methods on tickets take many in one round trip."""

    def __init__(self, redis: Redis, *, name: str, model: str, lease_s: float) -> None:
        super().__init__(
            [queue_of("job", model), queue_of("batch", model)],
            name=name,
            connection=redis,
            worker_ttl=WORKER_TTL_S,
            default_result_ttl=RESULT_TTL_S,
            # An execution outlives its last heartbeat by this and a minute.
            job_monitoring_interval=math.ceil(lease_s),
            serializer=JSONSerializer,
        )
        self._take_script = redis.register_script(TAKE)
        self._delete_own_script = redis.register_script(DELETE_OWN)
        self._stop_wanted: list[str] = []

    # Taking

    def take(self, num_interactive: int, num_batch: int) -> list[Ticket]:
        """Take up to so many shards from each queue, and begin them. What is no shard of ours fails at once."""
        keys = [key for queue in self.queues for key in (queue.key, queue.intermediate_queue_key)]
        taken = self._take_script(keys=keys, args=[num_interactive, num_batch])
        named: list[tuple[Job, ShardKey, bool]] = []
        for queue, raw_ids in zip(self.queues, taken, strict=True):
            for job in self._fetch([raw.decode() for raw in raw_ids], queue.intermediate_queue_key):
                try:
                    named.append((job, shard_named_by(job), queue is self.queues[0]))
                except (ValueError, DeserializationError) as error:
                    self._refuse(job, queue, error)
        return self._begin(named) if named else []

    def _fetch(self, ids: list[str], intermediate_key: str) -> list[Job]:
        """The jobs that are still there. A record that cannot even be read is left out, and named in the log."""
        if not ids:
            return []
        try:
            jobs = Job.fetch_many(ids, connection=self.connection, serializer=JSONSerializer)
        except (ValueError, KeyError, TypeError) as error:
            if len(ids) > 1:
                return [job for one in ids for job in self._fetch([one], intermediate_key)]
            log.error("RQ job %s cannot be read and is left out: %r", ids[0], error)
            jobs = [None]
        for job_id, job in zip(ids, jobs, strict=True):
            if job is None:
                self.connection.lrem(intermediate_key, 1, job_id)
        return [job for job in jobs if job is not None]

    def _refuse(self, job: Job, queue: Any, error: Exception) -> None:
        log.error("RQ job %s is refused: %s", job.id, error)
        job.started_at = job.ended_at = now()
        self.handle_job_failure(job, queue, exc_string=f"refused: {error}")
        queue.intermediate_queue.remove(job.id)

    def _begin(self, named: list[tuple[Job, ShardKey, bool]]) -> list[Ticket]:
        tickets = []
        with self.connection.pipeline() as pipe:
            for job, key, interactive in named:
                execution = Execution.create(job, self.get_heartbeat_ttl(job), pipe, worker_name=self.name)
                job.prepare_for_execution(self.name, pipe)
                pipe.persist(job.key)
                pipe.lrem(self._queue_of(interactive).intermediate_queue_key, 1, job.id)
                tickets.append(Ticket(job=job, key=key, interactive=interactive, execution=execution))
            self.set_state(WorkerStatus.BUSY, pipeline=pipe)
            pipe.execute()
        self.executions |= {ticket.execution.id: ticket.execution for ticket in tickets}
        return tickets

    def _queue_of(self, interactive: bool) -> Any:
        return self.queues[0 if interactive else 1]

    # Ending

    def succeed(self, tickets: Sequence[Ticket]) -> None:
        """These shards are done."""
        self._end(tickets, self._write_success)

    def put_down(self, tickets: Sequence[Ticket]) -> None:
        """These shards are no longer this worker's business: the store decides what becomes of them."""
        self._end(tickets, self._write_nothing)

    def fail(self, ticket: Ticket, error: BaseException) -> None:
        """This shard could not be run; operators find out why in RQ's registry of failures."""
        ticket.job.ended_at = now()
        reason = "".join(traceback.format_exception(error))
        queue = self._queue_of(ticket.interactive)
        self.handle_job_failure(ticket.job, queue, exc_string=reason, execution=ticket.execution)
        self._rest_if_idle()

    def _end(self, tickets: Sequence[Ticket], write: Callable[[Ticket, Pipeline], None]) -> None:
        if not tickets:
            return
        with self.connection.pipeline() as pipe:
            for ticket in tickets:
                write(ticket, pipe)
                ticket.execution.delete(job=ticket.job, pipeline=pipe)
                self.executions.pop(ticket.execution.id, None)
            pipe.execute()
        self._rest_if_idle()

    def _write_success(self, ticket: Ticket, pipe: Pipeline) -> None:
        job, execution = ticket.job, ticket.execution
        job.ended_at = now()
        job._handle_success(
            RESULT_TTL_S,
            pipeline=pipe,
            worker_name=self.name,
            execution_id=execution.id,
            execution_started_at=execution.created_at,
            execution_ended_at=job.ended_at,
        )
        job.cleanup(RESULT_TTL_S, pipeline=pipe, remove_from_queue=False)
        self.increment_successful_job_count(pipeline=pipe)
        assert job.started_at is not None
        self.increment_total_working_time(job.ended_at - job.started_at, pipe)

    def _write_nothing(self, ticket: Ticket, pipe: Pipeline) -> None:
        job = ticket.job
        assert job.started_at is not None
        keys = [job.key, job.dependents_key, job.dependencies_key, Result.get_key(job.id)]  # type: ignore[no-untyped-call]
        self._delete_own_script(keys=keys, args=[self.name, utcformat(job.started_at)], client=pipe)

    def _rest_if_idle(self) -> None:
        if not self.executions and self.get_state() == WorkerStatus.BUSY:
            self.set_state(WorkerStatus.IDLE)

    # Living

    def beat(self, tickets: Sequence[Ticket]) -> None:
        """Say that the worker and the executions of these shards are alive."""
        with self.connection.pipeline(transaction=False) as pipe:
            self.heartbeat(pipeline=pipe)
            for ticket in tickets:
                ttl = self.get_heartbeat_ttl(ticket.job)
                ticket.execution.heartbeat(ticket.job.started_job_registry, ttl, pipeline=pipe)
            was_gone = pipe.execute()[0] == 1  # The first command made the worker's hash anew.
            if was_gone:
                pipe.hset(self.key, mapping=self.serialize() | {"state": self.get_state()})
                worker_registration.register(self, pipe)
                pipe.execute()

    def suspended(self) -> bool:
        """Whether `rq suspend` is in force. Shards in hand are finished all the same."""
        suspended = bool(is_suspended(self.connection, self))
        if not self.executions:
            wanted = WorkerStatus.SUSPENDED if suspended else WorkerStatus.IDLE
            if self.get_state() != wanted:
                self.set_state(wanted)
        return suspended

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Keep listening after a silence of the network too: RQ does so only after a broken connection."""
        if isinstance(exc, RedisTimeoutError):
            exc = RedisConnectionError(str(exc))
        super()._pubsub_exception_handler(exc, pubsub, pubsub_thread)

    def handle_payload(self, message: Any) -> None:
        """Commands from RQ: `stop-job` reaches every execution of its job, not only a worker's first."""
        payload = parse_payload(message)
        if payload["command"] != "stop-job":
            handle_command(self, payload)
            return
        for execution in list(self.executions.values()):
            if execution.job_id == payload.get("job_id"):
                self.request_stop_execution(execution.id)

    def request_stop_execution(self, execution_id: str) -> None:
        """Remember to hand a shard back. Called in the thread that listens for commands."""
        self._stop_wanted.append(execution_id)

    def stops_wanted(self) -> set[str]:
        """The executions that RQ has asked to stop since the last call."""
        wanted, self._stop_wanted = self._stop_wanted, []
        return set(wanted)
