"""Several models in one deployment: real workers of each, batches and jobs of both, and one worker killed."""

from __future__ import annotations

import signal
from typing import Any

from pressrun.jobs.records import Batch, ModelCard
from pressrun.jobs.reports import reports_of
from pressrun.jobs.submit import create_job

from .conftest import CHAT

SMALL, LARGE = "small, v1", "large"


def lines(farm: Any, model: str, number: int) -> list[dict[str, Any]]:
    return [farm.ask(f"{model}-{i}", f"question {i}", model=model) for i in range(number)]


def job(farm: Any, model: str) -> Batch:
    return create_job(farm.backend, url=CHAT, body=farm.ask("x", model=model)["body"])


def models_of(answers: list[dict[str, Any]]) -> set[str]:
    return {line["response"]["body"]["model"] for line in answers}


def complete(farm: Any, batch: Batch, model: str, number: int) -> None:
    """Every line was answered once, by its own model."""
    output, errors = farm.results(batch)
    assert errors == []
    assert [line["custom_id"] for line in output] == [f"{model}-{i}" for i in range(number)]
    assert models_of(output) == {model}


def test_batches_and_jobs_of_two_models_run_side_by_side_each_by_its_own_worker(farm: Any) -> None:
    for model in (SMALL, LARGE):
        farm.work(model=model, step_s=0.01, max_num_seqs=16)
    batches = [(model, farm.batch(lines(farm, model, 200))) for _ in range(2) for model in (SMALL, LARGE)]
    jobs = [job(farm, model) for _ in range(10) for model in (SMALL, LARGE)]
    for model, batch in batches:
        complete(farm, batch, model, 200)
    assert all(farm.wait(one).counts.completed == 1 for one in jobs)


def test_what_waits_for_a_model_whose_worker_was_killed_runs_when_there_is_one_again(farm: Any) -> None:
    farm.work(model=SMALL, step_s=0.01, max_num_seqs=16)
    doomed = farm.work(model=LARGE, step_s=0.1, max_num_seqs=8)
    large, queued = farm.batch(lines(farm, LARGE, 400)), job(farm, LARGE)
    farm.until(lambda: farm.num_done(large) >= 16 and farm.wait(queued))
    doomed.send(signal.SIGKILL)
    doomed.wait()
    farm.backend.store.forget_model(_worker_of(farm, LARGE))  # As after half a minute of silence.
    done = farm.num_done(large)
    # The other model's worker goes on with its own, takes nothing of this, and keeps house for both.
    late, waiting = farm.batch(lines(farm, LARGE, 40)), job(farm, LARGE)
    for small in [farm.batch(lines(farm, SMALL, 100)) for _ in range(3)]:
        complete(farm, small, SMALL, 100)
    farm.until(lambda: farm.backend.store.batch(late.id).status == "in_progress")
    farm.until(lambda: not farm.backend.shards.num_leased(large.id))
    for batch in (late, waiting):
        assert farm.num_done(batch) == 0
    assert farm.num_done(large) == done
    farm.until(lambda: farm.backend.lineups.lengths([LARGE]) == [2])
    (report,) = reports_of(farm.backend, [farm.backend.store.batch(late.id)])
    assert (report.queue_place is not None, report.eta, report.feasible) == (True, None, None)
    farm.work(model=LARGE)
    complete(farm, large, LARGE, 400)
    complete(farm, late, LARGE, 40)
    assert farm.wait(waiting).counts.completed == 1


def test_a_batch_that_waits_for_a_model_without_workers_can_be_cancelled(farm: Any) -> None:
    farm.work(model=SMALL)
    farm.backend.store.touch_model(ModelCard(id=LARGE, max_model_len=9, created=1, worker="gone"))
    farm.backend.store.forget_model("gone")
    batch, one = farm.batch(lines(farm, LARGE, 40)), job(farm, LARGE)
    farm.until(lambda: farm.backend.store.batch(batch.id).status == "in_progress")
    for each in (batch, one):
        farm.backend.store.cancel(each.id)
        assert farm.wait(each).status == "cancelled"
    _, errors = farm.results(batch)
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 40


def _worker_of(farm: Any, model: str) -> str:
    (card,) = [card for card in farm.backend.store.live_workers() if card.id == model]
    return str(card.worker)
