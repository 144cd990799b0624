"""Who may come in: API keys, the open door on loopback, and the limit on requests."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import httpx
import openai
import pytest

from pressrun.api.app import create_app
from pressrun.api.door import is_loopback
from pressrun.jobs.backend import connect
from pressrun.jobs.errors import SettingsError
from pressrun.jobs.keys import KEYS, Keys
from pressrun.jobs.settings import Settings, load_settings
from pressrun.jobs.store import Store

from .conftest import CHAT, MODEL, Api, ServeApi, served

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The error of a request that was not let in."""
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    return error


def test_on_loopback_without_any_keys_nobody_needs_one(api: Api) -> None:
    assert api.openai.files.list().data == []


def test_the_first_key_that_is_made_shuts_the_door_at_once_and_for_good(api: Api) -> None:
    secret, key = api.backend.keys.create()
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        api.openai.files.list()
    assert api.openai.with_options(api_key=secret).files.list().data == []
    api.backend.keys.revoke(key.id)
    refusal(api.http.get("/v1/files"))


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Basic {}", "{}", "Bearer sk-pressrun-none", "Bearer {}x", "Bearer {} x"]
)
def test_what_is_no_key_of_ours_is_refused(api: Api, header: str) -> None:
    secret, _ = api.backend.keys.create()
    headers = {"Authorization": header.format(secret)} if header else {}
    assert secret not in refusal(api.http.get("/v1/files", headers=headers))["message"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_name_of_the_scheme_may_be_written_in_any_case(api: Api, scheme: str) -> None:
    secret, _ = api.backend.keys.create()
    assert api.http.get("/v1/files", headers={"Authorization": f"{scheme} {secret}"}).status_code == 200


def test_a_revoked_key_is_refused_by_every_server_from_then_on(api: Api, serve: ServeApi) -> None:
    secret, key = api.backend.keys.create()
    other = serve()
    for server in (api, other):
        assert server.http.get("/v1/files", headers=bearer(secret)).status_code == 200
    other.backend.keys.revoke(secret)
    for server in (api, other):
        error = refusal(server.http.get("/v1/files", headers=bearer(secret)))
        assert f"{key.id}) has been revoked" in error["message"]


def test_an_expired_key_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, _ = api.backend.keys.create(expires_in_s=60)
    assert api.http.get("/v1/files", headers=bearer(secret)).status_code == 200
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert "has expired" in refusal(api.http.get("/v1/files", headers=bearer(secret)))["message"]


def test_a_body_is_not_read_for_who_is_not_let_in(api: Api) -> None:
    api.backend.keys.create()
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=10) as client:
        head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        client.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_the_sdk_hears_that_its_key_is_wrong_even_while_it_sends_a_large_file(api: Api) -> None:
    api.backend.keys.create()
    for _ in range(3):
        with pytest.raises(openai.AuthenticationError):
            api.openai.files.create(file=("in.jsonl", b"x" * 30_000_000), purpose="batch")
    assert api.http.get("/health").status_code == 200


def test_health_metrics_and_the_documents_need_no_key_and_what_is_no_route_is_404(serve: ServeApi) -> None:
    api = serve(auth="required")
    for path in ("/health", "/metrics", "/docs", "/openapi.json"):
        assert api.http.get(path).status_code == 200, path
    assert api.http.get("/v1/nothing").status_code == 404
    assert "HTTPBearer" in api.http.get("/openapi.json").json()["components"]["securitySchemes"]
    refusal(api.http.get("/v1/files"))


def test_required_means_everybody_even_before_there_is_a_key(serve: ServeApi) -> None:
    assert "pressrun keys create" in refusal(serve(auth="required").http.get("/v1/files"))["message"]


def test_off_means_nobody_even_if_there_are_keys_and_all_is_the_default_tenants(serve: ServeApi) -> None:
    api = serve(auth="off")
    secret, _ = api.backend.keys.create(tenant="acme")
    job = api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY}, headers=bearer(secret)).json()
    assert api.backend.store.batch(job["id"]).tenant == "default"


def test_a_connection_from_elsewhere_needs_a_key_whatever_the_server_was_told(settings: Settings) -> None:
    """As under `uvicorn --factory --host 0.0.0.0`, of which the settings know nothing."""
    address = _address_of_this_machine()
    with served(settings, host=address) as url:
        refusal(httpx.get(f"{url}/v1/files"))
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_server_for_others_does_not_start_without_keys(settings: Settings) -> None:
    for_others = load_settings({}, **(settings.model_dump() | {"host": "0.0.0.0"}))
    app = create_app(for_others)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(SettingsError, match=r"no API key: make one with `pressrun keys create`"):
        asyncio.run(start())
    with connect(settings).redis as redis:
        Keys(Store(redis)).create()
    asyncio.run(start())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False),
        ("/run/pressrun.sock", False),
    ],
)  # fmt: skip
def test_only_loopback_addresses_are_this_machines_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_keys_in_redis_that_is_away_let_nobody_in(settings: Settings) -> None:
    gone = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "auth": "required"})
    with served(gone) as url:
        answer = httpx.get(f"{url}/v1/files", headers=bearer("sk-pressrun-x"), timeout=20)
    assert answer.status_code == 503


def test_requests_are_limited_by_tenant_and_the_headers_say_how_many_are_left(api: Api) -> None:
    api.backend.store.tenants.set("acme", requests_per_minute=3)
    acme, other = (api.backend.keys.create(tenant=tenant)[0] for tenant in ("acme", "other"))
    for left in (2, 1, 0):
        answer = api.http.get("/v1/files", headers=bearer(acme))
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert 0 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    answer = api.http.get("/v1/files", headers=bearer(acme))
    assert answer.status_code == 429
    assert 15 <= int(answer.headers["retry-after"]) <= 20
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert "organization acme. Limit: 3 / min." in error["message"]
    unlimited = api.http.get("/v1/files", headers=bearer(other))
    assert unlimited.status_code == 200
    assert "x-ratelimit-limit-requests" not in unlimited.headers
    assert api.http.get("/health").status_code == 200


def test_the_sdk_waits_as_long_as_it_is_told_and_goes_on(api: Api) -> None:
    api.backend.store.tenants.set("default", requests_per_minute=60)
    api.backend.redis.hset("pressrun:requests:default", mapping={"left": "0.2", "at": f"{time.time():.6f}"})
    assert api.openai.with_options(max_retries=1).files.list().data == []


def test_the_key_itself_is_nowhere_in_redis(api: Api) -> None:
    secret, key = api.backend.keys.create(tenant="acme", name="n")
    (stored,) = api.backend.redis.hgetall(KEYS).items()
    assert secret.encode() not in b"".join(stored)
    assert secret[len(key.hint) :].encode() not in b"".join(stored)


def test_the_app_cannot_be_made_with_an_unknown_rule() -> None:
    with pytest.raises(SettingsError, match="PRESSRUN_AUTH='maybe'"):
        create_app(load_settings({"PRESSRUN_AUTH": "maybe"}))


def _address_of_this_machine() -> str:
    """One that is not loopback; skips where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing: it only chooses a route.
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])
