"""Events: written with the end of a batch, put in line once, posted until they are taken, whoever dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from openai import OpenAI
from standardwebhooks import Webhook

from pressrun.jobs import deliveries
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.deliveries import KEPT_S, TAKEN_S, announce, deliveries_of, take
from pressrun.jobs.errors import NotFound, UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.posting import RETRY_S, attempt, send_test
from pressrun.jobs.records import ENDED, Batch
from pressrun.jobs.redis_keys import batch_key
from pressrun.jobs.submit import create_job
from pressrun.jobs.webhooks import (
    EVENT_TYPES,
    MAX_ENDPOINTS,
    Endpoint,
    create_endpoint,
    delete_endpoint,
    find_endpoint,
    list_endpoints,
    rotate_secret,
    update_endpoint,
)

from ..receiver import Received, Receiver, receiving
from .conftest import MakeBackend, MakeBatch, chat_line
from .simulated import Process, run_shard


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    return make_backend(webhook_allow_private=True, webhook_timeout_s=2)


def endpoint(backend: Backend, receiver: Receiver, *event_types: str, **more: Any) -> Endpoint:
    return create_endpoint(backend, name="mine", url=receiver.url, event_types=event_types or EVENT_TYPES, **more)


def finished(backend: Backend, batch: Batch) -> Batch:
    """The batch, run to its end."""
    validate_batch(backend, batch.id)
    for shard in backend.shards.unsealed(batch.id):
        run_shard(backend, batch.id, shard)
    return backend.store.batch(batch.id)


def deliver(backend: Backend, now: float | None = None) -> int:
    """Do what is due once; how much it was."""
    now = time.time() if now is None else now
    taken = take(backend, 100, now)
    for one in taken:
        attempt(backend, one, now)
    return len(taken)


def event_of(got: Received, secret: str) -> dict[str, Any]:
    """What was posted, once the SDK and the reference library have found it genuine."""
    with OpenAI(api_key="none", webhook_secret=secret) as sdk:
        event = sdk.webhooks.unwrap(got.body.decode(), got.headers)
    body: dict[str, Any] = Webhook(secret).verify(got.body, got.headers)
    assert event.to_dict() == body
    return body


# What is sent


def test_a_finished_batch_is_told_of_as_openai_tells_it(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    batch = finished(backend, make_batch([chat_line("a")]))
    assert deliver(backend) == 1
    (got,) = receiver.got
    assert event_of(got, mine.secret) == {
        "id": batch.event_id,
        "object": "event",
        "type": "batch.completed",
        "created_at": batch.times["completed_at"],
        "data": {"id": batch.id},
    }
    assert got.headers["webhook-id"] == batch.event_id
    assert got.headers["content-type"] == "application/json"
    assert deliver(backend, time.time() + 10 * 86400) == 0


def end_as(backend: Backend, batch: Batch, how: str) -> None:
    if how == "cancelled":
        backend.store.cancel(batch.id)
        wind_up(backend, batch.id)
    elif how == "expired":
        backend.store.move(batch.id, "finalizing", closing="expired")
        wind_up(backend, batch.id)
    else:
        finished(backend, batch)
        end_batch(backend, batch.id)  # As housekeeping does.


@pytest.mark.parametrize("how", ["completed", "failed", "expired", "cancelled"])
def test_every_end_is_an_event_for_those_who_asked_for_it(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver, how: str
) -> None:
    wanted = endpoint(backend, receiver, f"batch.{how}")
    endpoint(backend, receiver, *(name for name in EVENT_TYPES if name != f"batch.{how}"))
    batch = make_batch([b"{}" if how == "failed" else chat_line("a")])
    end_as(backend, batch, how)
    assert backend.store.batch(batch.id).status == how
    assert deliver(backend) == 1
    assert event_of(receiver.got[0], wanted.secret)["type"] == f"batch.{how}"


def test_a_tenants_batches_are_told_to_nobody_else(backend: Backend, make_batch: MakeBatch, receiver: Receiver) -> None:
    endpoint(backend, receiver, tenant="other")
    batch = make_batch([chat_line("a")])
    finished(backend, batch)
    assert deliver(backend) == 0
    announce(backend, replace(backend.store.batch(batch.id), tenant="other"))
    assert deliver(backend) == 1


def test_jobs_and_batches_ended_by_an_older_version_are_not_told_of(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    endpoint(backend, receiver)
    job = create_job(backend, url="/v1/chat/completions", body=chat_line("x")["body"])
    run_shard(backend, job.id, 0)
    assert backend.store.batch(job.id).status in ENDED
    batch = make_batch([b"{}"])
    validate_batch(backend, batch.id)
    backend.redis.hdel(batch_key(batch.id), "event_id")
    end_batch(backend, batch.id)
    assert backend.store.active("batch") == []
    assert deliver(backend) == 0


# Nothing is lost


def test_whenever_who_ends_a_batch_dies_its_event_is_sent_once(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    endpoint(backend, receiver)
    steps = 0
    while True:
        batch = make_batch([chat_line("a")])
        validate_batch(backend, batch.id)
        ender = Process(backend, lambda other, batch=batch: run_shard(other, batch.id, 0))
        ender.step(steps)
        survived = ender.ended
        ender.kill()
        backend.redis.delete(f"{batch_key(batch.id)}:lock")  # It lapses.
        while batch.id in backend.store.active("batch"):
            run_shard(backend, batch.id, 0)
            end_batch(backend, batch.id)
        deliver(backend)
        (got,) = receiver.got
        assert json.loads(got.body)["data"]["id"] == batch.id
        receiver.got.clear()
        if survived:
            break
        steps += 1
    assert steps > 8


def test_whoever_dies_while_delivering_another_delivers_later(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    finished(backend, make_batch([chat_line("a")]))
    now = time.time()
    (taken,) = take(backend, 10, now)
    assert take(backend, 10, now + TAKEN_S - 1) == []
    (again,) = take(backend, 10, now + TAKEN_S + 1)
    attempt(backend, again, now + TAKEN_S + 1)
    # The first was only slow. What it has to say comes too late to count.
    receiver.answers = [500]
    attempt(backend, taken, now + TAKEN_S + 2)
    (delivery,) = deliveries_of(backend, mine.id).items
    assert (delivery.status, len(delivery.attempts)) == ("delivered", 1)
    assert {got.headers["webhook-id"] for got in receiver.got} == {delivery.event_id}
    assert take(backend, 10, now + 10 * 86400) == []


def test_an_event_is_put_in_line_once(backend: Backend, make_batch: MakeBatch, receiver: Receiver) -> None:
    mine = endpoint(backend, receiver)
    batch = finished(backend, make_batch([chat_line("a")]))
    deliver(backend)
    for _ in range(2):
        announce(backend, batch)
    assert deliver(backend, time.time() + 10 * 86400) == 0
    assert len(deliveries_of(backend, mine.id).items) == 1


# Again and again


def test_a_refused_event_is_sent_again_later_and_later_and_at_last_given_up(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    receiver.answers = [500]
    finished(backend, make_batch([chat_line("a")]))
    now = float(int(time.time()) + 1)
    for pause_s in RETRY_S:
        assert deliver(backend, now) == 1
        assert deliver(backend, now + pause_s - 1) == 0
        now += pause_s
    assert deliver(backend, now) == 1
    assert deliver(backend, now + 30 * 86400) == 0
    (delivery,) = deliveries_of(backend, mine.id).items
    assert (delivery.status, delivery.next_attempt_at) == ("failed", None)
    assert [one.status_code for one in delivery.attempts] == [500] * (len(RETRY_S) + 1)
    assert len(receiver.got) == len(RETRY_S) + 1
    assert {(got.headers["webhook-id"], got.body) for got in receiver.got} == {
        (delivery.event_id, receiver.got[0].body)
    }
    stamps = [int(got.headers["webhook-timestamp"]) for got in receiver.got]
    assert stamps == [one.at for one in delivery.attempts]


@pytest.mark.parametrize("answer", [199 + 1, 204, 299])
def test_any_2xx_is_yes(backend: Backend, make_batch: MakeBatch, receiver: Receiver, answer: int) -> None:
    mine = endpoint(backend, receiver)
    receiver.answers = [500, 302, answer]
    finished(backend, make_batch([chat_line("a")]))
    now = time.time()
    for pause_s in (0, RETRY_S[0], RETRY_S[1]):
        now += pause_s + 1
        assert deliver(backend, now) == 1
    (delivery,) = deliveries_of(backend, mine.id).items
    assert delivery.status == "delivered"
    assert [one.status_code for one in delivery.attempts] == [500, 302, answer]


def test_gone_is_never_again(backend: Backend, make_batch: MakeBatch, receiver: Receiver) -> None:
    mine = endpoint(backend, receiver)
    receiver.answers = [410]
    finished(backend, make_batch([chat_line("a")]))
    deliver(backend)
    assert deliveries_of(backend, mine.id).items[0].status == "failed"
    assert deliver(backend, time.time() + 10 * 86400) == 0


def test_why_there_was_no_answer_is_in_the_log(
    backend: Backend, make_batch: MakeBatch, make_backend: MakeBackend
) -> None:
    with receiving() as receiver:
        mine = endpoint(backend, receiver)
    finished(backend, make_batch([chat_line("a")]))
    now = time.time()
    deliver(backend, now)
    deliver(make_backend(), now + 6)  # This one may not post to private addresses.
    (delivery,) = deliveries_of(backend, mine.id).items
    refused, private = delivery.attempts
    assert "connection failed" in str(refused.error)
    assert "PRESSRUN_WEBHOOK_ALLOW_PRIVATE" in str(private.error)
    assert delivery.next_attempt_at == private.at + RETRY_S[1]


def test_one_endpoint_that_fails_is_not_anothers_trouble(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    with receiving() as gone:
        endpoint(backend, gone)
    endpoint(backend, receiver)
    finished(backend, make_batch([chat_line("a")]))
    assert deliver(backend) == 2
    assert len(receiver.got) == 1


def test_what_was_on_its_way_to_a_deleted_endpoint_is_dropped(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    finished(backend, make_batch([chat_line("a")]))
    delete_endpoint(backend, mine.id)
    assert deliver(backend) == 1
    assert deliver(backend, time.time() + 10 * 86400) == 0
    assert receiver.got == []


def test_a_delivery_that_is_remembered_no_more_is_dropped(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    finished(backend, make_batch([chat_line("a")]))
    (delivery,) = deliveries_of(backend, mine.id).items
    (key,) = backend.redis.keys(f"*{delivery.id}")
    assert 0 < backend.redis.ttl(key) <= KEPT_S
    backend.redis.delete(key)
    assert take(backend, 10, time.time()) == []
    assert backend.redis.zcard(deliveries.DUE) == 0
    assert deliveries_of(backend, mine.id).items == []


def test_the_log_is_paged_newest_first_and_bounded(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "MOST_IN_LOG", 5)
    mine = endpoint(backend, receiver)
    batches = [finished(backend, make_batch([chat_line("a")])).id for _ in range(7)]
    page = deliveries_of(backend, mine.id, limit=3)
    assert ([one.batch_id for one in page.items], page.has_more) == (batches[:3:-1], True)
    page = deliveries_of(backend, mine.id, limit=3, after=page.items[-1].id)
    assert ([one.batch_id for one in page.items], page.has_more) == (batches[3:1:-1], False)
    with pytest.raises(NotFound) as caught:
        deliveries_of(backend, mine.id, after="whd_none")
    assert caught.value.param == "after"


# Endpoints


def test_an_endpoint_comes_back_and_is_listed_for_its_tenant_alone(backend: Backend, receiver: Receiver) -> None:
    made = [endpoint(backend, receiver) for _ in range(3)]
    other = endpoint(backend, receiver, tenant="other")
    assert find_endpoint(backend, made[0].id) == made[0]
    assert list_endpoints(backend).items == made[::-1]
    assert list_endpoints(backend, tenant="other").items == [other]
    page = list_endpoints(backend, limit=2)
    assert (page.items, page.has_more) == (made[:0:-1], True)
    assert list_endpoints(backend, limit=2, after=page.items[-1].id).items == made[:1]
    for call in (find_endpoint, delete_endpoint, rotate_secret, deliveries_of):
        for endpoint_id in (other.id, "whe_none", "endpoints:default", "due"):
            with pytest.raises(NotFound):
                call(backend, endpoint_id)


def test_only_what_changes_is_a_change(backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = endpoint(backend, receiver, "batch.failed")
    now = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: now)
    assert update_endpoint(backend, mine.id, {"name": "mine", "event_types": ["batch.failed"]}) == mine
    changed = update_endpoint(backend, mine.id, {"url": receiver.url + "2"})
    assert changed == replace(mine, url=receiver.url + "2", updated_at=int(now))
    assert find_endpoint(backend, mine.id) == changed


def test_a_deleted_endpoint_is_not_brought_back_by_a_change_that_was_under_way(
    backend: Backend, receiver: Receiver
) -> None:
    mine = endpoint(backend, receiver)
    change = Process(backend, lambda other: update_endpoint(other, mine.id, {"name": "new"}))
    change.step(2)
    delete_endpoint(backend, mine.id)
    change.finish()
    assert isinstance(change.error, NotFound)
    assert backend.redis.keys(f"*{mine.id}*") == []


@pytest.mark.parametrize("keep_old", [False, True])
def test_a_new_secret_signs_and_the_old_one_beside_it_for_a_day_if_asked(
    backend: Backend, make_batch: MakeBatch, receiver: Receiver, keep_old: bool
) -> None:
    old = endpoint(backend, receiver)
    new = rotate_secret(backend, old.id, keep_old=keep_old)
    assert new.secret != old.secret
    finished(backend, make_batch([chat_line("a")]))
    deliver(backend)
    (got,) = receiver.got
    event_of(got, new.secret)
    assert len(got.headers["webhook-signature"].split()) == 1 + keep_old
    if keep_old:
        event_of(got, old.secret)
    assert new.signing_secrets(time.time() + 86401) == [new.secret]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"url": "ftp://x/"}, "url"),
        ({"url": "http://127.0.0.1/"}, "url"),
        ({"name": ""}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.failed", "response.completed"]}, "event_types[1]"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_by_name(
    make_backend: MakeBackend, changes: dict[str, Any], param: str
) -> None:
    backend = make_backend()
    good: Any = {"name": "n", "url": "https://example.com/", "event_types": ["batch.failed"]}
    made = create_endpoint(backend, **good)
    with pytest.raises(UserError) as caught:
        create_endpoint(backend, **good | changes)
    assert caught.value.param == param
    with pytest.raises(UserError) as caught:
        update_endpoint(backend, made.id, changes)
    assert caught.value.param == param
    assert list_endpoints(backend).items == [made]


def test_there_are_not_more_endpoints_than_can_be_told(backend: Backend, receiver: Receiver) -> None:
    for _ in range(MAX_ENDPOINTS):
        endpoint(backend, receiver)
    with pytest.raises(UserError, match="delete one first"):
        endpoint(backend, receiver)


def test_a_test_event_is_posted_at_once_and_is_no_delivery(backend: Backend, receiver: Receiver) -> None:
    mine = endpoint(backend, receiver, "batch.failed")
    receiver.answers = [418]
    assert send_test(backend, mine.id, "batch.expired") == 418
    assert event_of(receiver.got[0], mine.secret)["type"] == "batch.expired"
    assert deliveries_of(backend, mine.id).items == []
    with pytest.raises(UserError) as caught:
        send_test(backend, mine.id, "batch.exploded")
    assert caught.value.param == "event_type"
