"""What tenants hold of their limits: refused beyond them, and given back once, whatever dies."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from pressrun.jobs import quotas
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import QuotaExceeded
from pressrun.jobs.estimates import COMPLETION_TOKENS, DEFAULT_ANSWER_TOKENS, line_tokens
from pressrun.jobs.quotas import Held, Quotas
from pressrun.jobs.records import COMPLETIONS, ENDED, Batch
from pressrun.jobs.redis_keys import CARE, batch_key
from pressrun.jobs.submit import create_batch, create_file, create_job, delete_file, sweep_files
from pressrun.workers.housekeeping import Housekeeper, Task

from .conftest import chat_line, encode
from .simulated import Process, run_shard

CHAT = "/v1/chat/completions"
TENANT = "acme"
LINE = chat_line("a", messages=[{"role": "user", "content": "x" * 40}], max_tokens=20)
LINE_TOKENS = 10 + 20


class Inline(Housekeeper):
    """A housekeeper whose slow work is done at once."""

    def _later(self, batch_id: str, task: Task) -> None:
        task(self.backend, batch_id)


def tick(backend: Backend) -> None:
    Inline(backend).tick()


def look_at_all(backend: Backend) -> None:
    """As if some time had passed since housekeeping looked at them last."""
    for key in CARE.values():
        for raw in backend.redis.zrange(key, 0, -1):
            backend.redis.zadd(key, {raw: 0})


def upload(backend: Backend, num_lines: int = 1) -> str:
    lines = [LINE | {"custom_id": f"c{i}"} for i in range(num_lines)]
    return create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(*lines)], tenant=TENANT).id


def create(backend: Backend, file_id: str, **more: Any) -> Batch:
    return create_batch(backend, input_file_id=file_id, endpoint=CHAT, completion_window="24h", tenant=TENANT, **more)


def run_to_the_end(backend: Backend, batch_id: str) -> Batch:
    for _ in range(20):
        batch = backend.store.batch(batch_id)
        if batch.status in ENDED and batch_id not in backend.store.active("batch") + backend.store.active("job"):
            return batch
        backend.redis.delete(f"pressrun:{{{batch_id}}}:lock")
        look_at_all(backend)
        tick(backend)
        for shard in backend.shards.unsealed(batch_id):
            run_shard(backend, batch_id, shard)
    raise AssertionError(f"it does not end: {backend.store.batch(batch_id)}")


# Tokens


def test_a_batch_holds_its_estimated_tokens_until_it_has_ended(backend: Backend) -> None:
    batch = create(backend, upload(backend, 3))
    assert backend.quotas.held(TENANT) == Held(num_batches=1, num_jobs=0, tokens=0)
    validate_batch(backend, batch.id)
    assert backend.quotas.held(TENANT) == Held(num_batches=1, num_jobs=0, tokens=3 * LINE_TOKENS)
    run_to_the_end(backend, batch.id)
    assert backend.redis.exists(f"pressrun:held:{TENANT}") == 0


def test_a_batch_beyond_the_tenants_tokens_fails_with_openais_error(backend: Backend) -> None:
    backend.store.tenants.set(TENANT, max_enqueued_tokens=4 * LINE_TOKENS)
    file_id = upload(backend, 3)
    first, second = create(backend, file_id), create(backend, file_id)
    validate_batch(backend, first.id)
    validate_batch(backend, second.id)
    assert backend.store.batch(first.id).status == "in_progress"
    failed = backend.store.batch(second.id)
    (error,) = failed.errors
    assert (failed.status, error.code, error.line, error.param) == ("failed", "token_limit_exceeded", None, None)
    assert error.message.startswith("Enqueued token limit reached for m in organization acme. Limit: 120 enqueued")
    tick(backend)
    assert backend.quotas.held(TENANT) == Held(num_batches=1, num_jobs=0, tokens=3 * LINE_TOKENS)
    run_to_the_end(backend, first.id)
    third = create(backend, file_id)
    validate_batch(backend, third.id)
    assert backend.store.batch(third.id).status == "in_progress"


def test_other_tenants_are_not_counted(backend: Backend) -> None:
    backend.store.tenants.set("default", max_enqueued_tokens=1)
    batch = create(backend, upload(backend, 3))
    validate_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "in_progress"


def test_to_validate_twice_is_to_take_once(backend: Backend) -> None:
    backend.store.tenants.set(TENANT, max_enqueued_tokens=3 * LINE_TOKENS)
    batch = create(backend, upload(backend, 3))
    for _ in range(3):
        assert backend.quotas.take_tokens(batch, "m", 3 * LINE_TOKENS) is None
    validate_batch(backend, batch.id)
    assert backend.quotas.held(TENANT).tokens == 3 * LINE_TOKENS


def test_to_create_a_batch_again_that_has_been_read_leaves_its_tokens(backend: Backend) -> None:
    batch = create(backend, upload(backend, 3))
    validate_batch(backend, batch.id)
    create(backend, batch.input_file_id, batch_id=batch.id)
    assert backend.quotas.held(TENANT) == Held(num_batches=1, num_jobs=0, tokens=3 * LINE_TOKENS)


def test_a_job_beyond_the_tenants_tokens_is_refused_and_leaves_nothing(backend: Backend) -> None:
    backend.store.tenants.set(TENANT, max_enqueued_tokens=LINE_TOKENS)
    job = create_job(backend, url=CHAT, body=LINE["body"], tenant=TENANT)
    with pytest.raises(QuotaExceeded) as caught:
        create_job(backend, url=CHAT, body=LINE["body"], tenant=TENANT)
    assert (caught.value.status, caught.value.code) == (429, "token_limit_exceeded")
    assert backend.store.active("job") == [job.id]
    assert backend.quotas.held(TENANT) == Held(num_batches=0, num_jobs=1, tokens=LINE_TOKENS)
    run_to_the_end(backend, job.id)
    create_job(backend, url=CHAT, body=LINE["body"], tenant=TENANT)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 8}], "max_tokens": 5}, 2 + 5),
        ({"messages": [{"role": "user", "content": "x" * 9}], "max_completion_tokens": 6, "max_tokens": 5}, 3 + 6),
        ({"messages": [{"role": "user", "content": "ü" * 4}], "max_tokens": 5, "n": 3}, 2 + 15),
        ({"messages": [{"role": "user", "content": ""}]}, DEFAULT_ANSWER_TOKENS),
        ({"prompt": "x" * 8, "max_tokens": 5}, 2 + 5),
        ({"prompt": "x" * 8, "max_tokens": 0}, 2),
        ({"prompt": ["x" * 8, "x" * 4], "max_tokens": 5}, 2 + 1 + 10),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 3 + 5),
        ({"prompt": [[1, 2, 3], [4]], "max_tokens": 5}, 4 + 10),
        ({"prompt": ["x", 5], "max_tokens": -5, "n": "many"}, 1 + 2 * COMPLETION_TOKENS),
        ({"messages": 7, "max_tokens": True}, DEFAULT_ANSWER_TOKENS),
        ({}, DEFAULT_ANSWER_TOKENS),
    ],
)
def test_tokens_are_told_from_bytes_and_from_what_is_asked_for(body: dict[str, Any], tokens: int) -> None:
    endpoint = COMPLETIONS if "prompt" in body else CHAT
    assert math.ceil(line_tokens(endpoint, body).asked) == tokens


# Places


def test_no_more_batches_are_active_than_may_be(backend: Backend) -> None:
    backend.store.tenants.set(TENANT, max_active_batches=2)
    file_id = upload(backend)
    first, _ = create(backend, file_id), create(backend, file_id)
    create_job(backend, url=CHAT, body=LINE["body"], tenant=TENANT)
    with pytest.raises(QuotaExceeded) as caught:
        create(backend, file_id)
    assert (caught.value.status, caught.value.code) == (429, "active_batch_limit_exceeded")
    assert len(backend.store.batches(tenant=TENANT).items) == 2
    run_to_the_end(backend, first.id)
    create(backend, file_id)


def test_nobody_is_refused_for_a_batch_that_has_ended_and_was_not_cleaned_up(backend: Backend) -> None:
    backend.store.tenants.set(TENANT, max_active_batches=1)
    file_id = upload(backend)
    first = create(backend, file_id)
    backend.store.fail(first.id, [], 0)
    assert create(backend, file_id).id != first.id


def test_a_batch_that_its_creator_never_wrote_holds_its_place_for_a_minute(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.store.tenants.set(TENANT, max_active_batches=1)
    file_id = upload(backend)
    backend.quotas.open_batch(TENANT, "batch_never")
    with pytest.raises(QuotaExceeded):
        create(backend, file_id)
    monkeypatch.setattr(quotas, "CREATION_S", -1)
    create(backend, file_id)


# Bytes


def test_files_are_refused_beyond_the_tenants_bytes_and_room_comes_back_with_deletion(backend: Backend) -> None:
    file_id = upload(backend)
    size = backend.store.file(file_id).bytes
    backend.store.tenants.set(TENANT, max_stored_bytes=2 * size)
    second = upload(backend)
    with pytest.raises(QuotaExceeded) as caught:
        upload(backend)
    assert (caught.value.status, caught.value.code) == (429, "storage_limit_exceeded")
    assert list(backend.blobs.list("files")) == sorted([f"files/{file_id}", f"files/{second}"])
    assert backend.store.stored_bytes(TENANT) == 2 * size
    delete_file(backend, file_id, TENANT)
    sweep_files(backend, [file_id])
    assert backend.store.stored_bytes(TENANT) == size
    upload(backend)


def test_results_are_written_whatever_there_is_room_for_and_count(backend: Backend) -> None:
    batch = create(backend, upload(backend))
    before = backend.store.stored_bytes(TENANT)
    backend.store.tenants.set(TENANT, max_stored_bytes=before)
    ended = run_to_the_end(backend, batch.id)
    (result,) = [name for name in (ended.output_file_id, ended.error_file_id) if name]
    file = backend.store.file(result)
    assert file.tenant == TENANT
    assert backend.store.stored_bytes(TENANT) == before + file.bytes


def test_writing_a_file_again_counts_it_once(backend: Backend) -> None:
    file = backend.store.file(upload(backend))
    for _ in range(2):
        backend.store.add_file(file, limited=True)
    assert backend.store.stored_bytes(TENANT) == file.bytes
    assert len(backend.store.files(tenant=TENANT).items) == 1


# Deaths


def test_a_late_reader_of_an_ended_batch_gives_back_what_it_takes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = create(backend, upload(backend))
    take = Quotas.take_tokens

    def take_late(self: Quotas, *args: Any) -> Any:
        monkeypatch.undo()
        backend.store.cancel(batch.id)
        run_to_the_end(backend, batch.id)
        return take(self, *args)

    monkeypatch.setattr(Quotas, "take_tokens", take_late)
    validate_batch(backend, batch.id)
    assert backend.store.batch(batch.id).status == "cancelled"
    assert backend.redis.exists(f"pressrun:held:{TENANT}") == 0


def lifetime(file_id: str, chance: random.Random) -> Callable[[Backend], None]:
    """A batch or a job from its creation to its end, by one process."""
    is_job, is_cancelled = chance.random() < 0.3, chance.random() < 0.4

    def live(backend: Backend) -> None:
        if is_job:
            create_job(backend, url=CHAT, body=LINE["body"], tenant=TENANT)
        else:
            create(backend, file_id)
        for _ in range(4):
            look_at_all(backend)
            tick(backend)
            for batch_id in backend.store.active("batch") + backend.store.active("job"):
                for shard in backend.shards.unsealed(batch_id):
                    run_shard(backend, batch_id, shard)
                if is_cancelled and backend.store.batch(batch_id).status not in ENDED:
                    backend.store.cancel(batch_id)

    return live


@pytest.mark.parametrize("seed", range(int(os.environ.get("PRESSRUN_TEST_STORIES", "96")) // 2))
def test_whatever_dies_or_stalls_all_is_given_back_once(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    file_id = upload(backend, 3)
    processes = [Process(backend, lifetime(file_id, chance)) for _ in range(3)]
    for _ in range(chance.randint(1, 60)):
        process = chance.choice(processes)
        process.step(chance.choice([1, 4, 16]))
        if chance.random() < 0.1:
            process.kill()
    stalled = chance.choice(processes)
    for process in processes:
        if process is not stalled:
            process.kill()
    created = backend.store.active("batch") + backend.store.active("job")
    for batch_id in created:
        for part in ("lock", "leased"):
            backend.redis.delete(f"pressrun:{{{batch_id}}}:{part}")
        run_to_the_end(backend, batch_id)
    stalled.finish()
    tick(backend)
    for batch_id in backend.store.active("batch") + backend.store.active("job"):
        run_to_the_end(backend, batch_id)
    held = [batch_id.decode() for batch_id in backend.redis.hkeys(f"pressrun:held:{TENANT}")]
    assert not any(backend.redis.exists(batch_key(batch_id)) for batch_id in held)
    monkeypatch.setattr(quotas, "CREATION_S", -1)  # Whoever died before it had created anything, died long ago.
    assert backend.quotas.held(TENANT) == Held(num_batches=0, num_jobs=0, tokens=0)
    assert backend.store.stored_bytes(TENANT) == sum(file.bytes for file in backend.store.files(tenant=TENANT).items)
