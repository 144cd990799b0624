"""Batches that share real workers: shares, priorities, pauses and retries, seen from outside."""

from __future__ import annotations

import time
from typing import Any

from pressrun.jobs.control import pause_batch, resume_batch, update_batch
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.reports import reports_of
from pressrun.jobs.retry import retry_batch

from .conftest import MODEL


def batch_of(farm: Any, number: int, tenant: str) -> Batch:
    batch: Batch = farm.batch(farm.many(number))
    farm.backend.redis.hset(batch_key(batch.id), "tenant", tenant)
    return batch


def test_a_tenant_with_many_batches_gets_no_more_than_one_with_one(farm: Any) -> None:
    crowd = [batch_of(farm, 480, "crowd") for _ in range(3)]
    alone = batch_of(farm, 480, "alone")
    farm.work(step_s=0.05, max_num_seqs=16)
    farm.wait(alone)
    done = [farm.num_done(batch) for batch in crowd]
    assert 0.7 < sum(done) / 480 < 1.4, done
    assert max(done) - min(done) <= 64, done


def test_a_batch_that_becomes_urgent_overtakes_one_that_came_before(farm: Any) -> None:
    huge, small = batch_of(farm, 1600, "a"), batch_of(farm, 48, "a")
    update_batch(farm.backend, huge.id, priority=-1, tenant="a")
    farm.work(step_s=0.05, max_num_seqs=16)
    farm.until(lambda: farm.num_done(huge) + farm.num_done(small) >= 16)
    farm.wait(small)
    assert farm.num_done(huge) < 800


def test_a_paused_batch_stands_still_and_then_goes_on(farm: Any) -> None:
    batch = batch_of(farm, 800, "a")
    farm.work(step_s=0.02, max_num_seqs=8)
    farm.until(lambda: farm.num_done(batch) >= 16)
    pause_batch(farm.backend, batch.id, "a")
    farm.until(lambda: not farm.backend.shards.num_leased(batch.id))
    done = farm.num_done(batch)
    time.sleep(0.5)
    assert farm.num_done(batch) == done < 800
    resume_batch(farm.backend, batch.id, "a")
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(800)]
    assert errors == []


def test_a_running_batch_says_when_it_will_end(farm: Any) -> None:
    batch = batch_of(farm, 1600, "a")
    farm.work(step_s=0.05, max_num_seqs=16)

    def eta() -> int | None:
        farm.backend.lineups.of(MODEL).read_anew()
        (report,) = reports_of(farm.backend, [farm.backend.store.batch(batch.id)])
        return report.eta

    farm.until(lambda: farm.num_done(batch) >= 640 and eta() is not None)
    told, asked_at = eta(), time.time()
    assert told is not None
    farm.wait(batch)
    assert abs(told - time.time()) < 2 + 0.5 * (time.time() - asked_at)


def test_failed_lines_of_a_batch_are_run_again_by_the_workers(farm: Any) -> None:
    farm.work()
    lines = farm.many(40)
    for place in (3, 20, 39):
        lines[place] = farm.ask(f"line-{place}", "x" * 5000)  # Too long for the model.
    batch = farm.batch(lines)
    output, errors = farm.results(batch)
    assert (len(output), len(errors)) == (37, 3)
    for again in ("failed", ["line-0", "line-3"]):
        retry_batch(farm.backend, batch.id, again)  # type: ignore[arg-type]
        output, errors = farm.results(batch)
        assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(40) if i not in (3, 20, 39)]
        assert [line["custom_id"] for line in errors] == ["line-3", "line-20", "line-39"]
