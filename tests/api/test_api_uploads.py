"""/v1/uploads through the real SDK, and past it where the SDK hides something."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from pressrun.jobs.beginning import validate_batch

from .conftest import CHAT, Api, ServeApi, jsonl, request_line

WHOLE = jsonl(*(request_line(f"c{n}") for n in range(100)))


def begin(api: Api, size: int = len(WHOLE), **changes: Any) -> Any:
    good: Any = {"filename": "in.jsonl", "purpose": "batch", "mime_type": "application/jsonl"}
    return api.openai.uploads.create(bytes=size, **good | changes)


def refusal(api: Api, path: str, body: object) -> dict[str, Any]:
    answer = api.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_the_sdk_uploads_a_file_in_parts_and_a_batch_is_made_of_it(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(WHOLE)
    upload = api.openai.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
        md5=hashlib.md5(WHOLE).hexdigest(),
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(WHOLE), "in.jsonl")
    assert upload.file
    assert upload.file == api.openai.files.retrieve(upload.file.id)
    assert api.openai.files.content(upload.file.id).content == WHOLE
    batch = api.openai.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
    validate_batch(api.backend, batch.id)
    counts = api.openai.batches.retrieve(batch.id).request_counts
    assert counts
    assert counts.total == 100


def test_a_packed_file_in_parts_is_kept_as_its_lines(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(WHOLE))
    uploads = api.openai.uploads
    upload = uploads.upload_file_chunked(file=path, mime_type="application/gzip", purpose="batch", part_size=200)
    assert (upload.status, upload.bytes, upload.filename) == ("completed", path.stat().st_size, "in.jsonl.gz")
    assert upload.file
    assert (upload.file.bytes, upload.file.filename) == (len(WHOLE), "in.jsonl")
    assert api.openai.files.content(upload.file.id).content == WHOLE


def test_an_async_client_sends_parts_at_once_and_completes_them_in_its_own_order(api: Api) -> None:
    data = random.Random(1).randbytes(3 * 2**20 + 7)
    cuts = [data[start : start + 2**18] for start in range(0, len(data), 2**18)]

    async def run() -> Any:
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as sdk:
            upload = await sdk.uploads.create(
                filename="a.bin", purpose="user_data", bytes=len(data), mime_type="application/octet-stream"
            )
            # The last goes first, and all of them together.
            sent = [sdk.uploads.parts.create(upload.id, data=cut) for cut in reversed(cuts)]
            parts = await asyncio.gather(*sent)
            return await sdk.uploads.complete(upload.id, part_ids=[part.id for part in reversed(parts)])

    upload = asyncio.run(run())
    assert api.openai.files.content(upload.file.id).content == data


def test_every_field_of_an_upload_and_of_a_part_is_there(api: Api) -> None:
    upload = begin(api, expires_after={"anchor": "created_at", "seconds": 3600})
    assert upload.to_dict() == {
        "id": upload.id, "object": "upload", "bytes": len(WHOLE), "created_at": upload.created_at,
        "expires_at": upload.created_at + 3600, "filename": "in.jsonl", "purpose": "batch", "status": "pending",
        "file": None,
    }  # fmt: skip
    part = api.openai.uploads.parts.create(upload.id, data=WHOLE)
    assert part.to_dict() == {
        "id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": upload.id,
    }  # fmt: skip
    done = api.openai.uploads.complete(upload.id, part_ids=[part.id])
    assert done.file
    assert done.file.expires_at == done.file.created_at + 3600
    again = api.openai.uploads.complete(upload.id, part_ids=[part.id])
    assert again == done
    api.openai.files.delete(done.file.id)
    assert api.openai.uploads.complete(upload.id, part_ids=[part.id]).file is None


def test_a_cancelled_upload_takes_nothing_more_and_the_sdk_does_not_try_again(api: Api) -> None:
    upload = begin(api)
    part = api.openai.uploads.parts.create(upload.id, data=WHOLE)
    for _ in range(2):
        assert api.openai.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="Cannot add parts to an upload with status 'cancelled'"):
        api.openai.uploads.parts.create(upload.id, data=WHOLE)
    with pytest.raises(openai.ConflictError, match="Cannot complete an upload with status 'cancelled'") as caught:
        api.openai.uploads.complete(upload.id, part_ids=[part.id])
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert list(api.backend.blobs.list("uploads")) == []


def test_an_unknown_upload_is_404(api: Api) -> None:
    uploads = api.openai.uploads
    for call in (
        lambda: uploads.cancel("upload_none"),
        lambda: uploads.complete("upload_none", part_ids=["part_x"]),
        lambda: uploads.parts.create("upload_none", data=b"x"),
    ):
        with pytest.raises(openai.NotFoundError, match="No such Upload object: upload_none"):
            call()


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"bytes": ...}, "bytes", "missing_required_parameter"),
        ({"filename": ...}, "filename", "missing_required_parameter"),
        ({"purpose": ...}, "purpose", "missing_required_parameter"),
        ({"mime_type": ...}, "mime_type", "missing_required_parameter"),
        ({"bytes": "12"}, "bytes", "invalid_type"),
        ({"bytes": 0}, "bytes", "invalid_value"),
        ({"filename": ""}, "filename", "invalid_value"),
        ({"filename": "\ud800.jsonl"}, "filename", "invalid_value"),
        ({"filename": "in.csv"}, "filename", None),
        ({"purpose": "dinner"}, "purpose", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds", "invalid_value"),
        ({"color": "red"}, "color", "unknown_parameter"),
    ],
)
def test_an_upload_that_is_none_is_refused_by_name(
    api: Api, changes: dict[str, Any], param: str, code: str | None
) -> None:
    good = {"filename": "in.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "application/jsonl"}
    body = {name: value for name, value in (good | changes).items() if value is not ...}
    error = refusal(api, "/v1/uploads", body)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "part_ids", "missing_required_parameter"),
        ({"part_ids": []}, "part_ids", "invalid_value"),
        ({"part_ids": "part_x"}, "part_ids", "invalid_type"),
        ({"part_ids": [5]}, "part_ids[0]", "invalid_type"),
        ({"part_ids": ["part_x"]}, "part_ids[0]", "invalid_value"),
        ({"part_ids": ["\ud800"]}, "part_ids[0]", "invalid_value"),
        ({"part_ids": ["part_x"], "md5": "xyz"}, "md5", "invalid_value"),
        ({"part_ids": ["part_x"], "sha256": "xyz"}, "sha256", "unknown_parameter"),
    ],
)
def test_a_completion_that_is_none_is_refused_by_name(
    api: Api, body: dict[str, Any], param: str, code: str | None
) -> None:
    error = refusal(api, f"/v1/uploads/{begin(api).id}/complete", body)
    assert (error["param"], error["code"]) == (param, code)


def test_bytes_that_do_not_add_up_are_told(api: Api) -> None:
    upload = begin(api, len(WHOLE) + 1)
    part = api.openai.uploads.parts.create(upload.id, data=WHOLE)
    with pytest.raises(openai.BadRequestError) as caught:
        api.openai.uploads.complete(upload.id, part_ids=[part.id])
    assert caught.value.param == "part_ids"
    assert f"{len(WHOLE)} bytes together" in caught.value.message
    assert f"created for {len(WHOLE) + 1}" in caught.value.message


def test_a_part_is_at_most_64_mib_and_may_be_larger_than_other_bodies(serve: ServeApi) -> None:
    api = serve(max_line_bytes=1024)
    upload = begin(api, 2**20, filename="a.bin", purpose="user_data")
    assert api.openai.uploads.parts.create(upload.id, data=b"x" * 2**20).upload_id == upload.id
    with pytest.raises(openai.APIStatusError, match=str(64 * 2**20)) as caught:
        api.openai.uploads.parts.create(upload.id, data=bytes(65 * 2**20))
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (413, "data", "file_too_large")


@pytest.mark.parametrize(
    ("form", "files", "param", "code"),
    [
        ({}, {"": ("", b"")}, "data", "missing_required_parameter"),
        ({"data": "text"}, {"x": ("", b"")}, "data", "invalid_type"),
    ],
)
def test_a_part_without_its_bytes_is_refused_by_name(
    api: Api, form: dict[str, str], files: dict[str, Any], param: str, code: str
) -> None:
    answer = api.http.post(f"/v1/uploads/{begin(api).id}/parts", data=form, files=files)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_an_upload_larger_than_the_setting_is_refused_with_its_name(serve: ServeApi) -> None:
    api = serve(max_upload_bytes=1000)
    with pytest.raises(openai.APIStatusError, match="PRESSRUN_MAX_UPLOAD_BYTES") as caught:
        begin(api, 1001, filename="a.bin", purpose="user_data")
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    with pytest.raises(openai.APIStatusError, match="PRESSRUN_MAX_BATCH_BYTES"):
        begin(serve(max_batch_bytes=1000), 1001)
