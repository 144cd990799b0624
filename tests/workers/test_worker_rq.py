"""What RQ's own tools see of a worker, and what they can do to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rq import Queue, Worker
from rq.command import send_stop_job_command
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from pressrun.jobs.queue import queue_of, rq_job_id

from .conftest import MODEL

RQ = Path(sys.executable).with_name("rq")
BATCH_QUEUE = queue_of("batch", MODEL)


def rq(farm: Any, *words: str) -> str:
    command = [str(RQ), *words, "--url", farm.backend.settings.redis_url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def executions(farm: Any) -> list[Any]:
    (worker,) = Worker.all(connection=farm.backend.redis)
    return list(worker.get_current_executions(refresh=True))


def test_rq_info_shows_a_busy_worker_with_all_its_executions(farm: Any) -> None:
    farm.work(step_s=0.5, max_num_seqs=1)
    batch = farm.batch(farm.many(100))
    farm.until(lambda: farm.num_done(batch) >= 1)
    (line,) = [line for line in rq(farm, "info", "--raw").splitlines() if line.startswith("worker ")]
    assert " busy " in line
    assert "pressrun-interactive-m, pressrun-batch-m" in line
    started = StartedJobRegistry(BATCH_QUEUE, connection=farm.backend.redis, serializer=JSONSerializer)
    in_hand = {execution.job_id for execution in executions(farm)}
    assert len(in_hand) == 7  # 100 lines are 7 shards of at most 16
    assert set(started.get_job_ids()) == in_hand
    assert in_hand == {rq_job_id(batch.id, shard) for shard in range(7)}
    assert farm.backend.redis.llen("rq:queue:pressrun-batch-m:intermediate") == 0


def test_rq_sees_an_idle_worker_and_finished_jobs_afterwards(farm: Any) -> None:
    worker = farm.work()
    farm.results(farm.batch(farm.many(40)))
    farm.until(lambda: not executions(farm))
    (line,) = [line for line in rq(farm, "info", "--raw").splitlines() if line.startswith("worker ")]
    assert " idle " in line
    assert "jobs: 3 finished, 0 failed" in line
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert Worker.all(connection=farm.backend.redis) == []


def test_a_suspended_worker_takes_nothing_until_it_is_resumed(farm: Any) -> None:
    farm.work()
    rq(farm, "suspend")
    farm.until(lambda: "suspended" in rq(farm, "info", "--raw"))
    batch = farm.batch(farm.many(20))
    farm.until(lambda: farm.backend.redis.llen("rq:queue:pressrun-batch-m") == 2)
    assert farm.num_done(batch) == 0
    rq(farm, "resume")
    farm.results(batch)


@pytest.mark.parametrize(
    ("function", "args"),
    [("os.system", ["touch {marker}"]), ("pressrun.workers.shard.run_shard", ["batch_x"])],
)
def test_a_job_that_is_no_shard_is_failed_and_not_executed(
    farm: Any, tmp_path: Path, function: str, args: list[str]
) -> None:
    marker = tmp_path / "executed"
    queue = Queue(BATCH_QUEUE, connection=farm.backend.redis, serializer=JSONSerializer)
    job = queue.enqueue(function, args=[arg.format(marker=marker) for arg in args])
    farm.work()
    failed = FailedJobRegistry(queue=queue)
    farm.until(lambda: job.id in failed)
    assert not marker.exists()
    assert "refused" in job.latest_result().exc_string
    farm.results(farm.batch(farm.many(4)))


def test_a_pickled_job_is_failed_without_being_unpickled(farm: Any, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(marker), "w"))

    queue = Queue(BATCH_QUEUE, connection=farm.backend.redis)
    plain = queue.enqueue("os.system", Trap())
    with_meta = queue.enqueue("os.system", meta={"trap": Trap()})
    farm.work()
    farm.until(lambda: plain.id in FailedJobRegistry(queue=queue))
    farm.results(farm.batch(farm.many(4)))
    assert not marker.exists()
    assert with_meta.id not in queue.get_job_ids()
    assert farm.backend.redis.llen("rq:queue:pressrun-batch-m:intermediate") == 0


def test_stop_job_hands_the_shard_back_and_it_runs_later(farm: Any) -> None:
    farm.work(step_s=0.1, max_num_seqs=4)
    batch = farm.batch(farm.many(64))
    farm.until(lambda: farm.num_done(batch) >= 4)
    before = {execution.job_id: execution.id for execution in executions(farm)}
    last = rq_job_id(batch.id, 3)
    send_stop_job_command(farm.backend.redis, last, serializer=JSONSerializer)
    farm.until(lambda: {e.job_id: e.id for e in executions(farm)}.get(last) != before[last])
    output, _ = farm.results(batch)
    assert len(output) == 64


def test_a_shard_whose_input_cannot_be_read_fails_in_rq_and_is_tried_again(farm: Any) -> None:
    farm.work()
    rq(farm, "suspend")
    farm.until(lambda: "suspended" in rq(farm, "info", "--raw"))
    batch = farm.batch(farm.many(20))
    farm.until(lambda: farm.backend.redis.llen("rq:queue:pressrun-batch-m") == 2)
    blob = farm.backend.blobs.root / batch.input_blob
    hidden = blob.rename(blob.with_name("hidden"))
    rq(farm, "resume")
    failed = FailedJobRegistry(BATCH_QUEUE, connection=farm.backend.redis, serializer=JSONSerializer)
    farm.until(lambda: set(failed.get_job_ids()) == {rq_job_id(batch.id, 0), rq_job_id(batch.id, 1)})
    hidden.rename(blob)
    output, _ = farm.results(batch)
    assert len(output) == 20
