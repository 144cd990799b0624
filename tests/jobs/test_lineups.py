"""Each model has a line of its own: who waits, how fast it goes, and what tenants were given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis import Redis

from pressrun.jobs.lineups import Lineups
from pressrun.jobs.records import ModelCard
from pressrun.jobs.store import Store

from .test_lineup import BATCH, charged


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis)


def work(store: Store, model: str, tokens_per_s: float) -> None:
    card = ModelCard(id=model, max_model_len=1, created=1, worker=f"worker of {model}", tokens_per_s=tokens_per_s)
    store.touch_model(card)


def test_batches_wait_in_their_models_line_only(store: Store) -> None:
    lineups = Lineups(store)
    small, large = replace(BATCH, id="s", model="small"), replace(BATCH, id="l", model="large")
    lineups.note([small, large, replace(BATCH, id="unvalidated", status="validating", model="")])
    assert lineups.lengths(["small", "large", "none", ""]) == [1, 1, 0, 0]
    for model, batch in (("small", small), ("large", large)):
        assert [candidate.id for candidate in lineups.of(model).read().candidates] == [batch.id]
    lineups.note([replace(small, paused=True)])
    assert lineups.lengths(["small", "large"]) == [0, 1]


def test_what_a_tenant_is_given_by_one_models_workers_costs_it_nothing_with_anothers(store: Store) -> None:
    lineups = Lineups(store)
    lineups.of("small").raise_floors({3: 5000.0})
    lineups.note([replace(BATCH, id="s", model="small"), replace(BATCH, id="l", model="large")])
    assert charged(lineups.of("small")) == {"3 two words": 5200.0}
    assert charged(lineups.of("large")) == {"3 two words": 200.0}


def test_a_batch_is_foreseen_by_its_models_workers_and_without_any_nobody_knows(store: Store) -> None:
    work(store, "small", 100.0)
    lineups = Lineups(store)
    batches = [replace(BATCH, id=model, model=model, expires_at=2**40) for model in ("small", "large")]
    lineups.note(batches)
    known, unknown = (lineups.of(batch.model).forecast().of(batch.id) for batch in batches)
    assert known is not None
    assert unknown is not None
    assert (known.place, known.feasible) == (1, True)
    assert known.ends_at == pytest.approx(lineups.of("small").read().read_at + 10)  # 800 tokens wait, 200 are out.
    assert (unknown.place, unknown.ends_at, unknown.feasible) == (1, None, None)
    work(store, "large", 10.0)
    lineups.of("large").read_anew()
    assert (lineups.of("small").read().rate, lineups.of("large").read().rate) == (100.0, 10.0)


def test_a_batch_that_is_gone_leaves_whatever_line_it_was_in(store: Store) -> None:
    work(store, "small", 0.0)
    lineups = Lineups(store)
    lineups.note([replace(BATCH, model="small")])
    store.forget_model("worker of small")  # It was served once, so that it is looked for.
    Lineups(store).forget(BATCH.id)
    assert lineups.lengths(["small"]) == [0]


def test_a_settled_batch_is_charged_where_it_ran(store: Store) -> None:
    lineups = Lineups(store)
    batch = replace(BATCH, model="small")
    lineups.note([batch])
    lineups.settle(replace(batch, status="completed", waiting=0, queued=0, completed=100, output_tokens=700))
    assert charged(lineups.of("small")) == {"3 two words": 700.0}
    assert lineups.lengths(["small"]) == [0]
