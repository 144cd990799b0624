"""A worker process answers batches line by line, and good and bad lines do not meet."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from pressrun.jobs.records import ENDED


def test_a_batch_runs_to_its_end_and_every_line_is_answered_in_order(farm: Any) -> None:
    farm.work()
    batch = farm.batch(farm.many(100))
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"line-{i}" for i in range(100)]
    assert errors == []
    answer = output[7]["response"]
    assert answer["status_code"] == 200
    assert answer["body"]["choices"][0]["message"]["content"] == "user: qu"  # the echo of 8 bytes
    assert answer["body"]["usage"]["completion_tokens"] == 8
    ended = farm.backend.store.batch(batch.id)
    assert (ended.counts.completed, ended.counts.failed) == (100, 0)
    assert ended.usage.output_tokens == 800
    assert ended.usage.input_tokens == sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in output)


def test_scattered_questions_are_run_by_document_and_answered_in_the_files_order(farm: Any) -> None:
    farm.work()
    draw = random.Random(0)
    documents = ["".join(draw.choices("abcdefgh", k=3000)) for _ in range(400)]
    lines = [farm.ask(f"line-{i:04}", documents[7 * i % 400] + str(i)) for i in range(1200)]
    batch = farm.batch(lines)
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert errors == []
    assert farm.backend.store.batch(batch.id).arranged


def test_a_bad_line_becomes_an_error_line_alone(farm: Any) -> None:
    farm.work()
    lines = [
        farm.ask("good"),
        farm.ask("long", "x" * 5000),
        farm.ask("room", max_tokens=4096),
        farm.ask("unknown", frobnicate=1),
        farm.ask("text") | {"body": "text"},
        farm.ask("also good"),
    ]
    output, errors = farm.results(farm.batch(lines))
    assert [line["custom_id"] for line in output] == ["good", "also good"]
    said = {line["custom_id"]: line["response"]["body"]["error"] for line in errors}
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert [(name, said[name]["code"], said[name]["param"]) for name in said] == [
        ("long", "context_length_exceeded", "messages"),
        ("room", "context_length_exceeded", "max_tokens"),
        ("unknown", "unknown_parameter", "frobnicate"),
        ("text", "invalid_type", "body"),
    ]


def test_a_job_is_answered_ahead_of_a_long_batch(farm: Any) -> None:
    farm.work(step_s=0.1, max_num_seqs=4)
    batch = farm.batch(farm.many(200))  # 5 s of work
    farm.until(lambda: farm.num_done(batch) >= 8)
    started = time.monotonic()
    job = farm.wait(farm.job("first things first"))
    assert job.status == "completed"
    assert time.monotonic() - started < 1.5
    assert farm.num_done(batch) < 100


def test_jobs_run_by_priority_and_then_by_arrival(farm: Any) -> None:
    worker = farm.work(step_s=0.3, max_num_seqs=1)
    farm.until(farm.cards)
    worker.send(signal.SIGSTOP)  # So that none is taken before all are there.
    asked = [0, -5, 9, 0, 100, 9]
    jobs = [(farm.job("waiting", priority), priority) for priority in asked]
    worker.send(signal.SIGCONT)
    ended: dict[str, None] = {}

    def all_ended() -> bool:
        ended.update(dict.fromkeys(job.id for job, _ in jobs if farm.backend.store.batch(job.id).status in ENDED))
        return len(ended) == len(jobs)

    farm.until(all_ended)
    in_order = [job.id for job, _ in sorted(jobs, key=lambda one: -one[1])]
    # Two are in hand at once, and the end of one may be seen late. By arrival alone the most urgent would be fifth.
    assert all(abs(place - in_order.index(job)) <= 2 for place, job in enumerate(ended))


def test_several_choices_of_several_prompts_come_back_in_their_places(farm: Any) -> None:
    farm.work()
    output, _ = farm.results(farm.batch([farm.ask("a", n=3, seed=1), farm.ask("b")]))
    assert [choice["index"] for choice in output[0]["response"]["body"]["choices"]] == [0, 1, 2]
    assert output[0]["response"]["body"]["usage"]["completion_tokens"] == 24


def test_cancelling_aborts_what_is_in_the_engine(farm: Any) -> None:
    farm.work(step_s=0.1, max_num_seqs=2)
    batch = farm.batch(farm.many(200))  # 10 s of work
    farm.until(lambda: farm.num_done(batch) >= 4)
    farm.backend.store.cancel(batch.id)
    started = time.monotonic()
    output, errors = farm.results(batch)
    assert farm.backend.store.batch(batch.id).status == "cancelled"
    assert sorted(line["custom_id"] for line in output + errors) == sorted(f"line-{i}" for i in range(200))
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    # The engine is free again at once: what follows does not wait for the cancelled lines.
    farm.results(farm.batch(farm.many(4)))
    assert time.monotonic() - started < 5
