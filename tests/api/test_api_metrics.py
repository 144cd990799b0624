"""/metrics, read as Prometheus reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from pressrun.jobs import metrics
from pressrun.jobs.settings import load_settings

from .conftest import MODEL, Api, ServeApi, jsonl, request_line, served


def scrape(http: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels. Each family is there once."""
    response = http.get("/metrics")
    assert response.status_code == 200
    families = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def worker_registry(amount: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("vllm:prompt_tokens", "Tokens.", registry=registry).inc(amount)
    Histogram("vllm:e2e_request_latency_seconds", "Time.", registry=registry, buckets=(1.0, 2.0)).observe(1.5)
    return registry


def test_what_workers_count_is_shown_with_their_names_and_models(serve: ServeApi) -> None:
    api = serve()
    metrics.publish(api.backend.store, "w", worker_registry(5))
    metrics.publish(api.backend.store, "dead", worker_registry(7))  # It has no model card any more.
    found = scrape(api.http)
    labels = {"model_name": MODEL, "engine": "0", "worker": "w"}
    assert found[key("vllm:prompt_tokens_total", **labels)] == 5
    assert found[key("vllm:e2e_request_latency_seconds_bucket", le="2.0", **labels)] == 1
    assert found[key("vllm:e2e_request_latency_seconds_sum", **labels)] == 1.5
    assert not [name for name, _ in found if name.endswith("_created")]
    assert "dead" not in {dict(pairs).get("worker") for _, pairs in found}


def test_requests_are_counted_by_the_template_of_their_route(serve: ServeApi) -> None:
    api = serve()
    for name in ("file-1", "file-2"):
        assert api.http.get(f"/v1/files/{name}").status_code == 404
    assert api.http.get("/nowhere/at/all").status_code == 404
    assert api.http.request("PURGE", "/v1/files").status_code == 405
    found = scrape(api.http)
    template = "/v1/files/{file_id}"
    assert found[key("pressrun:http_requests_total", method="GET", route=template, status="404")] == 2
    assert found[key("pressrun:http_requests_total", method="GET", route="none", status="404")] == 1
    assert found[key("pressrun:http_requests_total", method="other", route="/v1/files", status="405")] == 1
    assert found[key("pressrun:http_request_duration_seconds_count", method="GET", route=template)] == 2
    assert found[key("process_start_time_seconds")] > 0


def test_a_request_that_stays_outside_the_door_counts_for_its_route_too(serve: ServeApi) -> None:
    api = serve(auth="required")
    assert api.http.get("/v1/batches/batch_1").status_code == 401
    found = scrape(api.http)  # Without a key.
    label = {"method": "GET", "route": "/v1/batches/{batch_id}", "status": "401"}
    assert found[key("pressrun:http_requests_total", **label)] == 1


def test_no_tenant_is_named(serve: ServeApi) -> None:
    api = serve(auth="required")
    secret, _ = api.backend.keys.create(tenant="secretive")
    headers = {"Authorization": f"Bearer {secret}"}
    content: Any = {"file": ("in.jsonl", jsonl(request_line("a")))}
    file = api.http.post("/v1/files", headers=headers, data={"purpose": "batch"}, files=content).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = api.http.post("/v1/batches", headers=headers, json=body).json()
    text = api.http.get("/metrics").text
    assert re.search(r'^pressrun:batches\{status="validating"\} 1.0$', text, re.MULTILINE)
    assert "secretive" not in text
    assert file["id"] not in text
    assert batch["id"] not in text


def test_without_redis_the_server_still_tells_of_its_own_requests(tmp_path: Path, redis: Redis) -> None:
    settings = load_settings({}, data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", auth="off")
    with served(settings) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health").status_code == 503
        found = scrape(http)
    assert found[key("pressrun:redis_up")] == 0
    assert found[key("pressrun:http_requests_total", method="GET", route="/health", status="503")] == 1


def test_who_scrapes_may_ask_without_a_key_and_the_answer_says_what_it_is(api: Api) -> None:
    response = api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert scrape(api.http)[key("pressrun:redis_up")] == 1
