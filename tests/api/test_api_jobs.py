"""/v1/jobs: one request, an id at once, an answer to poll for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pressrun.jobs.errors import UserError
from pressrun.jobs.filling import wind_up
from pressrun.jobs.ids import owner_id
from pressrun.jobs.lines import answered, never_ran, refused
from pressrun.jobs.model_cards import KNOWN_S, SERVED
from pressrun.jobs.queue import queue_of, rq_queue
from pressrun.jobs.records import ModelCard, Usage

from .conftest import CHAT, MODEL, Api, ServeApi, seal_results

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
FIELDS = {
    "id", "object", "status", "endpoint", "model", "created_at", "expires_at", "finished_at", "response", "error",
    "pressrun",
}  # fmt: skip


def create(api: Api, priority: int | None = None, **body: Any) -> str:
    options = {} if priority is None else {"pressrun": {"priority": priority}}
    answer = api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY | body} | options)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def poll(api: Api, job_id: str) -> dict[str, Any]:
    answer = api.http.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    assert job.keys() == FIELDS
    return job


def test_a_new_job_is_queued_ahead_of_batches_and_tells_where_to_poll(api: Api) -> None:
    answer = api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert job["id"].startswith("job_")
    assert (job["object"], job["status"], job["endpoint"], job["model"]) == ("job", "queued", CHAT, MODEL)
    assert job["expires_at"] == job["created_at"] + 86400
    assert (job["finished_at"], job["response"], job["error"]) == (None, None, None)
    assert poll(api, job["id"]) == job
    assert rq_queue(api.backend.redis, queue_of("job", MODEL)).get_job_ids() == [f"{job['id']}-0"]


def test_jobs_wait_by_priority_and_then_by_arrival(api: Api) -> None:
    asked = [0, 5, -3, None, 5, 100, -100, 0, 1, -3]
    jobs = [(create(api, priority), priority or 0) for priority in asked]
    in_order = [job for job, _ in sorted(jobs, key=lambda one: -one[1])]
    assert rq_queue(api.backend.redis, queue_of("job", MODEL)).get_job_ids() == [f"{job}-0" for job in in_order]
    assert [poll(api, job)["pressrun"] for job, _ in jobs] == [{"priority": priority} for _, priority in jobs]


def test_the_url_of_a_job_may_be_called_endpoint(api: Api) -> None:
    body = {"model": MODEL, "prompt": "Once"}
    answer = api.http.post("/v1/jobs", json={"endpoint": "/v1/completions", "body": body})
    assert (answer.status_code, answer.json()["endpoint"]) == (202, "/v1/completions")


def test_a_claimed_job_is_in_progress(api: Api) -> None:
    job_id = create(api)
    claim = api.backend.shards.claim(job_id, 0, owner_id(), lease_s=30)
    assert claim is not None
    assert poll(api, job_id)["status"] == "in_progress"
    api.backend.shards.release(claim, count_attempt=False)
    assert poll(api, job_id)["status"] == "queued"


def test_a_completed_job_holds_the_response_of_its_request(api: Api) -> None:
    job_id = create(api)
    seal_results(api.backend, job_id, lambda line: answered(line, {"choices": [], "echo": line.body}, Usage()))
    job = poll(api, job_id)
    assert (job["status"], job["error"]) == ("completed", None)
    assert job["finished_at"] >= job["created_at"]
    assert job["response"]["status_code"] == 200
    assert job["response"]["request_id"].startswith("req_")
    assert job["response"]["body"] == {"choices": [], "echo": BODY}


def test_a_job_whose_request_was_refused_has_failed_with_the_reason(api: Api) -> None:
    job_id = create(api)
    too_long = UserError("Too long.", param="messages", code="context_length_exceeded")
    seal_results(api.backend, job_id, lambda line: refused(line, too_long))
    job = poll(api, job_id)
    assert job["status"] == "failed"
    assert job["response"]["status_code"] == 400
    assert job["response"]["body"]["error"]["message"] == "Too long."
    assert job["error"] == {"code": "context_length_exceeded", "message": "Too long.", "param": "messages"}


def test_a_job_whose_workers_were_all_lost_has_failed_without_a_response(api: Api) -> None:
    job_id = create(api)
    seal_results(api.backend, job_id, lambda line: never_ran(line, "worker_lost"))
    job = poll(api, job_id)
    assert (job["status"], job["response"], job["error"]["code"]) == ("failed", None, "worker_lost")


def test_a_cancelled_job_is_cancelled_at_once_and_stays_so(api: Api) -> None:
    job_id = create(api)
    deleted = api.http.delete(f"/v1/jobs/{job_id}")
    assert (deleted.status_code, deleted.json()["status"]) == (200, "cancelled")
    wind_up(api.backend, job_id)
    job = poll(api, job_id)
    assert (job["status"], job["response"], job["error"]["code"]) == ("cancelled", None, "job_cancelled")
    assert job["finished_at"]
    assert api.http.delete(f"/v1/jobs/{job_id}").status_code == 200


def test_an_expired_job_says_so(api: Api) -> None:
    job_id = create(api)
    api.backend.store.move(job_id, "finalizing", closing="expired")
    wind_up(api.backend, job_id)
    job = poll(api, job_id)
    assert (job["status"], job["response"], job["error"]["code"]) == ("expired", None, "job_expired")


def test_a_finished_job_cannot_be_cancelled(api: Api) -> None:
    job_id = create(api)
    seal_results(api.backend, job_id, lambda line: answered(line, {}, Usage()))
    answer = api.http.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == "Cannot cancel a job with status 'completed'."


def test_a_job_that_is_not_there_is_404(api: Api) -> None:
    for call in (api.http.get, api.http.delete):
        answer = call("/v1/jobs/job_none")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "No job found with id 'job_none'."


def test_a_job_of_a_model_that_nobody_has_served_for_a_day_is_404(api: Api) -> None:
    answer = api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY | {"model": "gone"}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    api.backend.store.forget_model("w")
    assert api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY}).status_code == 202  # It waits for a worker.
    api.backend.redis.hset(SERVED, MODEL, int(time.time() - KNOWN_S - 1))
    assert api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY}).status_code == 404
    api.backend.store.touch_model(ModelCard(id=MODEL, max_model_len=8, created=1, worker="w2"))
    assert api.http.post("/v1/jobs", json={"url": CHAT, "body": BODY}).status_code == 202


@pytest.mark.parametrize(
    ("request_body", "param", "code"),
    [
        ({"body": BODY}, "url", "missing_required_parameter"),
        ({"url": CHAT}, "body", "missing_required_parameter"),
        ({"url": "/v1/moderations", "body": BODY}, "url", "invalid_value"),
        ({"url": 7, "body": BODY}, "url", "invalid_type"),
        ({"url": CHAT, "body": BODY, "priority": 1}, "priority", "unknown_parameter"),
        ({"url": CHAT, "body": BODY, "pressrun": {"priority": 101}}, "pressrun.priority", "invalid_value"),
        ({"url": CHAT, "body": BODY, "pressrun": {"priority": "5"}}, "pressrun.priority", "invalid_type"),
        ({"url": CHAT, "body": BODY, "pressrun": {"speed": 5}}, "pressrun.speed", "unknown_parameter"),
        ({"url": CHAT, "body": "hi"}, "body", "invalid_type"),
        ({"url": CHAT, "body": [BODY]}, "body", "invalid_type"),
        ({"url": CHAT, "body": {"model": MODEL}}, "messages", "missing_required_parameter"),
        ({"url": CHAT, "body": BODY | {"colour": "red"}}, "colour", "unknown_parameter"),
        ({"url": CHAT, "body": BODY | {"temperature": "hot"}}, "temperature", "invalid_type"),
        ({"url": CHAT, "body": BODY | {"temperature": 3}}, "temperature", "invalid_value"),
        ({"url": CHAT, "body": BODY | {"stream": True}}, "stream", "streaming_unsupported"),
        ({"url": CHAT, "body": BODY | {"audio": {}}}, "audio", "unsupported_parameter"),
        (
            {"url": CHAT, "body": BODY | {"messages": [{"role": "user"}]}},
            "messages[0].content",
            "missing_required_parameter",
        ),
    ],
)
def test_a_request_that_cannot_run_is_refused_at_once(
    api: Api, request_body: dict[str, Any], param: str, code: str
) -> None:
    answer = api.http.post("/v1/jobs", json=request_body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["code"] == code
    assert api.backend.store.active("job") == []


def test_a_request_that_is_too_long_as_a_line_of_json_is_413(serve: ServeApi) -> None:
    api = serve(max_line_bytes=2**20)
    body = BODY | {"messages": [{"role": "user", "content": "\N{PRINTER}" * 2**17}]}
    answer = api.http.post("/v1/jobs", json={"url": CHAT, "body": body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
