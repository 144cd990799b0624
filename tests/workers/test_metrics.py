"""What workers count, from the engine's outputs to Redis."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric

from pressrun.engine.request import Lifetime, Load, Output
from pressrun.jobs import metrics
from pressrun.jobs.backend import Backend
from pressrun.workers.engine_metrics import EngineMetrics
from pressrun.workers.metrics import WorkerMetrics

LOAD = Load(
    num_rows=8,
    num_running=3,
    num_waiting=2,
    num_free_pages=25,
    num_pages=100,
    page_size=16,
    num_preemptions=1,
    num_prompt_tokens=1000,
    num_cached_tokens=400,
    num_generated_tokens=50,
)
LIFE = Lifetime(
    arrived_at=10.0, admitted_at=11.0, first_token_at=11.5, ended_at=13.5, num_prompt_tokens=7, num_generated_tokens=5
)


def ended(reason: Any, life: Lifetime | None = LIFE) -> Output:
    return Output(id="a", token_ids=[1], finish_reason=reason, lifetime=life)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def engine(registry: CollectorRegistry) -> EngineMetrics:
    return EngineMetrics(registry)


def test_the_engines_load_is_told_under_the_names_of_vllm(engine: EngineMetrics, registry: CollectorRegistry) -> None:
    engine.note_load(LOAD, 1)
    told = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.75,
        "gpu_cache_usage_perc": 0.75,
        "prompt_tokens_total": 1000,
        "prefix_cache_queries_total": 1000,
        "prefix_cache_hits_total": 400,
        "generation_tokens_total": 50,
        "num_preemptions_total": 1,
        "spec_decode_num_drafts_total": 0,
        "spec_decode_num_draft_tokens_total": 0,
        "spec_decode_num_accepted_tokens_total": 0,
    }
    assert {name: registry.get_sample_value(f"vllm:{name}") for name in told} == told


def test_counters_go_on_where_a_new_engine_begins_at_nought(engine: EngineMetrics, registry: CollectorRegistry) -> None:
    engine.note_load(LOAD, 1)
    engine.note_load(None, 1)
    assert registry.get_sample_value("vllm:num_requests_running") == 0
    engine.note_load(LOAD, 2)
    assert registry.get_sample_value("vllm:prompt_tokens_total") == 2000


def test_a_request_is_in_every_histogram_with_its_own_times(engine: EngineMetrics, registry: CollectorRegistry) -> None:
    engine.note_outputs([ended("stop")])
    sums = {
        "time_to_first_token_seconds": 1.5,
        "e2e_request_latency_seconds": 3.5,
        "request_queue_time_seconds": 1.0,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 2.0,
        "request_inference_time_seconds": 2.5,
        "request_prompt_tokens": 7,
        "request_generation_tokens": 5,
        "time_per_output_token_seconds": 2.0,
        "inter_token_latency_seconds": 2.0,
    }
    assert {name: registry.get_sample_value(f"vllm:{name}_sum") for name in sums} == pytest.approx(sums)
    assert registry.get_sample_value("vllm:inter_token_latency_seconds_count") == 4
    assert registry.get_sample_value("vllm:inter_token_latency_seconds_bucket", {"le": "0.4"}) == 0
    assert registry.get_sample_value("vllm:inter_token_latency_seconds_bucket", {"le": "0.5"}) == 4
    assert registry.get_sample_value("vllm:e2e_request_latency_seconds_count") == 1


def test_what_was_cut_short_counts_as_ended_but_has_no_times(
    engine: EngineMetrics, registry: CollectorRegistry
) -> None:
    streaming = Output(id="a", token_ids=[1])
    engine.note_outputs([streaming, ended("abort"), ended("error", None), ended("length"), ended("length")])
    counted = {
        reason: registry.get_sample_value("vllm:request_success_total", {"finished_reason": reason})
        for reason in ("stop", "length", "abort", "error")
    }
    assert counted == {"stop": 0, "length": 2, "abort": 1, "error": 1}
    assert registry.get_sample_value("vllm:e2e_request_latency_seconds_count") == 2


def test_only_starts_after_the_first_are_restarts() -> None:
    counting = WorkerMetrics()
    for births in (1, 1, 2, 2, 4):
        counting.note_engine(births, None, ())
    assert counting.registry.get_sample_value("pressrun:engine_restarts_total") == 3


def value(backend: Backend, name: str, worker: str | None = None, **labels: str) -> float:
    """The sum of what live workers, or one of them, say."""
    samples = [sample for metric in metrics.read(backend.store) for sample in metric.samples if sample.name == name]
    wanted = labels | ({} if worker is None else {"worker": worker})
    return sum(sample.value for sample in samples if wanted.items() <= sample.labels.items())


def family(backend: Backend, name: str) -> Metric:
    return next(metric for metric in metrics.read(backend.store) if metric.name == name)


def test_workers_tell_of_their_lines_and_engines_through_redis(farm: Any) -> None:
    farm.work()
    farm.work()
    lines = [*farm.many(30), farm.ask("wrong", temperature=9)]
    output, errors = farm.results(farm.batch(lines))
    assert (len(output), len(errors)) == (30, 1)

    def told() -> bool:
        outcomes = [value(farm.backend, "pressrun:lines_total", outcome=one) for one in ("succeeded", "failed")]
        return outcomes == [30, 1] and value(farm.backend, "pressrun:sealed_shards_total") == 2

    farm.until(told)
    usages = [line["response"]["body"]["usage"] for line in output]
    for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        wanted = sum(usage[name] for usage in usages)
        assert value(farm.backend, "pressrun:line_tokens_total", kind=kind) == wanted
    assert value(farm.backend, "vllm:request_success_total", finished_reason="length") == 30
    assert value(farm.backend, "vllm:e2e_request_latency_seconds_count") == 30
    assert value(farm.backend, "vllm:generation_tokens_total") == value(
        farm.backend, "pressrun:line_tokens_total", kind="output"
    )
    stored = sum(len(raw) for file in ("output", "error") for raw in [file_bytes(farm, file)])
    assert value(farm.backend, "pressrun:result_bytes_total") == stored
    samples = family(farm.backend, "vllm:num_requests_running").samples
    assert {(one.labels["model_name"], one.labels["engine"]) for one in samples} == {("m", "0")}
    assert {one.labels["worker"].encode() for one in samples} == farm.cards()


def file_bytes(farm: Any, part: str) -> bytes:
    (batch,) = farm.backend.store.batches().items
    return b"".join(farm.backend.blobs.open(batch.result_blob(part)))


def test_the_death_of_an_engine_takes_nothing_off_the_counters(farm: Any) -> None:
    worker = farm.work(step_s=0.05, max_num_seqs=4)
    farm.results(farm.batch(farm.many(8)))
    farm.until(lambda: value(farm.backend, "vllm:prompt_tokens_total") > 0)
    before = value(farm.backend, "vllm:generation_tokens_total")
    (engine,) = worker.engines()
    engine.kill()
    farm.until(lambda: value(farm.backend, "pressrun:engine_restarts_total") == 1)
    farm.results(farm.batch(farm.many(8)))
    farm.until(lambda: value(farm.backend, "vllm:generation_tokens_total") == 2 * before)


def test_the_series_of_a_worker_end_with_it_and_others_tell_of_its_lapsed_leases(farm: Any) -> None:
    first = farm.work(step_s=30.0)
    (name,) = farm.cards()
    batch = farm.batch(farm.many(4))
    farm.until(lambda: farm.backend.shards.num_leased(batch.id) == 1)
    first.send(signal.SIGKILL)
    farm.work()
    farm.results(batch)
    farm.until(lambda: value(farm.backend, "pressrun:lapsed_leases_total") == 1)
    farm.backend.store.forget_model(name.decode())  # As after half a minute of silence.
    workers = {one.labels["worker"] for one in family(farm.backend, "vllm:num_requests_running").samples}
    assert workers == {raw.decode() for raw in farm.cards()}
    assert name.decode() not in workers
