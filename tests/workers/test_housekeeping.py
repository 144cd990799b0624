"""The housekeeper as every worker runs it, with simulated workers beside it."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.ids import job_id
from pressrun.jobs.queue import queue_of, queued_job_ids, rq_job_id, rq_queue
from pressrun.jobs.records import ENDED, Batch, BatchKind
from pressrun.jobs.redis_keys import CARE, FED, batch_key
from pressrun.jobs.settings import load_settings
from pressrun.jobs.submit import create_job, delete_file, job_result
from pressrun.jobs.uploads import UPLOADS, add_part, create_upload, find_upload, upload_key
from pressrun.workers import housekeeping
from pressrun.workers.housekeeping import Housekeeper

from ..jobs.conftest import OwnValkey, chat_line, serve_model, upload_batch
from ..jobs.simulated import answer, commit, missing, queued_shards, run_shard


def new_backend(redis: Redis, folder: Path, **changes: Any) -> Backend:
    values = {"data_dir": folder, "shard_lines": 4, "feed_window": 3, "lease_s": 1.0, "max_attempts": 3} | changes
    backend = backend_on(load_settings({}, **values), redis)
    serve_model(backend)
    return backend


@pytest.fixture
def backend(redis: Redis, tmp_path: Path) -> Backend:
    return new_backend(redis, tmp_path)


@contextmanager
def housekeepers(backend: Backend, number: int = 1) -> Iterator[None]:
    """So many of them, each in a thread of its own as in a worker."""
    stop = threading.Event()
    threads = [threading.Thread(target=Housekeeper(backend).run, args=(stop,)) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
        assert all(thread.is_alive() for thread in threads)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def ended(backend: Backend, batch: Batch) -> bool:
    return backend.store.batch(batch.id).status in ENDED


def work_until_ended(backend: Backend, *batches: Batch) -> None:
    """A worker that runs whatever is queued."""

    def turn() -> bool:
        for kind in housekeeping.KINDS:
            for batch_id, shard in queued_shards(backend, kind):
                run_shard(backend, batch_id, shard)
        return all(ended(backend, batch) for batch in batches)

    until(turn)


def new_batch(backend: Backend, num_lines: int) -> Batch:
    return upload_batch(backend, [chat_line(f"c{i:04}") for i in range(num_lines)])


def new_job(backend: Backend) -> Batch:
    return create_job(backend, url="/v1/chat/completions", body=chat_line("x")["body"])


def queue_length(backend: Backend, kind: BatchKind = "batch") -> int:
    return int(backend.redis.llen(rq_queue(backend.redis, queue_of(kind, "m")).key))


def ids(backend: Backend, batch: Batch) -> dict[str, list[str]]:
    """The custom ids in a batch's files."""
    found = {}
    for part in ("output", "error"):
        file_id = getattr(backend.store.batch(batch.id), f"{part}_file_id")
        raw = b"".join(backend.blobs.open(backend.store.file(file_id).blob)) if file_id else b""
        found[part] = [json.loads(line)["custom_id"] for line in raw.splitlines()]
    return found


def names(num_lines: int) -> list[str]:
    return [f"c{i:04}" for i in range(num_lines)]


def test_a_batch_goes_from_creation_to_its_files(backend: Backend) -> None:
    batch = new_batch(backend, 50)
    with housekeepers(backend):
        work_until_ended(backend, batch)
    found = ids(backend, batch)
    assert backend.store.batch(batch.id).status == "completed"
    assert found["output"] == sorted(found["output"])
    assert sorted(found["output"] + found["error"]) == names(50)
    assert queue_length(backend) == 0


def test_no_more_is_in_rq_than_a_window(backend: Backend) -> None:
    batch = new_batch(backend, 200)
    with housekeepers(backend, 2):
        until(lambda: queue_length(backend) == 3)
        time.sleep(0.3)
        assert queue_length(backend) == 3
        assert len(backend.redis.keys(f"rq:job:{batch.id}*")) == 3
        assert queued_shards(backend) == [(batch.id, shard) for shard in range(3)]
        until(lambda: queue_length(backend) == 3)
        assert queued_shards(backend) == [(batch.id, shard) for shard in range(3, 6)]


def test_a_batch_of_bad_lines_fails_and_nothing_is_left_to_do(backend: Backend) -> None:
    batch = upload_batch(backend, [b"{}", chat_line("a")])
    with housekeepers(backend):
        until(lambda: backend.store.active("batch") == [])
    failed = backend.store.batch(batch.id)
    assert (failed.status, failed.errors[0].line) == ("failed", 1)


def fed(backend: Backend) -> Batch:
    """A batch whose only shard is queued, and nobody about."""
    batch = new_batch(backend, 4)
    with housekeepers(backend):
        until(lambda: queue_length(backend) == 1)
    return batch


@pytest.mark.parametrize("how", ["rq empty", "taken and died", "fed and died"])
def test_a_shard_that_rq_has_lost_is_queued_again(backend: Backend, how: str) -> None:
    batch = fed(backend)
    if how == "rq empty":
        rq_queue(backend.redis, queue_of("batch", "m")).empty()
    else:
        queued_shards(backend)
    if how == "fed and died":
        backend.redis.delete(f"rq:job:{batch.id}-0")
    with housekeepers(backend, 2):
        until(lambda: queue_length(backend) > 0)
        assert queued_shards(backend) == [(batch.id, 0)]
        run_shard(backend, batch.id, 0)
        until(lambda: backend.store.active("batch") == [])
    assert ids(backend, batch)["output"] + ids(backend, batch)["error"] != []


def test_a_shard_that_was_just_taken_is_not_taken_for_lost(backend: Backend) -> None:
    batch = fed(backend)
    patient = new_backend(backend.redis, backend.settings.data_dir, lease_s=60)
    housekeeper = Housekeeper(patient)
    (taken,) = queued_shards(backend)
    for _ in range(3):  # All that it looks for is looked for, within one lease.
        housekeeper._due.clear()
        housekeeper.tick()
    assert queue_length(backend) == 0
    run_shard(backend, *taken)
    assert ended(backend, batch)


def test_the_shard_of_a_silent_worker_goes_to_another_without_its_finished_lines(backend: Backend) -> None:
    batch = fed(backend)
    (taken,) = queued_shards(backend)
    claim = backend.shards.claim(*taken, "silent", 0.2)
    assert claim is not None
    commit(backend, claim, map(answer, missing(backend, claim)[:2]))
    with housekeepers(backend, 3):
        until(lambda: queue_length(backend) > 0)
        time.sleep(0.3)
        assert queued_shards(backend) == [taken]
        again = backend.shards.claim(*taken, "other", 5.0)
        assert again is not None
        assert again.done == {0, 1}
        assert commit(backend, claim, []) == "lost"
        run_shard(backend, *taken)
        until(lambda: ended(backend, batch))


def test_a_shard_that_was_drawn_by_who_died_is_missed_though_nobody_is_to_look_at_its_batch(backend: Backend) -> None:
    batch = fed(backend)
    queued_shards(backend)  # It never came to RQ.
    backend.redis.delete(FED)
    backend.store.begin_feeding([batch.id])
    backend.redis.zadd(CARE["batch"], {batch.id: time.time() + 1000})
    started = time.monotonic()
    with housekeepers(backend):
        until(lambda: queue_length(backend) > 0)
    assert time.monotonic() - started < backend.settings.lease_s


def test_batches_are_watched_while_something_is_queued_of_them(backend: Backend) -> None:
    batch = fed(backend)
    assert backend.store.fed() == [batch.id]
    backend.store.end_feeding([batch.id], 60)
    assert backend.store.fed() == [batch.id]
    backend.store.end_feeding([batch.id], -2)
    assert backend.store.fed() == []
    with housekeepers(backend):  # As an earlier version left it.
        until(lambda: backend.store.fed() == [batch.id])


def test_a_look_that_is_out_of_date_lets_nobody_rest(backend: Backend) -> None:
    batch = fed(backend)
    store = backend.store
    store.look_at(batch.id)
    early = store.due_for_care("batch", 10, 0.0)
    assert early.ids == (batch.id,)
    time.sleep(0.001)
    late = store.due_for_care("batch", 10, 60.0)
    assert late.ids == (batch.id,)
    before = backend.redis.zscore(CARE["batch"], batch.id)
    store.let_rest(early, {batch.id: time.time() + 1000})
    assert backend.redis.zscore(CARE["batch"], batch.id) == before
    store.let_rest(late, {batch.id: 12345678901.0})
    assert backend.redis.zscore(CARE["batch"], batch.id) == 12345678901.0


@pytest.mark.parametrize("how", ["dies", "hands back"])
def test_a_shard_that_never_gets_anywhere_ends_as_error_lines(backend: Backend, how: str) -> None:
    batch = new_batch(backend, 12)

    def turn() -> bool:
        for batch_id, shard in queued_shards(backend):
            if shard != 1:
                run_shard(backend, batch_id, shard)
                continue
            claim = backend.shards.claim(batch_id, shard, "poisoned", 0.01)
            if claim is not None and how == "hands back":
                backend.shards.release(claim, count_attempt=True)
        return ended(backend, batch)

    with housekeepers(backend, 2):
        until(turn)
    done, found = backend.store.batch(batch.id), ids(backend, batch)
    assert done.status == "completed"
    assert set(names(12)[4:8]) <= set(found["error"])
    assert sorted(found["output"] + found["error"]) == names(12)
    raw = b"".join(backend.blobs.open(done.result_blob("error")))
    assert raw.count(b"worker_lost") == 4
    assert (done.counts.unrun, done.counts.done) == (0, 12)


@pytest.mark.parametrize("when", ["before validation", "half done"])
@pytest.mark.parametrize("why", ["cancelled", "expired"])
def test_a_batch_that_ends_early_answers_every_line(backend: Backend, when: str, why: str) -> None:
    batch = new_batch(backend, 20)
    if when == "half done":
        with housekeepers(backend):
            until(lambda: queue_length(backend) == 3)
        run_shard(backend, *queued_shards(backend)[0])
    if why == "cancelled":
        backend.store.cancel(batch.id)
    else:
        backend.redis.hset(batch_key(batch.id), "expires_at", int(time.time()))
    with housekeepers(backend, 2):
        until(lambda: backend.store.active("batch") == [])
    done, found = backend.store.batch(batch.id), ids(backend, batch)
    assert done.status == why
    assert sorted(found["output"] + found["error"]) == names(20)
    assert done.counts.unrun == (20 if when == "before validation" else 16)
    raw = b"".join(backend.blobs.open(done.result_blob("error")))
    assert raw.count(b'"code":"batch_%s"' % why.encode()) == done.counts.unrun
    until(lambda: queue_length(backend) == 0)


def test_many_housekeepers_and_workers_share_batches_and_jobs(backend: Backend) -> None:
    batches = [new_batch(backend, 40) for _ in range(3)]
    jobs = [new_job(backend) for _ in range(10)]
    with housekeepers(backend, 4):
        workers = [threading.Thread(target=work_until_ended, args=(backend, *batches, *jobs)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        until(lambda: backend.store.active("batch") + backend.store.active("job") == [])
    for batch in batches:
        found = ids(backend, batch)
        assert sorted(found["output"] + found["error"]) == names(40)
        assert backend.store.batch(batch.id).counts.done == 40
    assert all(job_result(backend, backend.store.batch(job.id)) for job in jobs)


@pytest.mark.parametrize("died", ["before its shard was written", "before it was queued"])
def test_a_job_whose_submission_broke_off_is_run_all_the_same(backend: Backend, died: str) -> None:
    model = new_job(backend)
    queued_shards(backend, "job")
    job = Batch(
        id=job_id(),
        kind="job",
        endpoint=model.endpoint,
        input_file_id="",
        completion_window="24h",
        created_at=model.created_at,
        expires_at=model.expires_at,
    )
    line = chat_line(job.id)
    backend.job_blobs.put(job.input_blob, [json.dumps(line).encode()])
    backend.store.create_batch(job)
    if died == "before it was queued":
        housekeeping.validate_batch(backend, job.id)
        backend.shards.feed([job.id], 1)
    with housekeepers(backend):
        until(lambda: rq_job_id(job.id, 0) in queued_job_ids(backend.redis, "job"))
        assert backend.redis.zscore(CARE["batch"], job.id) is None  # Else it would be fed as a batch too.
        work_until_ended(backend, job)
    result = job_result(backend, backend.store.batch(job.id))
    assert result is not None
    assert result["custom_id"] == job.id


def test_a_batch_that_cannot_be_helped_does_not_stop_the_others(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [new_batch(backend, 4) for _ in range(3)]
    for batch in broken:
        housekeeping.validate_batch(backend, batch.id)
        backend.store.cancel(batch.id)
        backend.blobs.delete(batch.input_blob)  # By other hands than Pressrun's.
    sound = new_batch(backend, 8)
    with housekeepers(backend):
        work_until_ended(backend, sound)
    assert not any(ended(backend, batch) for batch in broken)
    assert "will be tried again" in caplog.text
    assert len(caplog.records) < 30


def test_expired_files_are_swept(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "FILES_S", 0.1)
    used, unused = new_batch(backend, 4), new_batch(backend, 4)
    backend.store.cancel(unused.id)
    with housekeepers(backend, 2):
        until(lambda: ended(backend, unused) and queue_length(backend) == 1)
        for batch in (used, unused):
            delete_file(backend, batch.input_file_id)
        until(lambda: used.input_blob in backend.blobs.list("files"))
        until(lambda: unused.input_blob not in backend.blobs.list("files"))
        work_until_ended(backend, used)
        until(lambda: used.input_blob not in backend.blobs.list("files"))


def test_an_upload_whose_time_is_up_is_swept(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "FILES_S", 0.1)
    upload = create_upload(backend, filename="a", purpose="user_data", size=10, mime_type="text/plain")
    add_part(backend, upload.id, [b"x"])
    with housekeepers(backend, 2):
        time.sleep(0.3)
        assert len(list(backend.blobs.list("uploads"))) == 1
        backend.redis.hset(upload_key(upload.id), "expires_at", 1)
        backend.redis.zadd(UPLOADS, {upload.id: 1})
        until(lambda: list(backend.blobs.list("uploads")) == [])
    assert find_upload(backend, upload.id).status == "expired"


def test_housekeeping_waits_for_a_redis_that_is_away(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        valkey = OwnValkey(Path(folder), appendonly="yes")
        with valkey.client() as redis:
            backend = new_backend(redis, tmp_path)
            impatient = Redis(unix_socket_path=valkey.config["unixsocket"])
            with impatient, housekeepers(backend_on(backend.settings, impatient)):
                batch = new_batch(backend, 8)
                valkey.kill()
                time.sleep(0.3)
                valkey.start()
                serve_model(backend)
                work_until_ended(backend, batch)
            assert sorted(ids(backend, batch)["output"] + ids(backend, batch)["error"]) == names(8)
        valkey.kill()


def test_what_is_in_hand_is_cared_for_while_redis_is_full_and_the_rest_goes_on_after(backend: Backend) -> None:
    silent, late = (upload_batch(backend, [chat_line(f"c{i}") for i in range(8)]) for _ in range(2))
    with housekeepers(backend):
        until(lambda: len(queued_shards(backend)) > 0)
        until(lambda: all(backend.store.batch(batch.id).status == "in_progress" for batch in (silent, late)))
    assert backend.shards.claim(silent.id, 0, "silent", 0.0) is not None
    backend.redis.hset(batch_key(late.id), "expires_at", 1)
    backend.store.look_at(silent.id, late.id)
    backend.redis.config_set("maxmemory", "1")
    try:
        Housekeeper(backend).tick()
        assert backend.store.batch(late.id).closing == "expired"
        assert backend.shards.num_leased(silent.id) == 0
    finally:
        backend.redis.config_set("maxmemory", "0")
    with housekeepers(backend):
        work_until_ended(backend, silent, late)
    assert backend.store.batch(silent.id).status == "completed"


def test_many_waiting_jobs_cost_little(backend: Backend) -> None:
    jobs = [new_job(backend) for _ in range(500)]
    housekeeper = Housekeeper(backend)
    housekeeper.tick()
    started = time.process_time()
    for _ in range(3):
        housekeeper._due.clear()
        housekeeper.tick()
    assert (time.process_time() - started) / 3 < 0.25
    assert queue_length(backend, "job") == len(jobs)
