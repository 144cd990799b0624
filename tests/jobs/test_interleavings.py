"""Workers, housekeepers and clients that run into one another, stall and die between any two calls.

Whatever happens, every line comes out once. The machine starts actions, moves each from call to call, kills some,
lets leases lapse and windows close; at the end healthy processes take over, and everything is counted.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from redis.exceptions import LockNotOwnedError

from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import BlobMissing, Conflict
from pressrun.jobs.records import ENDED, Batch
from pressrun.jobs.store import batch_key
from pressrun.jobs.submit import create_batch, create_file, create_job, job_result
from pressrun.workers.housekeeping import Housekeeper, Task

from .conftest import MakeBackend, chat_line, serve_model
from .simulated import Process, run_shard

NUM_LINES, SHARD_LINES = 7, 2
NAMES = [f"c{i}" for i in range(NUM_LINES)]
# The same ones every time, unless more are asked for.
EFFORT = settings(
    max_examples=int(os.environ.get("PRESSRUN_TEST_INTERLEAVINGS", "60")),
    stateful_step_count=40,
    deadline=None,
    derandomize="PRESSRUN_TEST_INTERLEAVINGS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# What an action may end in because another was faster; it is tried again, as its caller would.
LATE = (LockNotOwnedError, BlobMissing, Conflict)


class Inline(Housekeeper):
    """A housekeeper whose slow work is done at once."""

    def _later(self, batch_id: str, task: Task) -> None:
        task(self.backend, batch_id)


def tick(backend: Backend) -> None:
    Inline(backend).tick()


class Interleavings(RuleBasedStateMachine):
    backend: Backend

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.batch_id: str | None = None
        self.runs = 0

    @initialize(job=st.booleans())
    def submit(self, job: bool) -> None:
        self.backend.redis.flushall()
        serve_model(self.backend)
        raw = b"\n".join(json.dumps(chat_line(name)).encode() for name in NAMES)
        file = create_file(self.backend, filename="in.jsonl", purpose="batch", chunks=[raw])

        def create(backend: Backend) -> None:
            if job:
                create_job(backend, url="/v1/chat/completions", body=chat_line("x")["body"])
            else:
                create_batch(
                    backend, input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )

        self.start(create)

    def start(self, action: Any) -> None:
        self.processes.append(Process(self.backend, action))

    def exists(self) -> bool:
        if self.batch_id is None:
            found = self.backend.store.active("batch") + self.backend.store.active("job")
            self.batch_id = found[0] if found else None
        return self.batch_id is not None

    @precondition(exists)
    @rule(shard=st.integers(0, (NUM_LINES - 1) // SHARD_LINES))
    def work(self, shard: int) -> None:
        self.runs += 1
        batch_id, seed = str(self.batch_id), self.runs
        self.start(lambda backend: run_shard(backend, batch_id, shard, seed))

    @rule()
    def keep_house(self) -> None:
        self.start(tick)

    @precondition(exists)
    @rule()
    def cancel(self) -> None:
        batch_id = str(self.batch_id)
        self.start(lambda backend: backend.store.cancel(batch_id))

    @rule(which=st.integers(0, 50), calls=st.integers(1, 40))
    def advance(self, which: int, calls: int) -> None:
        alive = [process for process in self.processes if not process.ended]
        if alive:
            alive[which % len(alive)].step(calls)

    @rule(which=st.integers(0, 50))
    def kill(self, which: int) -> None:
        self.processes[which % len(self.processes)].kill()

    @precondition(exists)
    @rule()
    def let_leases_lapse(self) -> None:
        key = f"{batch_key(str(self.batch_id))}:leased"
        for shard in self.backend.redis.zrange(key, 0, -1):
            self.backend.redis.zadd(key, {shard: 0}, xx=True)

    @precondition(exists)
    @rule()
    def let_the_lock_lapse(self) -> None:
        self.backend.redis.delete(f"{batch_key(str(self.batch_id))}:lock")

    @precondition(exists)
    @rule()
    def let_the_window_close(self) -> None:
        key = batch_key(str(self.batch_id))
        if self.backend.redis.exists(key):
            self.backend.redis.hset(key, "expires_at", 1)

    def teardown(self) -> None:
        stale = self.processes[::2]
        for process in self.processes[1::2]:
            process.kill()
        if self.exists():
            batch = self.bring_to_an_end()
            self.check(batch)
            for process in stale:
                process.finish()  # What comes back from a long stall changes nothing any more.
            tick(self.backend)
            assert self.backend.store.batch(batch.id) == batch
            self.check(batch)
        for process in stale:
            process.kill()
        for process in self.processes:
            if process.error is not None and not isinstance(process.error, LATE):
                raise process.error

    def bring_to_an_end(self) -> Batch:
        batch_id = str(self.batch_id)
        for _ in range(100):
            if not self.backend.store.active("batch") + self.backend.store.active("job"):
                return self.backend.store.batch(batch_id)
            self.let_leases_lapse()
            self.let_the_lock_lapse()
            tick(self.backend)
            for shard in self.backend.shards.unsealed(batch_id):
                self.runs += 1
                run_shard(self.backend, batch_id, shard, self.runs)
        raise AssertionError(f"it does not end: {self.backend.store.batch(batch_id)}")

    def check(self, batch: Batch) -> None:
        assert batch.status in ENDED - {"failed"}, batch
        if batch.kind == "job":
            result = job_result(self.backend, batch)
            assert result is not None
            self.check_lines(batch, [batch.id], [result] if result["response"] else [], [result])
            return
        output, errors = self.lines(batch.output_file_id), self.lines(batch.error_file_id)
        self.check_lines(batch, NAMES, output, output + errors)
        for lines in (output, errors):
            assert [line["custom_id"] for line in lines] == [name for name in NAMES if name in map(_name, lines)]

    def check_lines(self, batch: Batch, names: list[str], ran: list[Any], lines: list[Any]) -> None:
        assert sorted(map(_name, lines)) == names
        completed = [line for line in ran if line["response"] and line["response"]["status_code"] == 200]
        unrun = [line for line in lines if line["error"] and line["error"]["code"] != "worker_lost"]
        counts = batch.counts
        assert (counts.total, counts.completed, counts.unrun) == (len(names), len(completed), len(unrun))
        assert counts.failed == len(names) - len(completed) - len(unrun)
        assert batch.usage.input_tokens == len(completed)
        assert batch.usage.output_tokens == sum(line["response"]["body"]["run"] for line in completed)

    def lines(self, file_id: str | None) -> list[Any]:
        if file_id is None:
            return []
        assert self.backend.store.file(file_id).bytes == self.backend.blobs.size(f"files/{file_id}")
        return [json.loads(line) for line in b"".join(self.backend.blobs.open(f"files/{file_id}")).splitlines()]


def _name(line: Any) -> str:
    return str(line["custom_id"])


@pytest.mark.timeout(300)
def test_whatever_dies_or_stalls_every_line_comes_out_once(make_backend: MakeBackend) -> None:
    backend = make_backend(shard_lines=SHARD_LINES, max_attempts=4)
    machine = type("Machine", (Interleavings,), {"backend": backend})
    backend.redis.config_set("appendfsync", "always")  # What waits for the disk waits for a second otherwise.
    try:
        run_state_machine_as_test(machine, settings=EFFORT)
    finally:
        backend.redis.config_set("appendfsync", "everysec")
