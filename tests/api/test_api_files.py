"""/v1/files through the real SDK, and past it where the SDK hides something."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from pressrun.jobs.packing import zstd
from pressrun.jobs.submit import sweep_files

from .conftest import CHAT, Api, ServeApi, jsonl, request_line

GOOD = jsonl(request_line("a"), request_line("b"))


def upload(api: Api, data: bytes = GOOD, name: str = "in.jsonl", **form: Any) -> Any:
    return api.openai.files.create(file=(name, data), purpose=form.pop("purpose", "batch"), **form)


def test_an_uploaded_file_comes_back_as_it_went(api: Api) -> None:
    before = int(time.time())
    file = upload(api, name="prompts ü.jsonl")
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.purpose, file.status) == ("file", len(GOOD), "batch", "processed")
    assert file.filename == "prompts ü.jsonl"
    assert before <= file.created_at <= time.time()
    assert file.expires_at == file.created_at + 30 * 86400
    assert api.openai.files.retrieve(file.id) == file
    response = api.openai.files.content(file.id)
    assert response.content == GOOD
    assert response.response.headers["content-type"] == "application/octet-stream"
    assert response.response.headers["content-disposition"] == "attachment; filename*=UTF-8''prompts%20%C3%BC.jsonl"


def test_every_field_of_a_file_is_there_even_when_null(api: Api) -> None:
    body = api.http.get(f"/v1/files/{upload(api, name='notes.txt', purpose='user_data').id}").json()
    assert body.keys() == {
        "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details",
    }  # fmt: skip
    assert body["expires_at"] is None


def test_the_purpose_may_stand_after_the_file(api: Api) -> None:
    parts = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + GOOD + b"\r\n"
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    )
    answer = api.http.post("/v1/files", content=parts, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, answer.json()["bytes"]) == (200, len(GOOD))


def test_a_file_expires_when_its_uploader_said(api: Api) -> None:
    file = upload(api, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600


def test_an_expired_file_is_gone_for_every_call_and_swept_with_its_bytes(api: Api) -> None:
    kept, file, later = upload(api), upload(api), upload(api)
    api.backend.store.add_file(replace(api.backend.store.file(file.id), expires_at=int(time.time())))
    for call in (
        api.openai.files.retrieve,
        api.openai.files.content,
        api.openai.files.delete,
        lambda one: api.openai.batches.create(input_file_id=one, endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    for order, ids in (("desc", [later.id, kept.id]), ("asc", [kept.id, later.id])):
        assert [one.id for one in api.openai.files.list(limit=1, order=order)] == ids  # type: ignore[arg-type]
    sweep_files(api.backend, api.backend.store.expired_files(time.time()))
    assert {key.removeprefix("files/") for key in api.backend.blobs.list("files")} == {kept.id, later.id}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_files_end_where_the_files_end(api: Api, order: Any) -> None:
    ids = [upload(api, name=f"{n}.jsonl").id for n in range(4)]
    ids = ids if order == "asc" else ids[::-1]

    def page(**query: Any) -> tuple[list[str], bool, str | None, str | None]:
        body = api.http.get("/v1/files", params={"order": order} | query).json()
        return [file["id"] for file in body["data"]], body["has_more"], body["first_id"], body["last_id"]

    assert page(limit=4) == (ids, False, ids[0], ids[3])
    assert page(limit=3) == (ids[:3], True, ids[0], ids[2])
    assert page(limit=10_000, after=ids[1]) == (ids[2:], False, ids[2], ids[3])
    assert page(limit=1, after=ids[2]) == (ids[3:], False, ids[3], ids[3])
    assert page(after=ids[3]) == ([], False, None, None)
    assert page(after=ids[0], purpose="user_data") == ([], False, None, None)


def test_a_deleted_file_is_gone_with_its_bytes(api: Api) -> None:
    file = upload(api)
    deleted = api.openai.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    for call in (api.openai.files.retrieve, api.openai.files.content, api.openai.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert caught.value.param == "id"
        assert file.id in str(caught.value.body)
    assert list(api.backend.blobs.list("files")) == []


def test_the_sdk_pages_through_all_files_in_both_orders(api: Api) -> None:
    ids = [upload(api, name=f"{n}.jsonl").id for n in range(7)]
    assert [file.id for file in api.openai.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in api.openai.files.list(limit=3, order="asc")] == ids
    page = api.openai.files.list(limit=7)
    assert (len(page.data), page.has_more) == (7, False)


def test_a_page_of_files_has_the_whole_envelope(api: Api) -> None:
    assert api.http.get("/v1/files").json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    ids = [upload(api).id for _ in range(3)]
    page = api.http.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)


def test_files_of_one_purpose_are_listed_alone_and_paged(api: Api) -> None:
    wanted = []
    for number in range(6):
        upload(api)
        wanted.append(upload(api, name=f"{number}.txt", purpose="user_data").id)
    assert [file.id for file in api.openai.files.list(purpose="user_data", limit=2)] == wanted[::-1]
    assert api.openai.files.list(purpose="vision").data == []


def test_an_async_client_uploads_many_files_at_once(api: Api) -> None:
    bodies = [jsonl(*(request_line(f"{n}-{m}") for m in range(50))) for n in range(24)]

    async def run() -> list[bytes]:
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as sdk:
            one = sdk.files.create
            files = await asyncio.gather(*(one(file=("a.jsonl", body), purpose="batch") for body in bodies))
            listed = [file.id async for file in sdk.files.list(limit=5)]
            assert sorted(listed) == sorted(file.id for file in files)
            return [(await sdk.files.content(file.id)).content for file in files]

    assert asyncio.run(run()) == bodies


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=90-", 90, 100), ("bytes=-7", 93, 100), ("bytes=50-5000", 50, 100)],
)
def test_a_range_of_a_file_can_be_had(api: Api, asked: str, start: int, stop: int) -> None:
    data = random.Random(1).randbytes(100)
    file = upload(api, data, name="a.bin", purpose="user_data")
    answer = api.http.get(f"/v1/files/{file.id}/content", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, data[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/100"
    assert answer.headers["content-length"] == str(stop - start)


def test_a_range_that_cannot_be_understood_gives_the_whole_file(api: Api) -> None:
    file = upload(api)
    for asked in ("bytes=0-1,4-5", "lines=0-1", "bytes=5-2", "bytes=-", "nonsense"):
        answer = api.http.get(f"/v1/files/{file.id}/content", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, GOOD)
        assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", ["bytes=100000-", "bytes=-0", "bytes=100000-100001"])
def test_a_range_outside_the_file_is_416(api: Api, asked: str) -> None:
    file = upload(api)
    answer = api.http.get(f"/v1/files/{file.id}/content", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(GOOD)}"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


def test_a_large_file_survives_the_round_trip(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(2).randbytes(9 * 2**20 + 13))
    file = api.openai.files.create(file=path, purpose="user_data")
    digest = hashlib.sha256()
    with api.openai.files.with_streaming_response.content(file.id) as response:
        for chunk in response.iter_bytes():
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


def refused(api: Api, **form: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        upload(api, **form)
    assert list(api.backend.blobs.list("files")) == []
    return caught.value


def test_a_batch_file_must_be_called_jsonl(api: Api) -> None:
    assert refused(api, name="in.csv").param == "file"


def test_an_empty_file_is_refused(api: Api) -> None:
    error = refused(api, data=b"")
    assert (error.param, error.code) == ("file", "empty_file")


@pytest.mark.parametrize("data", [b"custom_id,body\n1,2\n", b"[1, 2]\n", b'{"a": NaN}\n', b"\xff\xfe\n", b"\n{'a': 1}"])
def test_a_batch_file_whose_first_line_is_not_an_object_is_refused(api: Api, data: bytes) -> None:
    error = refused(api, data=data)
    assert (error.param, error.code) == ("file", "invalid_json_line")


def test_an_unknown_purpose_is_refused_with_the_known_ones(api: Api) -> None:
    error = refused(api, purpose="dinner")
    assert (error.param, error.code) == ("purpose", "invalid_value")
    assert "'batch'" in error.message


@pytest.mark.parametrize(
    ("expiry", "param", "code"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds", "invalid_value"),
        ({"anchor": "created_at", "seconds": 2592001}, "expires_after.seconds", "invalid_value"),
        ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds", "invalid_type"),
        ({"anchor": "last_used_at", "seconds": 3600}, "expires_after.anchor", "invalid_value"),
        ({"anchor": "created_at"}, "expires_after.seconds", "missing_required_parameter"),
        ({"seconds": 3600}, "expires_after.anchor", "missing_required_parameter"),
        ({"anchor": "created_at", "seconds": 3600, "x": 1}, "expires_after.x", "unknown_parameter"),
    ],
)
def test_a_bad_expiry_is_refused_by_name(api: Api, expiry: dict[str, Any], param: str, code: str) -> None:
    error = refused(api, expires_after=expiry)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    ("form", "files", "param", "code"),
    [
        ({"purpose": "batch"}, {}, "file", "missing_required_parameter"),
        ({}, {"file": ("a.jsonl", GOOD)}, "purpose", "missing_required_parameter"),
        ({"purpose": "batch", "file": "text"}, {"x": ("", b"")}, "file", "invalid_type"),
        ({"purpose": "batch", "color": "red"}, {"file": ("a.jsonl", GOOD)}, "color", "unknown_parameter"),
    ],
)
def test_a_form_that_is_not_the_uploads_is_refused_by_name(
    api: Api, form: dict[str, str], files: dict[str, Any], param: str, code: str
) -> None:
    answer = api.http.post("/v1/files", data=form, files=files or {"": ("", b"")})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 10_001}, {"limit": "all"}, {"order": "up"}, {"page": 2}])
def test_a_bad_query_is_refused_by_name(api: Api, query: dict[str, Any]) -> None:
    answer = api.http.get("/v1/files", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


def test_a_listing_after_an_unknown_file_says_so(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.files.list(after="file-none")
    assert caught.value.param == "after"


def test_a_declared_size_above_the_limit_is_refused_before_the_upload(serve: ServeApi) -> None:
    api = serve(max_file_bytes=2**20)
    with pytest.raises(openai.APIStatusError) as caught:
        upload(api, b"x" * 2**24, name="a.bin", purpose="user_data")
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (
        413,
        "file_too_large",
        "file",
    )


def test_an_undeclared_size_above_the_limit_is_refused_on_the_way(serve: ServeApi) -> None:
    api = serve(max_file_bytes=2**20)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    sent = 0

    def endless() -> Any:
        nonlocal sent
        yield head
        while sent < 2**30:
            sent += 2**16
            yield b"x" * 2**16

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = api.http.post("/v1/files", content=endless(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert sent < 2**26


def test_a_file_one_byte_above_the_limit_is_refused_and_one_at_the_limit_is_not(serve: ServeApi) -> None:
    api = serve(max_file_bytes=1000)
    assert upload(api, b"x" * 1000, name="a.bin", purpose="user_data").bytes == 1000
    with pytest.raises(openai.APIStatusError) as caught:
        upload(api, b"x" * 1001, name="a.bin", purpose="user_data")
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert len(list(api.backend.blobs.list("files"))) == 1


def test_uploads_and_deletions_at_once_leave_exactly_what_was_not_deleted(api: Api) -> None:
    def one(number: int) -> str | None:
        file = upload(api, name=f"{number}.jsonl")
        if number % 2:
            return str(file.id)
        api.openai.files.delete(file.id)
        return None

    with ThreadPoolExecutor(16) as pool:
        kept = {file_id for file_id in pool.map(one, range(64)) if file_id}
    assert {file.id for file in api.openai.files.list(limit=9)} == kept
    assert {key.removeprefix("files/") for key in api.backend.blobs.list("files")} == kept


def test_an_upload_that_breaks_off_leaves_nothing(api: Api) -> None:
    import socket

    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 900000\r\n\r\n--x\r\nContent-Disposition: form-data; "
            b'name="file"; filename="a.jsonl"\r\n\r\n' + GOOD
        )
    time.sleep(0.2)
    assert api.openai.files.list().data == []
    assert list(api.backend.blobs.list("files")) == []


def test_a_file_from_memory_needs_no_name_on_disk(api: Api) -> None:
    stream = io.BytesIO(GOOD)
    stream.name = "named.jsonl"
    assert api.openai.files.create(file=stream, purpose="batch").filename == "named.jsonl"


def test_a_file_in_s3_can_be_fetched_from_there(serve: ServeApi, s3_url: str) -> None:
    api = serve(blob_url=f"{s3_url}/redirected")
    file = api.openai.files.create(file=("a b.txt", b"0123456789"), purpose="user_data")
    answer = api.http.get(f"/v1/files/{file.id}/content", params={"redirect": True})
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith(os.environ["AWS_ENDPOINT_URL_S3"])
    with httpx.Client() as anybody:
        part = anybody.get(answer.headers["Location"], headers={"Range": "bytes=3-5"})
    assert part.content == b"345"
    assert part.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a%20b.txt"
    missing = api.http.get("/v1/files/file-none/content", params={"redirect": True})
    assert missing.status_code == 404


def test_a_redirect_is_refused_where_files_are_on_disk(api: Api) -> None:
    file = api.openai.files.create(file=("a.txt", b"0123456789"), purpose="user_data")
    answer = api.http.get(f"/v1/files/{file.id}/content", params={"redirect": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "redirect")
    assert "PRESSRUN_BLOB_URL" in answer.json()["error"]["message"]
    assert api.http.get(f"/v1/files/{file.id}/content", params={"redirect": False}).content == b"0123456789"
    unknown = api.http.get(f"/v1/files/{file.id}/content", params={"redirected": True})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "redirected")


@pytest.mark.parametrize(("form", "unpack"), [("jsonl.gz", gzip.decompress), ("jsonl.zst", zstd.decompress)])
def test_a_batch_file_goes_in_packed_and_comes_out_packed(api: Api, form: str, unpack: Any) -> None:
    packed = {"jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress}[form](GOOD)
    file = upload(api, packed, f"in.{form}")
    assert (file.filename, file.bytes) == ("in.jsonl", len(GOOD))
    answer = api.http.get(f"/v1/files/{file.id}/content", params={"format": form}, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, unpack(answer.content)) == (200, GOOD)
    assert answer.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''in.{form}"
    assert api.http.get(f"/v1/files/{file.id}/content", params={"format": "jsonl"}).content == GOOD


def test_a_form_that_a_file_cannot_have_is_refused(api: Api) -> None:
    batch_file, other = upload(api), upload(api, b"text", "a.txt", purpose="user_data")
    for file_id, params, param in (
        (batch_file.id, {"format": "parquet"}, "format"),
        (other.id, {"format": "jsonl.gz"}, "format"),
        (other.id, {"format": "zip"}, "format"),
        (batch_file.id, {"format": "jsonl.gz", "redirect": True}, "redirect"),
    ):
        answer = api.http.get(f"/v1/files/{file_id}/content", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_packed_file_that_is_broken_is_refused_and_not_kept(api: Api) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be unpacked as gzip"):
        upload(api, gzip.compress(GOOD)[:-4], "in.jsonl.gz")
    assert api.openai.files.list().data == []
