"""/v1/batches through the real SDK. No worker runs here: what one would write is written by hand."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.blobs.s3 import S3Blobs
from pressrun.jobs.errors import UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.lines import answered, refused
from pressrun.jobs.records import Line, LineResult, Usage
from pressrun.jobs.redis_keys import batch_key

from .conftest import CHAT, MODEL, Api, ServeApi, jsonl, request_line, seal_results

FIELDS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata", "pressrun",
}  # fmt: skip


def upload(api: Api, *lines: dict[str, Any], purpose: Any = "batch") -> str:
    return api.openai.files.create(file=("in.jsonl", jsonl(*lines)), purpose=purpose).id


def create(api: Api, *lines: dict[str, Any], window: Any = "24h", **more: Any) -> Batch:
    """A batch of these lines, or of one good line."""
    file_id = upload(api, *(lines or [request_line("a")]))
    return api.openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window=window, **more)


def refusal(api: Api, **changes: Any) -> dict[str, Any]:
    """The error of a creation that differs from a good one by `changes`; `...` takes a field out."""
    good = {"input_file_id": upload(api, request_line("a")), "endpoint": CHAT, "completion_window": "24h"}
    body = {name: value for name, value in (good | changes).items() if value is not ...}
    # Not `json=`: httpx refuses to send what a client written in another language may send.
    answer = api.http.post("/v1/batches", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert api.openai.batches.list().data == []
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def one_fails(line: Line) -> LineResult:
    """What comes of a line: `b` is refused, the others are answered."""
    if line.custom_id == "b":
        return refused(line, UserError("No.", param="n", code="invalid_value"))
    return answered(line, {"id": line.custom_id}, Usage(input_tokens=10, cached_tokens=4, output_tokens=3))


def test_a_new_batch_is_validating_and_has_every_field(api: Api) -> None:
    batch = create(api, metadata={"night": "run 7"})
    body = api.http.get(f"/v1/batches/{batch.id}").json()
    assert body.keys() == FIELDS
    assert body["id"].startswith("batch_")
    assert (body["object"], body["status"], body["endpoint"]) == ("batch", "validating", CHAT)
    assert body["expires_at"] == body["created_at"] + 86400
    assert body["metadata"] == {"night": "run 7"}
    assert body["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert body["usage"] == {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    unset = FIELDS - {
        "id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at", "expires_at",
        "metadata", "request_counts", "usage", "pressrun",
    }  # fmt: skip
    assert {name for name in FIELDS if body[name] is None} == unset
    again = api.openai.batches.retrieve(batch.id)
    assert again.to_dict().keys() == batch.to_dict().keys()
    # What it says of the time it has waited goes on.
    told, before = ({name: x for name, x in one.to_dict().items() if name != "pressrun"} for one in (again, batch))
    assert told == before


def test_a_finished_batch_shows_its_files_counts_and_tokens(api: Api) -> None:
    batch = create(api, request_line("a"), request_line("b"), request_line("c"))
    validate_batch(api.backend, batch.id)
    running = api.openai.batches.retrieve(batch.id)
    assert running.status == "in_progress"
    assert running.in_progress_at
    assert running.request_counts
    assert running.request_counts.total == 3
    seal_results(api.backend, batch.id, one_fails)
    done = api.openai.batches.retrieve(batch.id)
    assert (done.status, done.model) == ("completed", MODEL)
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert done.usage
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (20, 6, 26)
    assert done.usage.input_tokens_details.cached_tokens == 8
    assert done.finalizing_at
    assert done.completed_at
    assert done.output_file_id
    assert done.error_file_id
    assert api.openai.files.content(done.output_file_id).text.count("\n") == 2
    assert '"code":"invalid_value"' in api.openai.files.content(done.error_file_id).text
    assert api.openai.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_a_batch_with_bad_lines_fails_and_lists_them_all(api: Api) -> None:
    batch = create(api, request_line("a", stream=True), request_line("b", model="none"), request_line("a"))
    validate_batch(api.backend, batch.id)
    failed = api.openai.batches.retrieve(batch.id)
    assert (failed.status, failed.output_file_id, failed.error_file_id) == ("failed", None, None)
    assert failed.failed_at
    assert failed.errors
    assert failed.errors.object == "list"
    assert failed.errors.data
    assert [(error.line, error.code, error.param) for error in failed.errors.data] == [
        (1, "streaming_unsupported", "body.stream"),
        (2, "model_not_found", "body.model"),
        (3, "duplicate_custom_id", "custom_id"),
    ]
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'failed'"):
        api.openai.batches.cancel(batch.id)


def test_a_cancelled_batch_is_cancelling_then_cancelled_and_may_be_cancelled_again(api: Api) -> None:
    batch = create(api)
    validate_batch(api.backend, batch.id)
    assert api.openai.batches.cancel(batch.id).status == "cancelling"
    wind_up(api.backend, batch.id)
    cancelled = api.openai.batches.cancel(batch.id)
    assert cancelled.status == "cancelled"
    assert cancelled.cancelling_at
    assert cancelled.cancelled_at
    assert cancelled.error_file_id
    assert "batch_cancelled" in api.openai.files.content(cancelled.error_file_id).text


def test_cancelling_a_completed_batch_conflicts_and_is_not_tried_again(api: Api) -> None:
    batch = create(api)
    validate_batch(api.backend, batch.id)
    seal_results(api.backend, batch.id, lambda line: answered(line, {}, Usage()))
    with pytest.raises(openai.ConflictError) as caught:
        api.openai.with_options(max_retries=2).batches.cancel(batch.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.json()["error"] == {
        "message": "Cannot cancel a batch with status 'completed'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_cancelling_an_expired_batch_conflicts(api: Api) -> None:
    batch = create(api)
    api.backend.store.move(batch.id, "finalizing", closing="expired")
    wind_up(api.backend, batch.id)
    expired = api.openai.batches.retrieve(batch.id)
    assert (expired.status, expired.output_file_id) == ("expired", None)
    assert expired.expired_at
    assert expired.request_counts
    assert expired.request_counts.to_dict() == {"total": 1, "completed": 0, "failed": 0}
    (line,) = api.openai.files.content(str(expired.error_file_id)).text.splitlines()
    assert json.loads(line)["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'expired'"):
        api.openai.batches.cancel(batch.id)


def test_pages_of_batches_end_where_the_batches_end(api: Api) -> None:
    ids = [create(api).id for _ in range(4)][::-1]

    def page(**query: Any) -> tuple[list[str], bool, str | None, str | None]:
        body = api.http.get("/v1/batches", params=query).json()
        return [batch["id"] for batch in body["data"]], body["has_more"], body["first_id"], body["last_id"]

    assert page(limit=4) == (ids, False, ids[0], ids[3])
    assert page(limit=3) == (ids[:3], True, ids[0], ids[2])
    assert page(limit=100, after=ids[1]) == (ids[2:], False, ids[2], ids[3])
    assert page(after=ids[3]) == ([], False, None, None)
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.batches.list(after="batch_none")
    assert caught.value.param == "after"


def test_a_batch_that_is_not_there_is_404(api: Api) -> None:
    job = api.http.post("/v1/jobs", json={"url": CHAT, "body": request_line("a")["body"]}).json()
    for batch_id in ("batch_none", job["id"]):
        for call in (api.openai.batches.retrieve, api.openai.batches.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                call(batch_id)
            assert caught.value.body == {
                "message": f"No batch found with id '{batch_id}'.",
                "type": "invalid_request_error",
                "param": "id",
                "code": None,
            }


def test_the_sdk_pages_through_all_batches_newest_first(api: Api) -> None:
    file_id = upload(api, request_line("a"))
    make = api.openai.batches.create
    ids = [make(input_file_id=file_id, endpoint=CHAT, completion_window="24h").id for _ in range(7)]
    assert [batch.id for batch in api.openai.batches.list(limit=2)] == ids[::-1]

    async def listed() -> list[str]:
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as sdk:
            return [batch.id async for batch in sdk.batches.list(limit=3)]

    assert asyncio.run(listed()) == ids[::-1]
    page = api.http.get("/v1/batches", params={"limit": 2, "after": ids[5]}).json()
    assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    assert [batch["id"] for batch in page["data"]] == [page["first_id"], page["last_id"]] == [ids[4], ids[3]]
    assert page["has_more"] is True


def test_jobs_are_not_listed_among_batches(api: Api) -> None:
    assert api.http.post("/v1/jobs", json={"url": CHAT, "body": request_line("a")["body"]}).status_code == 202
    assert api.openai.batches.list().data == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"status": "completed"}])
def test_a_bad_query_is_refused_by_name(api: Api, query: dict[str, Any]) -> None:
    answer = api.http.get("/v1/batches", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


def test_an_unsupported_endpoint_is_refused_with_the_supported_ones(api: Api) -> None:
    error = refusal(api, endpoint="/v1/moderations")
    assert (error["param"], error["code"]) == ("endpoint", "invalid_value")
    assert error["message"] == (
        "Invalid value: '/v1/moderations'. Supported values are: '/v1/chat/completions', '/v1/completions', "
        "'/v1/embeddings', '/v1/responses'."
    )


@pytest.mark.parametrize("window", ["24", "30s", "31d", "a day", "", "-1h", "1h 30m"])
def test_a_window_that_is_no_duration_in_range_is_refused(api: Api, window: str) -> None:
    assert refusal(api, completion_window=window)["param"] == "completion_window"


@pytest.mark.parametrize(("window", "seconds"), [("1m", 60), ("1h30m", 5400), ("7d", 604800), ("720h", 2592000)])
def test_any_window_from_a_minute_to_a_month_is_taken(api: Api, window: str, seconds: int) -> None:
    batch = create(api, window=window)
    assert batch.completion_window == window
    assert batch.expires_at == batch.created_at + seconds


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
def test_a_missing_parameter_is_named(api: Api, name: str) -> None:
    error = refusal(api, **{name: ...})
    assert error == {
        "message": f"Missing required parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "missing_required_parameter",
    }


@pytest.mark.parametrize(
    ("value", "got"), [(7, "an integer"), (None, "null"), (["x"], "an array"), ({}, "an object"), (True, "a boolean")]
)
def test_a_parameter_of_the_wrong_type_is_named(api: Api, value: object, got: str) -> None:
    for name in ("input_file_id", "endpoint", "completion_window"):
        error = refusal(api, **{name: value})
        assert (error["param"], error["code"]) == (name, "invalid_type")
        assert error["message"] == f"Invalid type for '{name}': expected a string, but got {got} instead."


def test_an_unknown_parameter_is_named(api: Api) -> None:
    error = refusal(api, priority="high")
    assert (error["message"], error["param"]) == ("Unknown parameter: 'priority'.", "priority")
    assert error["code"] == "unknown_parameter"


@pytest.mark.parametrize("seconds", [3600, 2592000])
def test_result_files_expire_as_long_after_their_own_creation_as_was_asked(api: Api, seconds: int) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": seconds}
    batch = create(api, request_line("a"), request_line("b"), output_expires_after=expiry)
    # As if it had been created a day ago: the anchor is the file's creation.
    api.backend.redis.hset(batch_key(batch.id), "created_at", batch.created_at - 86400)
    validate_batch(api.backend, batch.id)
    seal_results(api.backend, batch.id, one_fails)
    done = api.openai.batches.retrieve(batch.id)
    for file_id in (done.output_file_id, done.error_file_id):
        file = api.openai.files.retrieve(str(file_id))
        assert abs(file.created_at - time.time()) < 60
        assert file.expires_at == file.created_at + seconds


def test_result_files_are_kept_until_deleted_unless_asked_otherwise(api: Api) -> None:
    batch = create(api, output_expires_after=None)
    validate_batch(api.backend, batch.id)
    seal_results(api.backend, batch.id, lambda line: answered(line, {}, Usage()))
    done = api.openai.batches.retrieve(batch.id)
    assert api.openai.files.retrieve(str(done.output_file_id)).expires_at is None


@pytest.mark.parametrize(
    ("expiry", "param", "code"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "output_expires_after.seconds", "invalid_value"),
        ({"anchor": "created_at", "seconds": 2592001}, "output_expires_after.seconds", "invalid_value"),
        ({"anchor": "created_at", "seconds": "3600"}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": True}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": 3600.5}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": None}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at"}, "output_expires_after.seconds", "missing_required_parameter"),
        ({"seconds": 3600}, "output_expires_after.anchor", "missing_required_parameter"),
        ({"anchor": "completed_at", "seconds": 3600}, "output_expires_after.anchor", "invalid_value"),
        ({"anchor": "created_at", "seconds": 3600, "days": 1}, "output_expires_after.days", "unknown_parameter"),
        (3600, "output_expires_after", "invalid_type"),
        (["created_at", 3600], "output_expires_after", "invalid_type"),
    ],
)
def test_a_bad_output_expiry_is_refused_by_name(api: Api, expiry: object, param: str, code: str) -> None:
    error = refusal(api, output_expires_after=expiry)
    assert (error["param"], error["code"]) == (param, code)


def test_places_in_s3_are_refused_unless_they_are_set(api: Api) -> None:
    error = refusal(api, input_file_id="s3://bucket/in.jsonl")
    assert (error["param"], error["code"]) == ("input_file_id", "s3_not_allowed")
    error = refusal(api, pressrun={"output_prefix": "s3://bucket/out/"})
    assert (error["param"], error["code"]) == ("pressrun.output_prefix", "s3_not_allowed")
    assert refusal(api, pressrun={"output": "s3://bucket/out/"})["param"] == "pressrun.output"


def test_a_batch_of_an_object_in_s3_says_where_it_comes_from_and_goes(serve: ServeApi, s3_url: str) -> None:
    api = serve(s3_inputs="pressrun/in", s3_outputs="pressrun/out")
    S3Blobs("pressrun").put("in/a.jsonl", [jsonl(request_line("a"))])
    batch = api.openai.batches.create(
        input_file_id=f"{s3_url}/in/a.jsonl",
        endpoint=CHAT,
        completion_window="24h",
        extra_body={"pressrun": {"output_prefix": f"{s3_url}/out/"}},
    )
    extension = {"input_url": f"{s3_url}/in/a.jsonl", "output_prefix": f"{s3_url}/out/", "delivery_error": None}
    told: Any = batch.model_extra
    assert told["pressrun"].items() >= extension.items()
    validate_batch(api.backend, batch.id)
    assert api.openai.files.content(batch.input_file_id).content == jsonl(request_line("a"))


def test_an_unknown_input_file_is_404(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    assert "file-none" in caught.value.message


def test_a_file_for_another_purpose_is_refused(api: Api) -> None:
    file_id = upload(api, request_line("a"), purpose="user_data")
    assert refusal(api, input_file_id=file_id)["param"] == "input_file_id"


def test_a_file_too_large_for_a_batch_is_refused(serve: ServeApi) -> None:
    api = serve(max_batch_bytes=100)
    error = refusal(api)
    assert (error["param"], error["code"]) == ("input_file_id", "file_too_large")


def test_metadata_of_sixteen_pairs_of_full_length_comes_back(api: Api) -> None:
    full = {f"{n:064}": "ü" * 512 for n in range(16)}
    assert create(api, metadata=full).metadata == full
    assert create(api, metadata={}).metadata == {}
    assert create(api, metadata=None).metadata is None


@pytest.mark.parametrize(
    ("value", "got"),
    [(["x"], "an array"), (7, "an integer"), (None, "null"), ({"a": "b"}, "an object"), (1.5, "a number")],
)
def test_metadata_that_is_no_string_is_named(api: Api, value: object, got: str) -> None:
    error = refusal(api, metadata={"ok": "yes", "tags": value})
    assert error["param"] == "metadata.tags"
    assert error["code"] == "invalid_type"
    assert error["message"] == f"Invalid type for 'metadata.tags': expected a string, but got {got} instead."


@pytest.mark.parametrize(
    ("metadata", "param", "code"),
    [
        ({str(n): "x" for n in range(17)}, "metadata", "object_above_max_properties"),
        ({"my key": "x" * 513}, "metadata.my key", "string_above_max_length"),
        ({"k" * 65: "x"}, "metadata." + "k" * 65, "invalid_value"),
        ({"k": "\ud800"}, "metadata", "invalid_value"),
        (["x"], "metadata", "invalid_type"),
        ("x", "metadata", "invalid_type"),
    ],
)
def test_metadata_outside_its_bounds_is_refused(api: Api, metadata: object, param: str, code: str) -> None:
    error = refusal(api, metadata=metadata)
    assert (error["param"], error["code"]) == (param, code)


def test_a_batch_says_more_of_itself_than_openais(api: Api) -> None:
    batch = create(api, request_line("a"), request_line("b"), extra_body={"pressrun": {"priority": 5, "strict": True}})
    validate_batch(api.backend, batch.id)
    told = api.http.get(f"/v1/batches/{batch.id}").json()["pressrun"]
    assert told.keys() == {
        "priority", "strict", "paused", "queue_place", "eta", "feasible", "counts", "commonest_errors",
        "estimated_tokens", "cached_tokens", "tokens_per_second", "seconds", "input_url", "output_prefix",
        "delivery_error",
    }  # fmt: skip
    assert (told["priority"], told["strict"], told["paused"]) == (5, True, False)
    assert told["counts"] == {
        "queued": 2, "running": 0, "succeeded": 0, "errored": 0, "cancelled": 0, "expired": 0
    }  # fmt: skip
    assert told["estimated_tokens"] > 0
    assert told["seconds"].keys() == {"validating", "queued", "running", "finalizing"}
    seal_results(
        api.backend,
        batch.id,
        lambda line: refused(line, UserError("Not so.", param="n", code="invalid_value")),
    )
    (listed,) = api.openai.batches.list().data
    done: Any = listed.model_extra
    assert done["pressrun"]["counts"]["errored"] == 2
    assert done["pressrun"]["commonest_errors"] == [
        {"code": "invalid_value", "param": "n", "message": "Not so.", "count": 2}
    ]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"priority": 101}, "pressrun.priority"),
        ({"priority": "5"}, "pressrun.priority"),
        ({"priority": 1.5}, "pressrun.priority"),
        ({"strict": 1}, "pressrun.strict"),
        ({"haste": True}, "pressrun.haste"),
        ([], "pressrun"),
        (None, "pressrun"),
    ],
)
def test_a_bad_option_is_refused_by_name(api: Api, options: Any, param: str) -> None:
    assert refusal(api, pressrun=options)["param"] == param


def test_a_batch_is_paused_resumed_and_changed(api: Api) -> None:
    batch = create(api)
    validate_batch(api.backend, batch.id)
    for action, paused in (("pause", True), ("resume", False)):
        answer = api.http.post(f"/v1/batches/{batch.id}/{action}")
        assert (answer.status_code, answer.json()["pressrun"]["paused"]) == (200, paused)
    answer = api.http.post(f"/v1/batches/{batch.id}/update", json={"priority": 7, "completion_window": "3d"})
    assert answer.json()["pressrun"]["priority"] == 7
    assert answer.json()["expires_at"] == batch.created_at + 3 * 86400
    assert api.http.post("/v1/batches/batch_none/pause").status_code == 404
    api.openai.batches.cancel(batch.id)
    assert api.http.post(f"/v1/batches/{batch.id}/pause").status_code == 409


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({}, None),
        ({"priority": 1000}, "priority"),
        ({"priority": True}, "priority"),
        ({"completion_window": 5}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": "1m"}, "completion_window"),
        ({"metadata": {}}, "metadata"),
    ],
)
def test_a_bad_change_is_refused_by_name(api: Api, changes: Any, param: str | None) -> None:
    batch = create(api)
    answer = api.http.post(f"/v1/batches/{batch.id}/update", json=changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_failed_lines_of_a_batch_are_retried(api: Api) -> None:
    batch = create(api, request_line("a"), request_line("b"))
    validate_batch(api.backend, batch.id)
    busy = api.http.post(f"/v1/batches/{batch.id}/retry", json={"lines": "failed"})
    assert (busy.status_code, busy.json()["error"]["message"]) == (
        409,
        "Cannot retry a batch with status 'in_progress'.",
    )
    seal_results(
        api.backend,
        batch.id,
        lambda line: refused(line, UserError("No.")) if line.custom_id == "b" else answered(line, {}, Usage()),
    )
    for lines in (None, "all", [], ["c"], [1]):
        answer = api.http.post(f"/v1/batches/{batch.id}/retry", json={"lines": lines})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"].startswith("lines")
    answer = api.http.post(f"/v1/batches/{batch.id}/retry", json={"lines": "failed"})
    assert (answer.status_code, answer.json()["status"]) == (200, "validating")
    validate_batch(api.backend, batch.id)
    seal_results(api.backend, batch.id, lambda line: answered(line, {}, Usage()))
    done = api.openai.batches.retrieve(batch.id)
    assert (done.status, done.error_file_id) == ("completed", None)
    assert done.output_file_id
    assert api.openai.files.content(done.output_file_id).text.count("\n") == 2
