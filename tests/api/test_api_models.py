"""/v1/models, /health and the documentation that the app makes of itself."""

from __future__ import annotations

import time
from dataclasses import replace

import openai
import pytest

import pressrun
from pressrun.jobs.generation import NEUTRAL, Defaults
from pressrun.jobs.records import ModelCard

from .conftest import CHAT, MODEL, Api, jsonl, request_line


def test_models_of_live_workers_are_listed_once_each(api: Api) -> None:
    for worker in ("w2", "w3"):
        api.backend.store.touch_model(ModelCard(id="other", max_model_len=64, created=5, worker=worker))
    models = {model.id: model for model in api.openai.models.list()}
    assert models.keys() == {MODEL, "other"}
    assert models["other"].to_dict() == {
        "id": "other", "object": "model", "created": 5, "owned_by": "pressrun", "max_model_len": 64,
        "pressrun": {"default_sampling": None},
    }  # fmt: skip
    api.backend.store.forget_model("w2")
    api.backend.store.forget_model("w3")
    assert [model.id for model in api.openai.models.list()] == [MODEL]


def test_a_model_tells_what_holds_where_requests_say_nothing(api: Api) -> None:
    sampling = Defaults(sampling={**NEUTRAL, "temperature": 0.6, "top_k": 20}, max_tokens=100, most_tokens=200).shown()
    card = ModelCard(id="own", max_model_len=64, created=5, worker="w2", default_sampling=sampling)
    api.backend.store.touch_model(card)
    assert api.http.get("/v1/models/own").json()["pressrun"] == {
        "default_sampling": {
            "temperature": 0.6, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0,
            "max_tokens": 100, "max_tokens_limit": 200,
        },
    }  # fmt: skip
    of_a_later_version = replace(card, default_sampling=sampling | {"presence_penalty": 1})
    api.backend.store.touch_model(of_a_later_version)
    assert api.openai.models.retrieve("own").id == "own"


def test_a_model_with_a_slash_in_its_name_is_found(api: Api) -> None:
    assert "/" in MODEL
    assert api.openai.models.retrieve(MODEL).id == MODEL
    assert api.http.get(f"/v1/models/{MODEL}").json()["max_model_len"] == 512


def test_a_model_that_nobody_serves_is_404(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.openai.models.retrieve("nobody/this")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_health_names_the_models_and_counts_what_is_not_done(api: Api) -> None:
    assert api.http.get("/health").json() == {
        "status": "ok", "version": pressrun.__version__, "redis": "ok", "models": [MODEL], "active": 0,
    }  # fmt: skip
    file = api.openai.files.create(file=("in.jsonl", jsonl(request_line("a"))), purpose="batch")
    api.openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert api.http.get("/health").json()["active"] == 1


def test_health_is_quick(api: Api) -> None:
    started = time.monotonic()
    for _ in range(20):
        assert api.http.get("/health").status_code == 200
    assert time.monotonic() - started < 2


def test_the_openapi_document_describes_every_route_and_its_errors(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert described == {
        ("get", "/health"),
        ("get", "/metrics"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/responses"),
        ("post", "/tokenize"),
        ("post", "/detokenize"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model_id}"),
        ("post", "/v1/files"),
        ("get", "/v1/files"),
        ("get", "/v1/files/{file_id}"),
        ("delete", "/v1/files/{file_id}"),
        ("get", "/v1/files/{file_id}/content"),
        ("post", "/v1/uploads"),
        ("post", "/v1/uploads/{upload_id}/parts"),
        ("post", "/v1/uploads/{upload_id}/complete"),
        ("post", "/v1/uploads/{upload_id}/cancel"),
        ("post", "/v1/webhook_endpoints"),
        ("get", "/v1/webhook_endpoints"),
        ("get", "/v1/webhook_endpoints/{endpoint_id}"),
        ("post", "/v1/webhook_endpoints/{endpoint_id}"),
        ("delete", "/v1/webhook_endpoints/{endpoint_id}"),
        ("post", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret"),
        ("post", "/v1/webhook_endpoints/{endpoint_id}/test"),
        ("get", "/v1/webhook_endpoints/{endpoint_id}/deliveries"),
        ("get", "/v1/webhook_event_types"),
        ("post", "/v1/batches"),
        ("get", "/v1/batches"),
        ("get", "/v1/batches/{batch_id}"),
        ("get", "/v1/batches/{batch_id}/results"),
        ("post", "/v1/batches/{batch_id}/cancel"),
        ("post", "/v1/batches/{batch_id}/pause"),
        ("post", "/v1/batches/{batch_id}/resume"),
        ("post", "/v1/batches/{batch_id}/update"),
        ("post", "/v1/batches/{batch_id}/retry"),
        ("post", "/v1/jobs"),
        ("get", "/v1/jobs/{job_id}"),
        ("delete", "/v1/jobs/{job_id}"),
    }
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["description"]
            assert {"4XX", "5XX"} <= operation["responses"].keys()
            assert "422" not in operation["responses"]
    form = document["components"]["schemas"]["Upload"]["properties"]
    assert form.keys() == {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_documentation_page_is_there(api: Api) -> None:
    assert "/openapi.json" in api.http.get("/docs").text
