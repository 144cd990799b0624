"""Workers and engines that are killed, stopped and paused in mid-batch: no line is lost, none is repeated."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pressrun.jobs.errors import SettingsError
from pressrun.jobs.settings import load_settings
from pressrun.workers.worker import run


def check_each_line_once(farm: Any, batch: Any, number: int) -> None:
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(number)]
    assert errors == []
    ended = farm.backend.store.batch(batch.id)
    assert (ended.counts.completed, ended.usage.output_tokens) == (number, 8 * number)


def test_another_worker_finishes_what_a_killed_one_had_in_hand(farm: Any) -> None:
    first = farm.work(step_s=0.05, max_num_seqs=4)
    batch = farm.batch(farm.many(150))
    farm.until(lambda: farm.num_done(batch) >= 20)
    engines = first.engines()
    first.send(signal.SIGKILL)
    first.wait()
    farm.until(lambda: not any(engine.is_running() for engine in engines), timeout_s=3)
    assert farm.num_done(batch) < 150
    farm.work()
    check_each_line_once(farm, batch, 150)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_dead_worker_had_in_hand_runs_elsewhere_within_its_lease(farm: Any, how: signal.Signals) -> None:
    first = farm.work(step_s=60.0, max_num_seqs=4)  # It never comes to an answer.
    batch = farm.batch(farm.many(64))
    farm.until(lambda: farm.backend.shards.num_leased(batch.id) > 0)
    farm.work()
    farm.until(lambda: 0 < 64 - farm.num_done(batch) == 16 * farm.backend.shards.num_leased(batch.id))
    first.send(how)
    died = time.monotonic()
    farm.until(lambda: farm.num_done(batch) == 64)
    assert time.monotonic() - died < farm.backend.settings.lease_s
    first.send(signal.SIGKILL)
    check_each_line_once(farm, batch, 64)


def test_a_worker_comes_through_the_death_of_its_engine(farm: Any) -> None:
    worker = farm.work(step_s=0.02, max_num_seqs=4)
    batch = farm.batch(farm.many(200))
    for done in (20, 80):
        farm.until(lambda done=done: farm.num_done(batch) >= done and worker.engines())
        worker.engines()[0].kill()
    check_each_line_once(farm, batch, 200)
    assert worker.process.poll() is None


def test_a_stopped_worker_hands_its_shards_back_and_the_next_one_need_not_wait(farm: Any) -> None:
    first = farm.work(step_s=0.2, max_num_seqs=4, grace_s=0.5)
    batch = farm.batch(farm.many(150))
    farm.until(lambda: farm.num_done(batch) >= 4)
    first.send(signal.SIGTERM)
    assert first.wait(timeout_s=10) == 0
    done = farm.num_done(batch)
    assert done < 150
    assert farm.cards() == set()
    assert farm.backend.shards.attempts(batch.id).get(0, 0) == 0
    leased = farm.backend.redis.zcard(f"pressrun:{{{batch.id}}}:leased")
    assert leased == 0
    farm.work()
    started = time.monotonic()
    check_each_line_once(farm, batch, 150)
    assert time.monotonic() - started < 1.0


def test_a_killed_worker_costs_nothing_over_s3_either(s3_farm: Any) -> None:
    first = s3_farm.work(step_s=0.05, max_num_seqs=4)
    batch = s3_farm.batch(s3_farm.many(60))
    s3_farm.until(lambda: s3_farm.num_done(batch) >= 20)
    first.send(signal.SIGKILL)
    s3_farm.work(step_s=0.0)
    output, errors = s3_farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(60)]
    assert errors == []
    s3_farm.until(lambda: not list(s3_farm.backend.blobs.list("segments")))


def test_a_worker_asked_to_stop_finishes_what_fits_into_its_grace_period(farm: Any) -> None:
    worker = farm.work(step_s=0.1, max_num_seqs=8, grace_s=20)
    batch = farm.batch(farm.many(60))
    farm.until(lambda: farm.num_done(batch) >= 8)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert farm.num_done(batch) == 60


def test_a_second_signal_stops_a_worker_at_once(farm: Any) -> None:
    worker = farm.work(step_s=0.5, max_num_seqs=1, grace_s=60)
    batch = farm.batch(farm.many(60))
    farm.until(lambda: farm.num_done(batch) >= 1)
    worker.send(signal.SIGINT)
    time.sleep(1.2)
    assert worker.process.poll() is None
    started = time.monotonic()
    worker.send(signal.SIGINT)
    assert worker.wait() == 0
    assert time.monotonic() - started < 4
    assert farm.backend.redis.zcard(f"pressrun:{{{batch.id}}}:leased") == 0


def test_a_worker_paused_past_its_lease_cannot_commit(farm: Any) -> None:
    first = farm.work(step_s=0.1, max_num_seqs=4)
    batch = farm.batch(farm.many(120))
    farm.until(lambda: farm.num_done(batch) >= 8)
    first.send(signal.SIGSTOP)
    second = farm.work(step_s=0.05, max_num_seqs=4)
    farm.until(lambda: farm.num_done(batch) >= 60)
    first.send(signal.SIGCONT)
    check_each_line_once(farm, batch, 120)
    # Both are alive and well afterwards, and take new work.
    check_each_line_once(farm, farm.batch(farm.many(40)), 40)
    assert first.process.poll() is None
    assert second.process.poll() is None


def test_a_worker_waits_for_a_store_that_is_away_for_a_moment(farm: Any) -> None:
    farm.work(step_s=0.05, max_num_seqs=4)
    batch = farm.batch(farm.many(100))
    farm.until(lambda: farm.num_done(batch) >= 8)
    farm.backend.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    farm.backend.redis.execute_command("CLIENT", "PAUSE", 1000)
    check_each_line_once(farm, batch, 100)


def test_workers_come_through_a_crash_of_the_store(mortal_farm: Any) -> None:
    farm, crash = mortal_farm
    worker = farm.work(step_s=0.05, max_num_seqs=4)
    batch = farm.batch(farm.many(150))
    for done in (20, 80):
        farm.until(lambda done=done: farm.num_done(batch) >= done)
        crash()
    check_each_line_once(farm, batch, 150)
    assert worker.process.poll() is None


def test_an_engine_that_cannot_start_ends_the_worker_with_an_error(farm: Any) -> None:
    worker = farm.work(broken=True)
    assert worker.wait() == 1
    assert "not enough memory for the weights" in worker.log.read_text()
    assert farm.backend.redis.smembers("rq:workers") == set()


def test_a_folder_without_a_model_ends_the_worker_with_an_error(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=tmp_path, redis_url="redis://unused", model="nope")
    with pytest.raises(SettingsError, match=r"PRESSRUN_MODEL='nope'.*holds no model"):
        run(settings, tmp_path / "nope")
