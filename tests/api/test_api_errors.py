"""What is wrong with a request, or with the server, always comes as OpenAI's error object."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pressrun.jobs.settings import Settings

from ..jobs.conftest import valkey_that_cannot_save
from .conftest import CHAT, Api, ServeApi, jsonl, request_line, served


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer that must have it, and nothing else."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/uploads/upload_x"),
        ("GET", "/v1/nothing"),
        ("GET", "/"),
        ("GET", "/v1/files/a/b/c"),
    ],
)
def test_a_path_that_is_not_there_is_404_and_named(api: Api, method: str, path: str) -> None:
    error = error_of(api.http.request(method, path, json={}), 404)
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
    assert f"{method} {path}" in error["message"]


def test_a_route_that_is_not_built_gives_the_sdk_a_clear_error(api: Api) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/images/generations"):
        api.openai.images.generate(prompt="a cat")


def test_a_method_that_a_path_does_not_take_is_405_and_says_which_it_does(api: Api) -> None:
    answer = api.http.patch("/v1/files")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] in ("GET", "POST", "GET, POST")


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/jobs"])
@pytest.mark.parametrize(
    ("content", "content_type", "word"),
    [
        (b"{", "application/json", "JSON"),
        (b"", "application/json", "JSON object"),
        (b"{}", "text/plain", "Content-Type"),
        (b"a=1", "application/x-www-form-urlencoded", "Content-Type"),
        (b"[1]", "application/json", "an array"),
        (b'"x"', "application/json", "a string"),
        (b"null", "application/json", "JSON object"),
        (b"\xff\xfe{}", "application/json", "body"),
        (b"[" * 100_000, "application/json", "nested too deep"),
        (b'{"metadata": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001, "application/json", "nested too deep"),
        (b'{"url": "\\ud800", "endpoint": "\\ud800"}', "application/json", ""),
        (b'{"\\ud800": 1}', "application/json", ""),
    ],
)
def test_a_body_that_is_no_json_object_is_400(
    api: Api, path: str, content: bytes, content_type: str, word: str
) -> None:
    answer = api.http.post(path, content=content, headers={"content-type": content_type})
    assert word in error_of(answer, 400)["message"]


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x", "text/plain"])
def test_an_upload_that_is_no_form_is_400(api: Api, content_type: str) -> None:
    error_of(api.http.post("/v1/files", content=b"nonsense", headers={"content-type": content_type}), 400)


def test_a_form_with_too_much_in_it_is_400(api: Api) -> None:
    many = [("file", (f"{n}.jsonl", b"{}")) for n in range(2)]
    error_of(api.http.post("/v1/files", data={"purpose": "batch"}, files=many), 400)
    error_of(api.http.post("/v1/files", data={"purpose": "b" * 5000}, files=many[:1]), 400)


def test_a_json_body_above_the_limit_is_413(serve: ServeApi) -> None:
    api = serve(max_line_bytes=2**20)
    body = {"url": CHAT, "body": {"model": "m", "prompt": "x" * 2**21}}
    assert error_of(api.http.post("/v1/jobs", json=body), 413)["code"] == "request_too_large"
    chunks = (b" " * 2**16 for _ in range(32))
    answer = api.http.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
    assert error_of(answer, 413)["code"] == "request_too_large"


def test_every_answer_has_an_id_of_its_own(api: Api) -> None:
    raw = api.openai.files.with_raw_response
    ids = {raw.list().headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.files.retrieve("file-none")
    assert (caught.value.request_id or "").startswith("req_")


def test_a_surprise_is_a_500_that_keeps_its_reason_to_the_log(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    api.backend.blobs.delete(f"files/{file.id}")
    with caplog.at_level(logging.ERROR, logger="pressrun.api"):
        answer = api.http.get(f"/v1/files/{file.id}/content")
    error = error_of(answer, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "BlobMissing" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    (record,) = caplog.records
    assert answer.headers["x-request-id"] in record.getMessage()
    assert record.exc_info
    assert record.exc_info[0]
    assert record.exc_info[0].__name__ == "BlobMissing"


def test_a_download_that_breaks_off_is_not_taken_for_the_whole(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    (api.backend.settings.data_dir / "blobs" / "files" / file.id).write_bytes(b"short")
    with pytest.raises(httpx.RemoteProtocolError), caplog.at_level(logging.CRITICAL):
        api.http.get(f"/v1/files/{file.id}/content")


def test_without_redis_every_call_says_try_again_until_it_is_back(
    serve: ServeApi, settings: Settings, tmp_path: Path
) -> None:
    there = str(settings.redis_url).removeprefix("unix://").split("?")[0]
    link = tmp_path / "valkey.sock"
    gone = settings.model_copy(update={"redis_url": f"unix://{link}"})
    with served(gone) as url, httpx.Client(base_url=url, timeout=20) as http:
        for answer in (
            http.get("/v1/files"),
            http.get("/v1/models"),
            http.get("/v1/batches/batch_x"),
            http.post("/v1/batches", json={"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h"}),
            http.post("/v1/jobs", json={"url": CHAT, "body": request_line("a")["body"]}),
            http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")}),
        ):
            error = error_of(answer, 503)
            assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert "valkey" not in answer.text
        health = http.get("/health")
        assert (health.status_code, health.json()["redis"]) == (503, "unreachable")
        link.symlink_to(there)
        assert http.get("/v1/files").status_code == 200
        assert http.get("/health").json()["status"] == "ok"


def test_a_redis_whose_disk_takes_no_writes_says_try_again(settings: Settings) -> None:
    with valkey_that_cannot_save() as valkey:
        broken = settings.model_copy(update={"redis_url": f"unix://{valkey.config['unixsocket']}"})
        with served(broken) as url, httpx.Client(base_url=url, timeout=20) as http:
            answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")})
    assert error_of(answer, 503)["code"] == "service_unavailable"


def test_a_redis_that_refuses_for_good_is_a_surprise(api: Api) -> None:
    api.backend.redis.set("pressrun:files", "not a set")
    assert error_of(api.http.get("/v1/files"), 500)["code"] == "internal_error"


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes every connection and never says a word, as a Redis does that has hung."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()
        thread.join()


def test_a_hung_redis_blocks_neither_the_event_loop_nor_health(settings: Settings) -> None:
    with silent_server() as port:
        hung = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0?socket_timeout=0.2"})
        with served(hung) as url, httpx.Client(base_url=url, timeout=2) as impatient:
            asked = [f"{url}/v1/models"] * 60 + [f"{url}/health"] * 8
            callers = [threading.Thread(target=give_up, args=(path,)) for path in asked]
            for caller in callers:
                caller.start()
            for _ in range(8):
                assert impatient.get("/v1/nothing").status_code == 404
                time.sleep(0.1)
            started = time.monotonic()
            assert httpx.get(f"{url}/health", timeout=10).status_code == 503
            assert time.monotonic() - started < 5
            for caller in callers:
                caller.join()


def give_up(url: str) -> None:
    """Ask, and do not wait for the answer."""
    with pytest.raises(httpx.TimeoutException):
        httpx.get(url, timeout=1)


def test_the_error_of_a_bad_line_is_json_that_any_client_can_read(api: Api) -> None:
    answer = api.http.post("/v1/jobs", content=b'{"\\ud83d": 1}', headers={"content-type": "application/json"})
    assert json.loads(answer.content.decode("ascii"))["error"]["code"]
