"""Workers, housekeepers and clients that run into one another, stall and die between any two calls.

Whatever happens, every line comes out once, also for who reads results as they come. A story starts actions, moves each
from call to call, kills some, lets leases lapse and windows close; at the end healthy processes take over, and
everything is counted.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import LockNotOwnedError, NoScriptError

from pressrun.jobs import arranging
from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.control import pause_batch, resume_batch, update_batch
from pressrun.jobs.errors import BlobMissing, Conflict, UserError
from pressrun.jobs.records import ENDED, Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.results import read_results
from pressrun.jobs.retry import retry_batch
from pressrun.jobs.sealing import seal_shard
from pressrun.jobs.settings import load_settings
from pressrun.jobs.store import Store
from pressrun.jobs.submit import create_batch, create_file, create_job, job_result
from pressrun.workers import housekeeping
from pressrun.workers.housekeeping import Housekeeper, Task

from .conftest import OwnValkey, chat_line, encode, serve_model
from .simulated import Process, answer, commit, missing, run_shard

CHAT = "/v1/chat/completions"
NUM_LINES, SHARD_LINES = 7, 2
NUM_SHARDS = -(-NUM_LINES // SHARD_LINES)
NAMES = [f"c{i}" for i in range(NUM_LINES)]
NUM_STORIES, NUM_SLICES = int(os.environ.get("PRESSRUN_TEST_STORIES", "96")), 8
# What an action may end in because another was faster; it is tried again, as its caller would.
LATE = (LockNotOwnedError, BlobMissing, Conflict, UserError)


@pytest.fixture(autouse=True)
def arranging_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arranging, "BOUNDARIES", (16, 64))
    monkeypatch.setattr(arranging, "WINDOW_BYTES", 1)


@pytest.fixture(autouse=True)
def every_tick_looks_at_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CARE_S", "JOBS_S", "REST_S"):
        monkeypatch.setattr(housekeeping, name, 0.0)


class Inline(Housekeeper):
    """A housekeeper whose slow work is done at once."""

    def _later(self, batch_id: str, task: Task) -> None:
        task(self.backend, batch_id)


def tick(backend: Backend) -> None:
    Inline(backend).tick()


class Story:
    """One batch or job, and what befalls it; the same for the same seed."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self.backend = backend
        self.chance = random.Random(seed)
        self.processes: list[Process] = []
        self.clients: list[Process] = []
        self.batch_id: str | None = None
        self.num_runs = 0
        self.seen: list[bytes] = []
        self.generation = 0
        events: dict[Callable[[], None], float] = {
            self.work: 4,
            self.keep_house: 4,
            self.advance: 40,
            self.finish_one: 3,
            self.read: 3,
            self.kill: self.chance.choice([0, 1, 4]),
            self.let_leases_lapse: self.chance.choice([0, 1, 3]),
            self.let_the_lock_lapse: self.chance.choice([0, 2, 8]),
            self.cancel: self.chance.choice([0, 0, 1, 4]),
            self.let_the_window_close: self.chance.choice([0, 0, 1, 4]),
            self.retry: self.chance.choice([0, 2, 8]),
            self.pause: self.chance.choice([0, 0, 2]),
            self.extend: self.chance.choice([0, 0, 1]),
        }
        self.events, self.weights = list(events), list(events.values())

    def tell(self) -> None:
        self.backend.redis.flushall()
        serve_model(self.backend)
        self.submit()
        for _ in range(self.chance.randint(20, 200)):
            event = self.chance.choices(self.events, self.weights)[0]
            if self.exists() or event in (self.advance, self.keep_house):
                event()
        self.end()

    def begin(self) -> Batch:
        """Create the batch, with nothing that befalls it meanwhile."""
        serve_model(self.backend)
        file = create_file(self.backend, filename="in.jsonl", purpose="batch", chunks=[self.input()])
        batch = create_batch(self.backend, input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        self.batch_id = batch.id
        return batch

    # What may happen

    def submit(self) -> None:
        if self.chance.random() < 0.2:
            body = chat_line("x")["body"]
            self.start(lambda backend: create_job(backend, url=CHAT, body=body))
        else:
            file = create_file(self.backend, filename="in.jsonl", purpose="batch", chunks=[self.input()])
            self.start(
                lambda backend: create_batch(backend, input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            )
        if self.chance.random() < 0.6:
            self.processes[0].finish()
            self.start(tick)
            self.processes[1].finish()

    def input(self) -> bytes:
        """Lines in their own order, or two beginnings or three twins in turn, which are brought together."""
        kind = self.chance.choice(["own", "own", "beginnings", "twins"])
        if kind == "own":
            return encode(*map(chat_line, NAMES))
        texts = [f"topic {i % 2} " * 9 if kind == "beginnings" else f"t{i % 3}" for i in range(NUM_LINES)]
        asked = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        chance = {"temperature": 0.0 if kind == "twins" else 1.0}
        return encode(*(chat_line(name, **one, **chance) for name, one in zip(NAMES, asked, strict=True)))

    def start(self, action: Callable[[Backend], Any]) -> None:
        self.processes.append(Process(self.backend, action))

    def exists(self) -> bool:
        if self.batch_id is None:
            found = self.backend.store.active("batch") + self.backend.store.active("job")
            self.batch_id = found[0] if found else None
        return self.batch_id is not None

    def alive(self) -> list[Process]:
        return [process for process in self.processes if not process.ended]

    def work(self) -> None:
        """A worker gets a shard, whether it was queued for it or not."""
        if len(self.alive()) < 6:
            self.num_runs += 1
            batch_id, shard, seed = str(self.batch_id), self.chance.randrange(NUM_SHARDS), self.num_runs
            self.start(lambda backend: run_shard(backend, batch_id, shard, seed))

    def keep_house(self) -> None:
        if len(self.alive()) < 6:
            self.start(tick)

    def cancel(self) -> None:
        batch_id = str(self.batch_id)
        self.start(lambda backend: backend.store.cancel(batch_id))

    def retry(self) -> None:
        """A client wants what failed again, or some lines, also such as went well."""
        batch_id = str(self.batch_id)
        lines: Any = self.chance.choice(["failed", "failed", self.chance.sample(NAMES, 2)])
        process = Process(self.backend, lambda backend: retry_batch(backend, batch_id, lines))
        self.processes.append(process)
        self.clients.append(process)

    def pause(self) -> None:
        batch_id, change = str(self.batch_id), self.chance.choice([pause_batch, resume_batch])
        self.start(lambda backend: change(backend, batch_id))

    def extend(self) -> None:
        batch_id = str(self.batch_id)
        self.start(lambda backend: update_batch(backend, batch_id, priority=3, completion_window="2d"))

    def advance(self) -> None:
        for process in self.chance.sample(self.alive(), min(1, len(self.alive()))):
            process.step(self.chance.choice([1, 1, 2, 4, 8]))

    def finish_one(self) -> None:
        for process in self.chance.sample(self.alive(), min(1, len(self.alive()))):
            process.finish()

    def kill(self) -> None:
        for process in self.chance.sample(self.alive(), min(1, len(self.alive()))):
            process.kill()

    def let_leases_lapse(self) -> None:
        key = f"{batch_key(str(self.batch_id))}:leased"
        for shard in self.backend.redis.zrange(key, 0, -1):
            self.backend.redis.zadd(key, {shard: 0}, xx=True)

    def let_the_lock_lapse(self) -> None:
        self.backend.redis.delete(f"{batch_key(str(self.batch_id))}:lock")

    def let_the_window_close(self) -> None:
        self.backend.redis.hset(batch_key(str(self.batch_id)), "expires_at", 1)

    def read(self) -> bool:
        """A client reads on; whether that was the end. It is shown only what Redis has on disk."""
        if str(self.batch_id).startswith("job_"):
            return True
        generation = self.backend.store.batch(str(self.batch_id)).generation
        if generation != self.generation:
            self.seen, self.generation = [], generation  # Its lines are others, in another order.
        page = read_results(self.backend, str(self.batch_id), len(self.seen), self.chance.choice([1, 2, 3, 100]))
        if not page.settled:
            self.backend.store.make_durable()
            assert page.server_run == self.backend.store.server_run()
        self.seen += page.lines
        assert page.next == len(self.seen)
        return page.is_last

    # How it ends

    def end(self) -> None:
        stalled = self.chance.sample(self.alive(), len(self.alive()) // 2)
        for process in self.processes:
            if process not in stalled or process in self.clients:
                process.kill()
        if self.exists():
            self.bring_to_an_end()
            batch = self.check()
            for process in stalled:
                process.finish()  # What comes back from a long stall changes nothing any more.
            tick(self.backend)
            assert self.check() == batch
            self.check_leftovers(batch)
        for process in self.processes:
            process.kill()
            if process.error is not None and not isinstance(process.error, LATE):
                raise process.error

    def bring_to_an_end(self) -> None:
        batch_id = str(self.batch_id)
        self.go_on()
        for _ in range(20):
            if not self.backend.store.active("batch") + self.backend.store.active("job"):
                return
            self.let_leases_lapse()
            self.let_the_lock_lapse()
            tick(self.backend)
            for shard in self.backend.shards.unsealed(batch_id):
                self.num_runs += 1
                run_shard(self.backend, batch_id, shard, self.num_runs)
        raise AssertionError(f"it does not end: {self.backend.store.batch(batch_id)}")

    def go_on(self) -> None:
        if self.backend.store.batch(str(self.batch_id)).paused:
            self.backend.redis.hset(batch_key(str(self.batch_id)), "paused", "0")

    def check(self) -> Batch:
        """Every line came out once, under its name and in its place, and all numbers are right."""
        batch = self.backend.store.batch(str(self.batch_id))
        assert batch.status in ENDED - {"failed"}, batch
        if batch.kind == "job":
            result = job_result(self.backend, batch)
            self.check_lines(batch, [batch.id], [result])
            return batch
        output, errors = list(self.lines(batch.output_file_id)), list(self.lines(batch.error_file_id))
        self.check_lines(batch, NAMES, output + errors)
        assert all(_ran_well(line) for line in output)
        assert not any(_ran_well(line) for line in errors)
        for lines in (output, errors):
            names = [line["custom_id"] for line in lines]
            assert names == sorted(names)
        while not self.read():
            pass
        assert sorted(self.seen) == sorted(self.raw_lines(batch.output_file_id) + self.raw_lines(batch.error_file_id))
        if not batch.arranged or batch.generation:
            assert [json.loads(line)["custom_id"] for line in self.seen] == NAMES
        return batch

    def check_leftovers(self, batch: Batch) -> None:
        """Of the files that were written of its last generation, those are left that clients see."""
        if batch.kind == "job":
            return
        ids = filter(None, (batch.output_file_id, batch.error_file_id))
        wanted = {self.backend.store.file(file_id).blob for file_id in ids}
        found = set(self.backend.blobs.list(batch.results_folder))
        assert found == wanted | {batch.index_blob}

    def check_lines(self, batch: Batch, names: list[str], lines: list[Any]) -> None:
        assert sorted(line["custom_id"] for line in lines) == names
        completed = [line["response"]["body"]["run"] for line in lines if _ran_well(line)]
        unrun = [line for line in lines if line["error"] and line["error"]["code"] != "worker_lost"]
        counts = batch.counts
        assert (counts.total, counts.completed, counts.unrun) == (len(names), len(completed), len(unrun))
        assert counts.failed == len(names) - len(completed) - len(unrun)
        assert sum(error.count for error in batch.common_errors) == counts.failed
        used = batch.usage.input_tokens, batch.usage.output_tokens
        assert used == (len(completed), sum(completed)) or (batch.generation and used > (len(completed), 0))

    def lines(self, file_id: str | None) -> Iterator[Any]:
        if file_id is not None:
            file = self.backend.store.file(file_id)
            assert file.bytes == self.backend.blobs.size(file.blob)
        yield from map(json.loads, self.raw_lines(file_id))

    def raw_lines(self, file_id: str | None) -> list[bytes]:
        return b"".join(self.backend.blobs.open(self.backend.store.file(file_id).blob)).splitlines() if file_id else []


def run_shards(backend: Backend, batch_id: str) -> None:
    """Run them all, and so end the batch."""
    for shard in range(NUM_SHARDS):
        while shard in backend.shards.unsealed(batch_id):  # It may have been released halfway.
            run_shard(backend, batch_id, shard, shard + 1)


def stalled_at_its_segment(backend: Backend, batch: Batch) -> Process:
    """A worker that has read the first shard's answers, its own, and stands before the call that writes them."""
    claim = backend.shards.claim(batch.id, 0, "stalled", 60.0)
    assert claim is not None
    commit(backend, claim, [answer(line, 1) for line in missing(backend, claim)])
    process = Process(backend, lambda other: seal_shard(other, claim))
    process.step(2)
    return process


def _ran_well(line: Any) -> bool:
    return bool(line["response"]) and line["response"]["status_code"] == 200


@pytest.mark.parametrize("part", range(NUM_SLICES))
def test_whatever_dies_or_stalls_every_line_comes_out_once(
    forgetful_valkey: OwnValkey, tmp_path: Path, part: int
) -> None:
    settings = load_settings({}, data_dir=tmp_path, shard_lines=SHARD_LINES, feed_window=3, max_attempts=4)
    with forgetful_valkey.client() as redis:
        backend = backend_on(settings, redis)
        for seed in range(part, NUM_STORIES, NUM_SLICES):
            try:
                Story(backend, seed).tell()
            except BaseException as error:
                error.add_note(f"in the story of seed {seed}")
                raise


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_same_over_s3(forgetful_valkey: OwnValkey, tmp_path: Path, s3_url: str, seed: int) -> None:
    settings = load_settings(
        {},
        data_dir=tmp_path,
        blob_url=f"{s3_url}/stories-{seed}",
        shard_lines=SHARD_LINES,
        feed_window=3,
        max_attempts=4,
    )
    with forgetful_valkey.client() as redis:
        Story(backend_on(settings, redis), seed).tell()


@pytest.mark.parametrize("wakes", ["before the end", "after the end"])
def test_who_stalls_at_its_segment_overwrites_nobody_s_answers_after_a_crash_of_redis(
    own_valkey: OwnValkey, tmp_path: Path, wakes: str
) -> None:
    settings = load_settings({}, data_dir=tmp_path, shard_lines=SHARD_LINES, feed_window=3, max_attempts=4)
    with own_valkey.client() as redis:
        story = Story(backend_on(settings, redis), 0)
        backend = story.backend
        batch = story.begin()
        tick(backend)
        backend.store.make_durable()
        safe = own_valkey.log.stat().st_size
        stalled = stalled_at_its_segment(backend, batch)
        own_valkey.lose_power(keep=safe)  # All of the stalled worker's answers are gone, and others give their own.
        serve_model(backend)
        run_shard(backend, batch.id, 0, 2)
        assert backend.shards.segment(batch.id, 0) is not None
        if wakes == "before the end":
            stalled.finish()
        story.num_runs = 2
        story.bring_to_an_end()
        done = story.check()
        stalled.finish()
        assert stalled.error is None or isinstance(stalled.error, LATE)
        assert story.check() == done
        assert not list(backend.blobs.list("segments"))


@pytest.mark.parametrize("wakes", ["before the end", "after the end"])
@pytest.mark.parametrize("part", ["output", "error", "index"])
@pytest.mark.parametrize("seed", [0, 1])
def test_who_stalls_in_a_result_file_overwrites_nobody_s_after_a_crash_of_redis(
    own_valkey: OwnValkey, tmp_path: Path, part: str, wakes: str, seed: int
) -> None:
    settings = load_settings({}, data_dir=tmp_path, shard_lines=SHARD_LINES, feed_window=3, max_attempts=4)
    with own_valkey.client() as redis:
        story = Story(backend_on(settings, redis), seed)
        backend = story.backend
        batch = story.begin()
        tick(backend)
        backend.store.make_durable()
        safe = own_valkey.log.stat().st_size
        stalled = Process(backend, lambda other: run_shards(other, batch.id))
        while not (stalled.writing.startswith("results/") and stalled.writing.endswith(f".{part}")):
            stalled.step()
            assert not stalled.ended
        own_valkey.lose_power(keep=safe)  # No line has been answered, let alone sealed.
        serve_model(backend)
        if wakes == "before the end":
            stalled.finish()
        story.num_runs = NUM_SHARDS
        story.bring_to_an_end()
        done = story.check()
        stalled.finish()
        assert stalled.error is None or isinstance(stalled.error, LATE)
        story.seen = []  # Who reads from the beginning, by the index, reads the same.
        assert story.check() == done
        story.check_leftovers(done)


@pytest.mark.parametrize("seed", range(int(os.environ.get("PRESSRUN_TEST_BLACKOUTS", "4"))))
def test_a_machine_that_loses_power_takes_no_line_with_it(
    own_valkey: OwnValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What Redis loses then is whatever it wrote since somebody waited for its disk: leases, results, sealed shards."""
    safe = 0
    wait = Store.make_durable

    def make_durable(store: Store) -> None:
        nonlocal safe
        wait(store)
        safe = own_valkey.log.stat().st_size

    monkeypatch.setattr(Store, "make_durable", make_durable)
    settings = load_settings({}, data_dir=tmp_path, shard_lines=SHARD_LINES, feed_window=3, max_attempts=4)
    with own_valkey.client() as redis:
        story = Story(backend_on(settings, redis), seed)
        batch = story.begin()

        def lose_power() -> None:
            own_valkey.lose_power(keep=story.chance.randint(safe, own_valkey.log.stat().st_size))
            serve_model(story.backend)

        for number in range(8):
            tick(story.backend)
            story.start(lambda backend, seed=-number: run_shard(backend, batch.id, seed % NUM_SHARDS, seed))  # type: ignore[misc]
            story.processes[-1].step(story.chance.randint(2, 12))
            for shard in story.chance.sample(range(NUM_SHARDS), 2):
                story.num_runs += 1
                run_shard(story.backend, batch.id, shard, story.num_runs)
            story.read()
            if story.chance.random() < 0.7:
                lose_power()
        for process in story.chance.sample(story.processes, 4):
            process.finish()  # They come back from a long stall.
        story.bring_to_an_end()
        done = story.check()
        for process in story.processes:
            process.finish()
            # Scripts that a server was given are gone with it: a worker asks again.
            assert process.error is None or isinstance(process.error, (*LATE, NoScriptError))
        lose_power()
        story.bring_to_an_end()
        assert story.check() == done
