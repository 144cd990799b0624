"""The Idempotency-Key header on every route that creates something."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from pressrun.jobs.once import Once
from pressrun.jobs.records import DEFAULT_TENANT

from .conftest import CHAT, MODEL, Api, jsonl, request_line

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
Post = Callable[..., httpx.Response]


def upload(api: Api, key: str | None, text: str = "a", **headers: str) -> httpx.Response:
    files = {"file": ("in.jsonl", jsonl(request_line(text)))}
    return api.http.post("/v1/files", data={"purpose": "batch"}, files=files, headers=_headers(key, headers))


def batch(api: Api, key: str | None, text: str = "a", **headers: str) -> httpx.Response:
    files = api.openai.files.list().data or [
        api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    ]
    body = {"input_file_id": files[0].id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"text": text}}
    return api.http.post("/v1/batches", json=body, headers=_headers(key, headers))


def job(api: Api, key: str | None, text: str = "a", **headers: str) -> httpx.Response:
    body = BODY | {"messages": [{"role": "user", "content": text}]}
    return api.http.post("/v1/jobs", json={"url": CHAT, "body": body}, headers=_headers(key, headers))


def _headers(key: str | None, more: dict[str, str]) -> dict[str, str]:
    return more if key is None else more | {"Idempotency-Key": key}


posts = pytest.mark.parametrize("post", [upload, batch, job])


def num_objects(api: Api) -> int:
    store = api.backend.store
    return len(store.files().items) + len(store.batches().items) + len(store.active("job"))


@posts
def test_a_request_that_is_sent_again_finds_what_it_created(api: Api, post: Post) -> None:
    first = post(api, "k")
    before = num_objects(api)
    again = post(api, "k")
    told = [{name: x for name, x in answer.json().items() if name != "pressrun"} for answer in (first, again)]
    assert (again.status_code, told[1]) == (first.status_code, told[0])  # All but for how long it has been waiting.
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert num_objects(api) == before


@posts
def test_without_a_key_or_with_another_each_request_creates(api: Api, post: Post) -> None:
    ids = [post(api, key).json()["id"] for key in (None, None, "a", "b")]
    assert len(set(ids)) == 4


@posts
def test_a_key_that_stands_for_another_request_is_409(api: Api, post: Post) -> None:
    post(api, "k")
    before = num_objects(api)
    answer = post(api, "k", "something else")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("Idempotency-Key", "idempotency_key_reused")
    assert num_objects(api) == before


def test_a_key_is_for_one_route(api: Api) -> None:
    assert job(api, "k").status_code == 202
    assert batch(api, "k").status_code == 409


@posts
def test_a_key_is_the_tenants_own(api: Api, post: Post) -> None:
    post(api, None)
    ids = set()
    for tenant in ("default", "default"):
        secret, _ = api.backend.keys.create(tenant=tenant)
        signed = Api(
            url=api.url,
            openai=api.openai.with_options(api_key=secret),
            http=httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {secret}"}),
            backend=api.backend,
        )
        with signed.http:
            ids.add(post(signed, "k").json()["id"])
    assert len(ids) == 1
    other, _ = api.backend.keys.create(tenant="other")
    answer = job(api, "k", Authorization=f"Bearer {other}")
    assert answer.status_code == 202
    assert answer.json()["id"] not in ids


@posts
def test_a_request_in_flight_is_409_and_to_be_tried_again(api: Api, post: Post) -> None:
    post(api, None)  # Makes the file that a batch is made of.
    answers = []

    def create(object_id: str) -> str:
        answers.append(post(api, "k"))
        return object_id

    request = _request(api, post)
    once = Once(api.backend, tenant=DEFAULT_TENANT, key="k")
    once.do(lambda: request, new_id=lambda: "id", find=str, create=create)
    (answer,) = answers
    assert answer.status_code == 409
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")
    assert answer.json()["error"]["code"] == "idempotency_key_in_use"


def _request(api: Api, post: Post) -> Any:
    """What a request is told apart by, as its route puts it: found by asking the route for what it took."""
    seen: list[Any] = []
    original = Once.do

    def do(self: Once, request: Callable[[], Any], **how: Any) -> Any:
        seen.append(json.loads(json.dumps(request())))
        return original(self, request, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Once, "do", do)
        post(api, None)
    return seen[0]


@posts
def test_a_refused_request_leaves_its_key_free(api: Api, post: Post) -> None:
    api.backend.store.tenants.set("default", requests_per_minute=1000, max_enqueued_tokens=1, max_active_batches=1)
    api.backend.store.tenants.set("default", max_stored_bytes=1_000)
    batch(api, None)
    refused = {upload: lambda: upload(api, "k", "x" * 2000), batch: lambda: batch(api, "k"), job: lambda: job(api, "k")}
    answer = refused[post]()
    assert answer.status_code == 429, answer.text
    assert answer.headers["x-should-retry"] == "false"
    api.backend.store.tenants.set("default", max_enqueued_tokens=None, max_active_batches=None, max_stored_bytes=None)
    assert post(api, "k", "another").status_code in (200, 202)


def test_what_was_created_and_deleted_since_is_404(api: Api) -> None:
    file_id = upload(api, "k").json()["id"]
    api.openai.files.delete(file_id)
    assert upload(api, "k").status_code == 404


@pytest.mark.parametrize("key", ["x" * 256, ""])
def test_a_key_of_no_use_is_refused_by_name(api: Api, key: str) -> None:
    answer = job(api, key)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_the_sdk_sends_a_key_with_extra_headers_and_its_retries_create_once(api: Api) -> None:
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    ids = set()
    for _ in range(2):
        made = api.openai.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", extra_headers={"Idempotency-Key": "night-7"}
        )
        ids.add(made.id)
    assert [made.id for made in api.openai.batches.list()] == list(ids)
    with pytest.raises(openai.ConflictError, match="used for another request"):
        api.openai.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="1h",  # type: ignore[arg-type]
            extra_headers={"Idempotency-Key": "night-7"},
        )  # fmt: skip
