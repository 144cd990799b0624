"""One object for one idempotency key, whatever dies between any two calls."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from pressrun.jobs import ids, once, submit
from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import Conflict, InProgress, NotFound, StoreUnavailable, UserError
from pressrun.jobs.once import Once
from pressrun.jobs.records import DEFAULT_TENANT, Batch, File
from pressrun.jobs.store import Store

from .conftest import chat_line, encode
from .simulated import Process

CHAT = "/v1/chat/completions"
BODY = chat_line("x")["body"]
Make = Callable[[Backend, str], Any]


def make_file(backend: Backend, key: str) -> tuple[File, bool]:
    return Once(backend, tenant=DEFAULT_TENANT, key=key).do(
        lambda: "a file",
        new_id=ids.file_id,
        find=lambda file_id: submit.find_file(backend, file_id, DEFAULT_TENANT),
        create=lambda file_id: submit.create_file(
            backend, filename="in.jsonl", purpose="batch", chunks=[encode(chat_line("a"))], file_id=file_id
        ),
    )


def make_batch(backend: Backend, key: str) -> tuple[Batch, bool]:
    (file, *_) = backend.store.files().items
    return Once(backend, tenant=DEFAULT_TENANT, key=key).do(
        lambda: "a batch",
        new_id=ids.batch_id,
        find=lambda batch_id: submit.find_batch(backend, batch_id, DEFAULT_TENANT),
        create=lambda batch_id: submit.create_batch(
            backend, input_file_id=file.id, endpoint=CHAT, completion_window="24h", batch_id=batch_id
        ),
    )


def make_job(backend: Backend, key: str) -> tuple[Batch, bool]:
    return Once(backend, tenant=DEFAULT_TENANT, key=key).do(
        lambda: "a job",
        new_id=ids.job_id,
        find=lambda job_id: submit.find_job(backend, job_id, DEFAULT_TENANT),
        create=lambda job_id: submit.create_job(backend, url=CHAT, body=BODY, job_id=job_id),
    )


def num_made(backend: Backend, make: Make) -> int:
    if make is make_file:
        return len(backend.store.files().items)
    return len(backend.store.batches().items) if make is make_batch else len(backend.store.active("job"))


makers = pytest.mark.parametrize("make", [make_file, make_batch, make_job])


@pytest.fixture(autouse=True)
def a_file_to_make_batches_of(backend: Backend, request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("make") is make_batch:
        submit.create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(chat_line("a"))])


def let_the_lease_lapse(backend: Backend) -> None:
    for key in backend.redis.scan_iter(match="pressrun:once:*"):
        backend.redis.hset(key, "until", 0)


@makers
def test_a_creator_may_die_before_any_call_and_the_next_goes_on(backend: Backend, make: Make) -> None:
    before = num_made(backend, make)
    for step in range(1, 40):
        key = f"k{step}"
        first = Process(backend, lambda backend, key=key: make(backend, key))
        first.step(step)
        survived = first.ended
        first.kill()
        let_the_lease_lapse(backend)
        made, _ = make(backend, key)
        again, replayed = make(backend, key)
        assert (again.id, replayed) == (made.id, True)
        assert num_made(backend, make) == before + step
        if survived:
            return
    raise AssertionError("the creator was never let live")


@makers
@pytest.mark.parametrize("seed", range(int(os.environ.get("PRESSRUN_TEST_STORIES", "96")) // 8))
def test_any_number_of_creators_at_once_make_one_object(backend: Backend, make: Make, seed: int) -> None:
    chance = random.Random(seed)
    before = num_made(backend, make)
    found: list[str] = []

    def ask(backend: Backend) -> None:
        found.append(make(backend, "k")[0].id)

    processes = [Process(backend, ask) for _ in range(4)]
    for _ in range(chance.randint(10, 60)):
        process = chance.choice(processes)
        process.step(chance.choice([1, 2, 8]))
        if chance.random() < 0.05:
            process.kill()
        if chance.random() < 0.2:
            let_the_lease_lapse(backend)
    for process in processes:
        process.finish()
        assert process.error is None or isinstance(process.error, InProgress), process.error
    let_the_lease_lapse(backend)
    found.append(make(backend, "k")[0].id)
    assert len(set(found)) == 1
    assert num_made(backend, make) == before + 1


def test_a_batch_that_has_gone_on_is_not_set_back_by_a_late_creator(backend: Backend) -> None:
    submit.create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(chat_line("a"))])
    late = Process(backend, lambda backend: make_batch(backend, "k"))
    while not list(backend.redis.scan_iter(match="pressrun:held:*")):
        late.step()
    let_the_lease_lapse(backend)
    made, _ = make_batch(backend, "k")
    backend.store.move(made.id, "failed")
    late.finish()
    assert late.error is None
    assert backend.store.batch(made.id).status == "failed"


def test_a_creation_of_which_nobody_knows_whether_it_is_durable_is_found_and_made_so(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit.create_file(backend, filename="in.jsonl", purpose="batch", chunks=[encode(chat_line("a"))])
    waits = []

    def make_durable(store: Store) -> None:
        waits.append(1)
        if len(waits) < 3:
            raise StoreUnavailable("the disk is slow")

    monkeypatch.setattr(Store, "make_durable", make_durable)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            make_batch(backend, "k")
    (made,) = backend.store.batches().items
    found, replayed = make_batch(backend, "k")
    assert (found.id, replayed) == (made.id, True)
    assert len(waits) == 3


def test_a_refusal_leaves_the_key_to_anybody(backend: Backend) -> None:
    def refuse(_: str) -> str:
        raise UserError("No.")

    once_more = Once(backend, tenant="acme", key="k")
    with pytest.raises(UserError, match=r"No\."):
        once_more.do(lambda: 1, new_id=lambda: "a", find=str, create=refuse)
    assert once_more.do(lambda: 2, new_id=lambda: "b", find=str, create=str) == ("b", False)
    with pytest.raises(Conflict, match="used for another request"):
        Once(backend, tenant="acme", key="k").do(lambda: 1, new_id=lambda: "c", find=str, create=str)


def test_a_refusal_of_who_comes_second_leaves_no_room_for_two_objects(backend: Backend) -> None:

    def create_late(object_id: str) -> str:
        def refuse(_: str) -> str:
            raise UserError("No.")

        def find(_: str) -> str:
            raise NotFound("Not yet.")

        let_the_lease_lapse(backend)
        with pytest.raises(UserError, match=r"No\."):
            Once(backend, tenant="acme", key="k").do(lambda: 1, new_id=lambda: "b", find=find, create=refuse)
        return object_id

    first = Once(backend, tenant="acme", key="k")
    assert first.do(lambda: 1, new_id=lambda: "a", find=str, create=create_late) == ("a", False)
    third = Once(backend, tenant="acme", key="k")
    assert third.do(lambda: 1, new_id=lambda: "c", find=str, create=str) == ("a", True)


def test_requests_are_told_apart_by_what_they_say_and_not_by_the_order_in_which_they_say_it(backend: Backend) -> None:
    first, second = ({"a": 1, "b": "\ud800"}, {"b": "\ud800", "a": 1})
    by_key = Once(backend, tenant="acme", key="k\ud800")
    made, _ = by_key.do(lambda: first, new_id=ids.job_id, find=str, create=str)
    assert by_key.do(lambda: second, new_id=ids.job_id, find=str, create=str) == (made, True)


def test_a_key_is_kept_for_a_day(backend: Backend) -> None:
    Once(backend, tenant="acme", key="k").do(lambda: 1, new_id=lambda: "a", find=str, create=str)
    (record,) = backend.redis.scan_iter(match="pressrun:once:acme:*")
    assert once.KEEP_S - 5 < backend.redis.ttl(record) <= once.KEEP_S == 86400
