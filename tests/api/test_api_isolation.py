"""No tenant sees, lists, cancels, reads or guesses another's objects, on any route of the app.

`TABLE` says of every route how it is shown. A route that is not in it fails a test, so that none is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from pressrun.api.app import create_app
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import UserError
from pressrun.jobs.lines import answered, refused
from pressrun.jobs.records import Usage
from pressrun.jobs.settings import Settings

from .conftest import CHAT, MODEL, Api, jsonl, request_line, seal_results

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
SHARED = "tells nothing of any tenant"


@dataclass(frozen=True, slots=True)
class As:
    """The API as one tenant has it."""

    api: Api
    secret: str

    def __call__(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.api.http.request(method, path, headers={"Authorization": f"Bearer {self.secret}"}, **request)

    def upload(self) -> str:
        files = {"file": ("in.jsonl", jsonl(request_line("a"), request_line("b")))}
        return str(self.good("POST", "/v1/files", data={"purpose": "batch"}, files=files)["id"])

    def create(self, file_id: str) -> str:
        return str(self.good("POST", "/v1/batches", json=batch_of(file_id))["id"])

    def job(self) -> str:
        return str(self.good("POST", "/v1/jobs", json={"url": CHAT, "body": BODY})["id"])

    def begin_upload(self) -> str:
        body = {"filename": "in.jsonl", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}
        return str(self.good("POST", "/v1/uploads", json=body)["id"])

    def endpoint(self) -> str:
        body = {"name": "hook", "url": "https://example.com/hook", "event_types": ["batch.completed"]}
        return str(self.good("POST", "/v1/webhook_endpoints", json=body)["id"])

    def good(self, method: str, path: str, **request: Any) -> Any:
        answer = self(method, path, **request)
        assert answer.is_success, answer.text
        return answer.json()


def batch_of(file_id: str) -> dict[str, str]:
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}


@dataclass(frozen=True, slots=True)
class Owned:
    """What the owner has: an ended batch with its three files, one that runs, a job, an upload, a webhook endpoint."""

    input: str
    output: str
    error: str
    ended: str
    running: str
    job: str
    upload: str
    endpoint: str


Check = Callable[[As, As, Owned], None]
FILES, BATCH = ("input", "output", "error"), ("ended", "running")


def unknown(request: Callable[[str], tuple[str, str]], unknown_id: str, *names: str, **more: Any) -> Check:
    """The other's answer for each of these objects is that for an id that nobody has, and the owner's is not."""

    def check(owner: As, other: As, owned: Owned) -> None:
        for name in names:
            object_id = getattr(owned, name)
            theirs, nobodys = other(*request(object_id), **more), other(*request(unknown_id), **more)
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text == nobodys.text.replace(unknown_id, object_id)
            assert owner(*request(object_id), **more).status_code != 404

    return check


def listed(path: str, mine: Callable[[As], str], *names: str) -> Check:
    """Each sees its own and nothing else, also beyond a cursor; another's cursor is an unknown one."""

    def check(owner: As, other: As, owned: Owned) -> None:
        own = mine(other)
        theirs = [getattr(owned, name) for name in names]
        assert [item["id"] for item in other.good("GET", path)["data"]] == [own]
        assert {item["id"] for item in owner.good("GET", path)["data"]} == set(theirs)
        assert other.good("GET", path, params={"after": own})["data"] == []
        for object_id in theirs:
            answer, nobodys = (other("GET", path, params={"after": after}) for after in (object_id, "none"))
            assert answer.status_code == nobodys.status_code == 404
            assert answer.text == nobodys.text.replace("none", object_id)

    return check


def uploads_stay_apart(owner: As, other: As, owned: Owned) -> None:
    file_id = other.upload()
    assert other("GET", f"/v1/files/{file_id}").status_code == 200
    assert owner("GET", f"/v1/files/{file_id}").status_code == 404


def jobs_stay_apart(owner: As, other: As, owned: Owned) -> None:
    job_id = other.job()
    assert other("GET", f"/v1/jobs/{job_id}").status_code == 200
    assert owner("GET", f"/v1/jobs/{job_id}").status_code == 404


def uploads_in_parts_stay_apart(owner: As, other: As, owned: Owned) -> None:
    upload_id = other.begin_upload()
    assert owner("POST", f"/v1/uploads/{upload_id}/cancel").status_code == 404
    assert other("POST", f"/v1/uploads/{upload_id}/cancel").status_code == 200


def endpoints_stay_apart(owner: As, other: As, owned: Owned) -> None:
    endpoint_id = other.endpoint()
    assert other("GET", f"/v1/webhook_endpoints/{endpoint_id}").status_code == 200
    assert owner("GET", f"/v1/webhook_endpoints/{endpoint_id}").status_code == 404


def of_upload(what: str, **more: Any) -> Check:
    return unknown(lambda name: ("POST", f"/v1/uploads/{name}/{what}"), "upload_none", "upload", **more)


def of_endpoint(method: str, what: str = "", **more: Any) -> Check:
    return unknown(lambda name: (method, f"/v1/webhook_endpoints/{name}{what}"), "whe_none", "endpoint", **more)


def of_batch(method: str, what: str, **more: Any) -> Check:
    return unknown(lambda name: (method, f"/v1/batches/{name}/{what}"), "batch_none", *BATCH, **more)


def batches_are_made_of_ones_own_files(owner: As, other: As, owned: Owned) -> None:
    for file_id in (owned.input, owned.output):
        theirs, nobodys = (other("POST", "/v1/batches", json=batch_of(name)) for name in (file_id, "file-none"))
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.text == nobodys.text.replace("file-none", file_id)
    batch_id = other.create(other.upload())
    assert owner("GET", f"/v1/batches/{batch_id}").status_code == 404


TABLE: dict[str, Check | str] = {
    "POST /v1/files": uploads_stay_apart,
    "GET /v1/files": listed("/v1/files", As.upload, *FILES),
    "GET /v1/files/{file_id}": unknown(lambda name: ("GET", f"/v1/files/{name}"), "file-none", *FILES),
    "GET /v1/files/{file_id}/content": unknown(lambda name: ("GET", f"/v1/files/{name}/content"), "file-none", *FILES),
    "DELETE /v1/files/{file_id}": unknown(lambda name: ("DELETE", f"/v1/files/{name}"), "file-none", *FILES),
    "POST /v1/batches": batches_are_made_of_ones_own_files,
    "GET /v1/batches": listed("/v1/batches", lambda other: other.create(other.upload()), *BATCH),
    "GET /v1/batches/{batch_id}": unknown(lambda name: ("GET", f"/v1/batches/{name}"), "batch_none", *BATCH),
    "POST /v1/batches/{batch_id}/cancel": unknown(
        lambda name: ("POST", f"/v1/batches/{name}/cancel"), "batch_none", *BATCH
    ),
    "POST /v1/uploads": uploads_in_parts_stay_apart,
    "POST /v1/uploads/{upload_id}/parts": of_upload("parts", files={"data": b"123"}),
    "POST /v1/uploads/{upload_id}/complete": of_upload("complete", json={"part_ids": ["part_1"]}),
    "POST /v1/uploads/{upload_id}/cancel": of_upload("cancel"),
    "POST /v1/webhook_endpoints": endpoints_stay_apart,
    "GET /v1/webhook_endpoints": listed("/v1/webhook_endpoints", As.endpoint, "endpoint"),
    "GET /v1/webhook_endpoints/{endpoint_id}": of_endpoint("GET"),
    "POST /v1/webhook_endpoints/{endpoint_id}": of_endpoint("POST", json={"name": "other"}),
    "DELETE /v1/webhook_endpoints/{endpoint_id}": of_endpoint("DELETE"),
    "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret": of_endpoint("POST", "/rotate_secret"),
    "POST /v1/webhook_endpoints/{endpoint_id}/test": of_endpoint(
        "POST", "/test", json={"event_type": "batch.completed"}
    ),
    "GET /v1/webhook_endpoints/{endpoint_id}/deliveries": of_endpoint("GET", "/deliveries"),
    "GET /v1/webhook_event_types": SHARED,
    "GET /v1/batches/{batch_id}/results": of_batch("GET", "results"),
    "POST /v1/batches/{batch_id}/pause": of_batch("POST", "pause"),
    "POST /v1/batches/{batch_id}/resume": of_batch("POST", "resume"),
    "POST /v1/batches/{batch_id}/update": of_batch("POST", "update", json={"priority": 1}),
    "POST /v1/batches/{batch_id}/retry": of_batch("POST", "retry", json={"lines": "failed"}),
    "POST /v1/jobs": jobs_stay_apart,
    "GET /v1/jobs/{job_id}": unknown(lambda name: ("GET", f"/v1/jobs/{name}"), "job_none", "job"),
    "DELETE /v1/jobs/{job_id}": unknown(lambda name: ("DELETE", f"/v1/jobs/{name}"), "job_none", "job"),
    "POST /v1/chat/completions": SHARED,  # Nothing of an online request can be asked for afterwards.
    "POST /v1/completions": SHARED,
    "POST /v1/embeddings": SHARED,
    "POST /v1/responses": SHARED,
    "POST /tokenize": SHARED,
    "POST /detokenize": SHARED,
    "GET /v1/models": SHARED,
    "GET /v1/models/{model_id:path}": SHARED,
    "GET /health": SHARED,
    "GET /metrics": SHARED,
    "GET /openapi.json": SHARED,
    "GET /docs": SHARED,
    "GET /docs/oauth2-redirect": SHARED,
    "GET /redoc": SHARED,
}


def routes(settings: Settings) -> set[str]:
    """Every route of the app, whether it is documented or not."""
    found = iter_route_contexts(create_app(settings).routes)
    return {f"{method} {route.path}" for route in found for method in route.methods or {"ANY"} if method != "HEAD"}


def own(owner: As) -> Owned:
    """Make what the owner has."""
    file_id = owner.upload()
    ended, running = owner.create(file_id), owner.create(file_id)
    backend = owner.api.backend
    validate_batch(backend, ended)
    ways = {"a": lambda line: answered(line, {}, Usage()), "b": lambda line: refused(line, UserError("No."))}
    seal_results(backend, ended, lambda line: ways[line.custom_id](line))
    batch = owner.good("GET", f"/v1/batches/{ended}")
    assert batch["status"] == "completed"
    return Owned(
        file_id,
        batch["output_file_id"],
        batch["error_file_id"],
        ended,
        running,
        owner.job(),
        owner.begin_upload(),
        owner.endpoint(),
    )


def test_every_route_is_in_the_table(settings: Settings) -> None:
    assert routes(settings) == set(TABLE)


CHECKS = [route for route, check in TABLE.items() if check is not SHARED]
LISTS = [
    "GET /v1/files",
    "GET /v1/batches",
    "GET /v1/webhook_endpoints",
]  # The default tenant's lists are others than anybody else's.
CASES = [
    *((route, ("acme", "evil")) for route in CHECKS),
    *((route, tenants) for route in LISTS for tenants in (("default", "evil"), ("acme", "default"))),
]


@pytest.mark.parametrize(("route", "tenants"), CASES)
def test_nothing_of_another_tenants_is_there(api: Api, route: str, tenants: tuple[str, str]) -> None:
    owner, other = (As(api, api.backend.keys.create(tenant=tenant)[0]) for tenant in tenants)
    check = TABLE[route]
    assert callable(check)
    check(owner, other, own(owner))


def test_two_keys_of_one_tenant_open_the_same(api: Api) -> None:
    one, two = (As(api, api.backend.keys.create(tenant="acme")[0]) for _ in range(2))
    owned = own(one)
    assert two.good("GET", f"/v1/batches/{owned.ended}") == one.good("GET", f"/v1/batches/{owned.ended}")
    assert [file["id"] for file in two.good("GET", "/v1/files")["data"]] == [owned.error, owned.output, owned.input]


def test_what_was_made_before_there_were_keys_is_the_default_tenants(api: Api) -> None:
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    default, other = (As(api, api.backend.keys.create(tenant=tenant)[0]) for tenant in ("default", "acme"))
    assert [item["id"] for item in default.good("GET", "/v1/files")["data"]] == [file.id]
    assert other.good("GET", "/v1/files")["data"] == []
