"""/v1/webhook_endpoints through the real SDK, from an endpoint to an event that it finds genuine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.deliveries import take
from pressrun.jobs.lines import answered
from pressrun.jobs.posting import attempt
from pressrun.jobs.records import Usage

from ..receiver import Receiver, receiving
from .conftest import CHAT, Api, ServeApi, jsonl, request_line, seal_results

ALL: Any = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def near(serve: ServeApi) -> Api:
    """A server that may post to this machine."""
    return serve(webhook_allow_private=True)


def finish_batch(api: Api) -> str:
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    batch = api.openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    validate_batch(api.backend, batch.id)
    seal_results(api.backend, batch.id, lambda line: answered(line, {}, Usage()))
    return batch.id


def deliver(api: Api) -> None:
    for taken in take(api.backend, 10, time.time()):
        attempt(api.backend, taken, time.time())


def test_the_sdk_unwraps_what_is_delivered(near: Api, receiver: Receiver) -> None:
    made = near.openai.webhooks.create(name="mine", url=receiver.url, event_types=ALL)
    batch_id = finish_batch(near)
    deliver(near)
    (got,) = receiver.got
    sdk = near.openai.with_options(webhook_secret=made.signing_secret)
    event = sdk.webhooks.unwrap(got.body, got.headers)
    assert event.type == "batch.completed"
    assert (event.object, event.data.id) == ("event", batch_id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.verify_signature(got.body + b" ", got.headers)
    page = near.http.get(f"/v1/webhook_endpoints/{made.id}/deliveries").json()
    assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    (delivery,) = page["data"]
    assert delivery == {
        "id": page["first_id"],
        "object": "webhook_delivery",
        "created_at": delivery["created_at"],
        "event_id": event.id,
        "event_type": "batch.completed",
        "webhook_endpoint_id": made.id,
        "batch_id": batch_id,
        "status": "delivered",
        "next_attempt_at": None,
        "attempts": [{"at": int(got.headers["webhook-timestamp"]), "status_code": 200, "error": None}],
    }


def test_an_endpoint_lives_as_the_sdk_has_it(near: Api, receiver: Receiver) -> None:
    webhooks = near.openai.webhooks
    made = webhooks.create(name="mine", url=receiver.url, event_types=["batch.failed"])
    assert made.to_dict().keys() == {
        "id", "object", "created_at", "updated_at", "name", "url", "event_types", "signing_secret",
        "signing_secret_hint",
    }  # fmt: skip
    assert (made.object, made.name, made.url, made.event_types) == (
        "webhook_endpoint", "mine", receiver.url, ["batch.failed"],
    )  # fmt: skip
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == "whsec_…" + made.signing_secret[-4:]
    shown = webhooks.retrieve(made.id)
    assert shown.to_dict() == {k: v for k, v in made.to_dict().items() if k != "signing_secret"}
    changed = webhooks.update(made.id, name="yours", event_types=ALL)
    assert (changed.name, changed.event_types, changed.url) == ("yours", ALL, made.url)
    rotated = webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True).signing_secret
    tested = webhooks.test(made.id, event_type="batch.expired")
    assert tested.to_dict() == {
        "object": "webhook_endpoint.test", "event_type": "batch.expired", "status_code": 200, "success": True,
        "webhook_endpoint_id": made.id,
    }  # fmt: skip
    assert len(receiver.got) == 1
    assert webhooks.event_types.list().data == ALL
    deleted = webhooks.delete(made.id)
    assert deleted.to_dict() == {"id": made.id, "object": "webhook_endpoint.deleted", "deleted": True}
    for call in (webhooks.retrieve, webhooks.delete, webhooks.rotate_secret, webhooks.update):
        with pytest.raises(openai.NotFoundError, match="No such webhook endpoint"):
            call(made.id)


def test_an_async_client_does_all_of_it_too(near: Api, receiver: Receiver) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0) as sdk:
            make = sdk.webhooks.create
            made = await asyncio.gather(*(make(name=f"{n}", url=receiver.url, event_types=ALL) for n in range(5)))
            assert {one.id async for one in sdk.webhooks.list(limit=2)} == {one.id for one in made}
            await sdk.webhooks.update(made[0].id, url=receiver.url + "/2")
            assert (await sdk.webhooks.retrieve(made[0].id)).url == receiver.url + "/2"
            assert (await sdk.webhooks.test(made[0].id, event_type="batch.failed")).status_code == 200
            event = sdk.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=made[0].signing_secret)
            assert event.type == "batch.failed"
            assert (await sdk.webhooks.event_types.list()).data == ALL
            await sdk.webhooks.rotate_secret(made[1].id)
            for one in made:
                await sdk.webhooks.delete(one.id)
            assert (await sdk.webhooks.list()).data == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"url": "http://127.0.0.1:80/"}, "url", "invalid_value"),
        ({"url": "http://169.254.169.254/latest"}, "url", "invalid_value"),
        ({"url": "gopher://example.com/"}, "url", "invalid_value"),
        ({"url": 5}, "url", "invalid_type"),
        ({"url": "http://\ud800/"}, "url", "invalid_value"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": None}, "name", "invalid_type"),
        ({"event_types": ["response.completed"]}, "event_types[0]", "invalid_value"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"event_types": "batch.failed"}, "event_types", "invalid_type"),
        ({"secret": "x"}, "secret", "unknown_parameter"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_by_name(api: Api, changes: dict[str, Any], param: str, code: str) -> None:
    good = {"name": "n", "url": "https://example.com/", "event_types": ["batch.failed"]}
    made = api.openai.webhooks.create(**good)  # type: ignore[arg-type]
    for path, body in (("", good | changes), (f"/{made.id}", changes)):
        answer = api.http.post(
            f"/v1/webhook_endpoints{path}", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)
    assert [one.id for one in api.openai.webhooks.list()] == [made.id]


def test_endpoints_that_say_nothing_are_tested_a_few_at_a_time(serve: ServeApi) -> None:
    api = serve(webhook_allow_private=True, webhook_timeout_s=1)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        made = api.openai.webhooks.create(name="n", url=url, event_types=ALL)
        path = f"{api.url}/v1/webhook_endpoints/{made.id}/test"
        ask = partial(httpx.post, path, json={"event_type": "batch.failed"}, timeout=30)
        testers = [threading.Thread(target=ask) for _ in range(8)]
        began = time.monotonic()
        for tester in testers:
            tester.start()
        for tester in testers:
            tester.join()
        assert time.monotonic() - began > 1.9  # Four at a time, a second each.


def test_a_test_that_reaches_nobody_says_why_and_is_not_tried_again(api: Api) -> None:
    made = api.openai.webhooks.create(name="n", url="https://nowhere.invalid/", event_types=ALL)
    with pytest.raises(openai.BadRequestError, match="the host's name is not known") as caught:
        api.openai.webhooks.test(made.id, event_type="batch.failed")
    assert caught.value.code == "endpoint_unreachable"
    with pytest.raises(openai.BadRequestError) as caught:
        api.openai.webhooks.test(made.id, event_type="batch.exploded")  # type: ignore[arg-type]
    assert caught.value.param == "event_type"
