"""Whatever is sent to any route, no answer is a 500 and none differs from what `/openapi.json` promises."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pressrun.api.app import create_app
from pressrun.api.waiting import Waiting
from pressrun.jobs.frontier import Place
from pressrun.jobs.settings import load_settings

from .conftest import CHAT, Api, jsonl, request_line

NUM_EXAMPLES = int(os.environ.get("PRESSRUN_TEST_EXAMPLES", "20"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = create_app(load_settings({}, redis_url="redis://127.0.0.1:1/0")).openapi()["paths"]
OPERATIONS = [(path, method) for path, methods in PATHS.items() for method in methods]


def takes_values(path: str, method: str) -> bool:
    """Whether anything but an id can be wrong with a request."""
    operation = PATHS[path][method]
    return "requestBody" in operation or any(one["in"] == "query" for one in operation.get("parameters", ()))


CASES = [(path, method, GenerationMode.POSITIVE) for path, method in OPERATIONS]
CASES += [(path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if takes_values(path, method)]


@pytest.fixture(autouse=True)
def nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Waiting.wait

    async def wait_a_moment(self: Waiting, missing: Place, timeout_s: float) -> bool:
        return await wait(self, missing, min(timeout_s, 0.01))

    monkeypatch.setattr(Waiting, "wait", wait_a_moment)


@pytest.fixture
def known(api: Api) -> dict[str, str]:
    """The id of one object of each kind."""
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    upload = api.openai.uploads.create(bytes=10, filename="a.txt", mime_type="text/plain", purpose="user_data")
    batch = api.openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    job = api.http.post("/v1/jobs", json={"url": CHAT, "body": request_line("a")["body"]}).json()
    hook = api.openai.webhooks.create(name="n", url="https://nowhere.invalid/", event_types=["batch.failed"])
    ids = {"file_id": file.id, "upload_id": upload.id, "batch_id": batch.id, "job_id": job["id"]}
    return ids | {"endpoint_id": hook.id, "model_id": api.openai.models.list().data[0].id}


@pytest.mark.parametrize(("path", "method", "mode"), CASES, ids=[f"{m} {p} {mode.value}" for p, m, mode in CASES])
def test_every_answer_is_as_promised(
    api: Api, known: dict[str, str], path: str, method: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_url(f"{api.url}/openapi.json")[path][method.upper()]

    # What a form says is text, whatever it was before.
    is_typed = "multipart/form-data" not in PATHS[path][method].get("requestBody", {}).get("content", {})

    @given(case=operation.as_strategy(generation_mode=mode), of_a_known_object=st.booleans())
    @settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def answers(case: schemathesis.Case, of_a_known_object: bool) -> None:
        if of_a_known_object:
            parameters: Any = case.path_parameters
            parameters.update({name: known[name] for name in parameters.keys() & known.keys()})
        case.call_and_validate(checks=[*CHECKS, negative_data_rejection] if is_typed else CHECKS)

    answers()
