"""How the deployment stands, as metrics."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pressrun.jobs import finish, standing
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.filling import wind_up
from pressrun.jobs.finish import end_batch
from pressrun.jobs.ids import owner_id
from pressrun.jobs.records import ModelCard
from pressrun.jobs.shards import Shards
from pressrun.jobs.standing import Standing
from pressrun.jobs.submit import create_job

from .conftest import MakeBatch, chat_line


def told(backend: Backend) -> dict[str, Any]:
    """By name, and by the values of labels where there are any."""
    found: dict[str, Any] = {}
    for metric in Standing(backend).read():
        for sample in metric.samples:
            name = sample.name.removeprefix("pressrun:")
            if sample.labels:
                found.setdefault(name, {})[tuple(sample.labels.values())] = sample.value
            else:
                found[name] = sample.value
    return found


def test_lines_shards_and_tokens_to_come_are_counted_over_all_batches(backend: Backend, make_batch: MakeBatch) -> None:
    make_batch([chat_line("a")])
    running = make_batch([chat_line(f"line-{i}", max_tokens=10) for i in range(10)])
    validate_batch(backend, running.id)
    backend.shards.feed([running.id], 2)
    backend.shards.claim(running.id, 0, owner_id(), 30)
    create_job(backend, url="/v1/chat/completions", body=chat_line("x")["body"])
    found = told(backend)
    assert found["batches"] == {("validating",): 1, ("in_progress",): 1}
    assert found["batch_shards"] == {("waiting",): 1, ("queued",): 1, ("leased",): 1}
    assert found["batch_lines"] == {("left",): 10, ("completed",): 0, ("failed",): 0, ("unrun",): 0}
    assert found["enqueued_tokens"][("m",)] > 0
    assert found["active_jobs"] == 1
    assert found["queue_depth"] == {("pressrun-interactive-m", "m"): 1}
    assert found["workers"] == {("m",): 1}
    assert found["redis_memory_bytes"] > 0


def test_an_end_is_counted_once_whoever_cleans_up_and_however_often(
    backend: Backend, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([chat_line("a")])
    validate_batch(backend, batch.id)
    backend.store.cancel(batch.id)
    drop = Shards.drop

    def die(self: Shards, batch: Any) -> bool:
        raise ConnectionError("the process dies here")

    monkeypatch.setattr(Shards, "drop", die)
    with pytest.raises(ConnectionError):
        wind_up(backend, batch.id)
    assert "ended_total" not in told(backend)
    monkeypatch.setattr(Shards, "drop", drop)
    ended = backend.store.batch(batch.id)
    threads = [threading.Thread(target=finish._clean, args=(backend, ended)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end_batch(backend, batch.id)
    assert told(backend)["ended_total"] == {("batch", "cancelled"): 1}


def test_what_was_read_is_told_again_for_a_while(backend: Backend, make_batch: MakeBatch) -> None:
    one = Standing(backend)
    before = one.read()
    make_batch([chat_line("a")])
    assert one.read() is before
    one._read_again_at = 0.0
    assert one.read() is not before


def test_many_batches_are_read_in_portions(
    backend: Backend, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "MANY", 2)
    for name in "abcde":
        make_batch([chat_line(name)])
    assert told(backend)["batches"] == {("validating",): 5}


def test_what_is_to_come_is_told_by_model_even_of_one_without_workers(backend: Backend, make_batch: MakeBatch) -> None:
    backend.store.touch_model(ModelCard(id="gone, v1", max_model_len=100, created=1, worker="w2"))
    backend.store.forget_model("w2")
    for model, number in (("m", 1), ("gone, v1", 3)):
        batch = make_batch([chat_line(f"{i}", model=model, max_tokens=100) for i in range(number)])
        validate_batch(backend, batch.id)
    make_batch([chat_line("unvalidated")])
    create_job(backend, url="/v1/chat/completions", body=chat_line("x", model="gone, v1")["body"])
    found = told(backend)
    tokens = found["enqueued_tokens"]
    assert tokens.keys() == {("m",), ("gone, v1",)}
    assert tokens["gone, v1",] == pytest.approx(3 * tokens["m",], rel=0.02)
    assert found["workers"] == {("m",): 1}
    assert found["queue_depth"] == {("pressrun-interactive-gone%2C%20v1", "gone, v1"): 1}
