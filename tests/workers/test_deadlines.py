"""What has run out of time or is cancelled stops decoding at once and frees its pages: a batch, or one line of it.

On the real engine; what that need not show is shown on lines in flight, and on the echo engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.ids import batch_id, file_id
from pressrun.jobs.live import Call
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.settings import load_settings
from pressrun.jobs.submit import create_file
from pressrun.workers.engine_process import EngineProcess
from pressrun.workers.engines import engine_of
from pressrun.workers.flight import Flight
from pressrun.workers.worker import PressrunWorker

from ..jobs.conftest import encode
from .conftest import CHAT, Farm, farm_on
from .inbox import Inbox, names, prepared, shard

MODEL = "smol"
NUM_LINES = 8
SOON_S = 2.0  # A turn of the worker, a step of the engine, and the machine's other work.

real = pytest.mark.model


@pytest.fixture(scope="module")
def built(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = load_settings(
        {},
        data_dir=tmp_path_factory.mktemp("deadlines"),
        model=str(smollm2),
        served_model_name=MODEL,
        max_model_len=2048,
        kv_cache_gb=0.25,
        device="cpu",
    )
    factory, load_tokenizer = engine_of(settings, smollm2)
    return settings, factory, load_tokenizer()


@pytest.fixture
def worker(redis: Redis, redis_server: str, built: Any) -> Iterator[PressrunWorker]:
    """A worker in a thread, so that the test sees what its engine says of itself."""
    settings, factory, tokenizer = built
    backend = backend_on(settings.model_copy(update={"redis_url": redis_server}), redis)
    worker = PressrunWorker(backend, EngineProcess(factory), tokenizer, grace_s=0.0)
    thread = threading.Thread(target=worker.work)
    thread.start()
    until(lambda: backend.store.models(), 60)
    yield worker
    worker.request_stop()
    thread.join(timeout=30)


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> float:
    """Seconds until it was so."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - started


def long_batch(backend: Backend, window_s: int, options: Mapping[int, dict[str, Any]] | None = None) -> Batch:
    """Lines of a thousand tokens each, which take a CPU far longer than the window."""
    lines = [Farm.ask(f"c{i}", "Count.", model=MODEL, max_tokens=1000, ignore_eos=True) for i in range(NUM_LINES)]
    for index, wanted in (options or {}).items():
        lines[index]["pressrun"] = wanted
    raw = encode(*lines)
    file = create_file(backend, filename="a.jsonl", purpose="batch", chunks=[raw])
    now = int(time.time())
    batch = Batch(
        id=batch_id(),
        kind="batch",
        endpoint=CHAT,
        input_file_id=file.id,
        completion_window=f"{window_s}s",  # Shorter than clients may choose.
        created_at=now,
        expires_at=now + window_s,
        reserved_output_id=file_id(),
        reserved_error_id=file_id(),
    )
    backend.store.create_batch(batch)
    return batch


def is_idle(worker: PressrunWorker) -> bool:
    load = worker.engine.load
    return load is not None and (load.num_running, load.num_waiting, load.num_free_pages) == (0, 0, load.num_pages)


def is_decoding(worker: PressrunWorker) -> bool:
    load = worker.engine.load
    return load is not None and load.num_running == NUM_LINES and load.num_free_pages < load.num_pages


def num_running(worker: PressrunWorker) -> int:
    return -1 if worker.engine.load is None else worker.engine.load.num_running


def codes(backend: Backend, batch: Batch) -> list[str]:
    raw = b"".join(backend.blobs.open(backend.store.batch(batch.id).result_blob("error")))
    return [json.loads(line)["error"]["code"] for line in raw.splitlines()]


@real
def test_a_batch_that_expires_leaves_the_engine_at_once(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 5)
    until(lambda: is_decoding(worker))
    time.sleep(max(0.0, batch.expires_at - time.time()))
    assert until(lambda: is_idle(worker)) < SOON_S
    until(lambda: worker.backend.store.batch(batch.id).status == "expired")
    assert codes(worker.backend, batch) == ["batch_expired"] * NUM_LINES


@real
def test_a_batch_that_is_cancelled_leaves_the_engine_within_a_second(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 600)
    until(lambda: is_decoding(worker))
    worker.backend.store.move(batch.id, "cancelling", closing="cancelled")
    assert until(lambda: is_idle(worker)) < 1.0 + SOON_S
    until(lambda: worker.backend.store.batch(batch.id).status == "cancelled")
    assert codes(worker.backend, batch) == ["batch_cancelled"] * NUM_LINES


@real
@pytest.mark.parametrize("streams", [True, False])
def test_an_online_request_that_nobody_waits_for_gives_its_pages_back_at_once(
    worker: PressrunWorker, streams: bool
) -> None:
    live = worker.backend.live
    live.live_on("api")
    body = Farm.ask("x", "Count.", model=MODEL, max_tokens=1000, ignore_eos=True, stream=streams)["body"]
    call = Call(id="live_x", attempt=1, api="api", url=CHAT, model=MODEL, body=body)
    assert live.ask(call, most_waiting=1, life_s=60) == "ok"
    until(lambda: num_running(worker) == 1)
    live.hang_up(call)
    assert until(lambda: is_idle(worker)) < SOON_S


@real
def test_a_window_that_was_prolonged_meanwhile_holds(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 4)
    until(lambda: is_decoding(worker))
    worker.backend.redis.hset(batch_key(batch.id), "expires_at", batch.expires_at + 600)
    time.sleep(max(0.0, batch.expires_at + 1 - time.time()))
    assert is_decoding(worker)
    worker.backend.store.move(batch.id, "cancelling", closing="cancelled")
    until(lambda: is_idle(worker))


@real
def test_lines_whose_time_is_up_leave_the_engine_and_the_other_stays(worker: PressrunWorker) -> None:
    batch = long_batch(worker.backend, 600, {index: {"timeout_s": 3} for index in range(1, NUM_LINES)})
    until(lambda: is_decoding(worker))
    assert until(lambda: num_running(worker) == 1) < 3 + SOON_S
    load = worker.engine.load
    assert load is not None
    num_tokens = 100 + load.num_generated_tokens // NUM_LINES  # The prompt has less than a hundred.
    assert 0 < load.num_pages - load.num_free_pages <= 1 + num_tokens // load.page_size
    until(lambda: worker.backend.store.batch(batch.id).counts.failed == NUM_LINES - 1)
    assert num_running(worker) == 1
    worker.backend.store.move(batch.id, "cancelling", closing="cancelled")
    until(lambda: is_idle(worker))
    until(lambda: worker.backend.store.batch(batch.id).status == "cancelled")
    assert codes(worker.backend, batch) == ["batch_cancelled"] + ["line_timeout"] * (NUM_LINES - 1)


def test_lines_that_wait_too_long_for_their_turn_fail_and_the_rest_is_answered(farm: Farm) -> None:
    farm.work(step_s=0.2, max_num_seqs=1)
    lines = farm.many(12)  # 2.4 s of work
    for line in lines[4:8]:
        line["pressrun"] = {"timeout_s": 0.3}
    batch = farm.batch(lines)
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert [line["custom_id"] for line in errors] == [f"line-{i}" for i in range(4, 8)]
    assert {(line["response"], line["error"]["code"]) for line in errors} == {(None, "line_timeout")}
    counts = farm.backend.store.batch(batch.id).counts
    assert (counts.completed, counts.failed) == (8, 4)


@pytest.fixture
def hasty_farm(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Farm]:
    """One where no line may take long, and an engine that hangs is found out later than that."""
    farm = farm_on(redis, redis_server, tmp_path, max_line_seconds=1.0, engine_stall_s=1.5)
    yield farm
    for worker in farm.workers:
        worker.end()


def test_no_line_may_take_longer_than_the_service_allows(hasty_farm: Farm) -> None:
    hasty_farm.work(step_s=0.25, max_num_seqs=1)
    lines = hasty_farm.many(10)
    lines[9]["pressrun"] = {"timeout_s": 600}
    output, errors = hasty_farm.results(hasty_farm.batch(lines))
    assert 2 <= len(output) <= 4
    assert len(output) + len(errors) == 10
    assert errors[-1]["custom_id"] == "line-9"
    assert {line["error"]["code"] for line in errors} == {"line_timeout"}


def test_an_engine_that_hangs_costs_no_other_line_its_time(hasty_farm: Farm) -> None:
    hasty_farm.work()
    lines = [hasty_farm.ask("good"), hasty_farm.ask("deadly", "please spin the engine")]
    output, errors = hasty_farm.results(hasty_farm.batch(lines))
    assert [line["custom_id"] for line in output] == ["good"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("deadly", "engine_hung")]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def flight(inbox: Inbox, clock: Clock) -> Flight:
    return Flight(inbox, weigh=lambda line: 10.0, max_line_s=60, clock=clock)


def hasty(*texts: str, timeout_s: float = 10, **body: Any) -> Any:
    return prepared(*texts, options={"timeout_s": timeout_s}, **body)


def expired_at(flight: Flight, clock: Clock, now: float) -> list[str]:
    clock.now = now
    return names(flight.expire())


def test_time_counts_from_the_engine_on_and_is_the_shorter_of_the_two(
    flight: Flight, inbox: Inbox, clock: Clock
) -> None:
    flight.add(shard(), [*hasty("own"), *hasty("too long", timeout_s=3600), *prepared("none")])
    assert expired_at(flight, clock, 1000) == []
    flight.pump()
    assert expired_at(flight, clock, 1009.9) == []
    assert expired_at(flight, clock, 1010) == ["own"]
    assert sorted(inbox.prompts()) == ["none", "too long"]
    assert expired_at(flight, clock, 1060) == ["too long", "none"]
    assert (inbox.requests, len(flight), flight.weight) == ({}, 0, 0.0)


def test_a_line_that_came_to_its_end_has_no_deadline_any_more(flight: Flight, inbox: Inbox, clock: Clock) -> None:
    flight.add(shard(), hasty("a"))
    flight.pump()
    assert names(flight.take(inbox.answer_all())) == ["a"]
    assert expired_at(flight, clock, 10_000) == []


def test_each_twin_has_its_own_time_and_the_run_goes_on_for_the_rest(
    flight: Flight, inbox: Inbox, clock: Clock
) -> None:
    flight.add(shard(0), hasty("same", temperature=0))
    flight.pump()
    clock.now += 5
    flight.add(shard(1), hasty("same", timeout_s=20, temperature=0))
    flight.add(shard(2), hasty("same", timeout_s=8, temperature=0))
    clock.now = 110
    assert [flying.shard.key[1] for flying in flight.expire()] == [0]
    assert inbox.prompts() == ["same"]
    clock.now = 113
    assert [flying.shard.key[1] for flying in flight.expire()] == [2]
    (left,) = flight.take(inbox.answer_all())
    assert (left.shard.key[1], left.is_twin, left.error) == (1, False, None)


def test_after_an_engines_death_time_counts_from_the_next_one_on(flight: Flight, inbox: Inbox, clock: Clock) -> None:
    flight.add(shard(), hasty("a", "b"))
    flight.pump()
    clock.now += 9
    inbox.requests.clear()
    flight.engine_died()
    assert expired_at(flight, clock, 500) == []
    flight.pump()
    assert inbox.prompts() == ["a"]
    assert expired_at(flight, clock, 510) == ["a"]
    flight.pump()
    assert inbox.prompts() == ["b"]
    assert expired_at(flight, clock, 519) == []
    assert expired_at(flight, clock, 520) == ["b"]
