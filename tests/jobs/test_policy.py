"""Whose turn is next, which deadlines can be met, and what is foreseen: pure, with made-up clocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pressrun.jobs.deadlines import Due, feasible, urgent
from pressrun.jobs.forecast import Forecast
from pressrun.jobs.policy import Candidate, Ledgers, Turns, raised_floors

NOW = 1000.0
FAR = 10**9


def batch(name: str, num_shards: int = 100, **changes: Any) -> Candidate:
    """A batch of a tenant that is called by its first letter."""
    values = {"priority": 0, "created_at": 0, "expires_at": FAR, "shard_tokens": 10.0} | changes
    return Candidate(id=name, tenant=name[0], num_shards=num_shards, **values)


def turns(*batches: Candidate, number: int, rate: float = 0.0, **ledgers: Any) -> list[str]:
    return Turns(batches, Ledgers(**ledgers), rate=rate, now=NOW).take(number)


def test_a_higher_priority_goes_first_and_nothing_of_a_lower_one_waits_for_ever() -> None:
    taken = turns(batch("a", 3, priority=-1), batch("b", 2, priority=5), batch("c", 2), number=9)
    assert taken == ["b", "b", "c", "c", "a", "a", "a"]


@pytest.mark.parametrize(("weights", "shares"), [({}, (30, 30)), ({"a": 2.0}, (40, 20)), ({"b": 5.0}, (10, 50))])
def test_tenants_get_tokens_by_their_weights(weights: dict[str, float], shares: tuple[int, int]) -> None:
    counted = Counter(turns(batch("a"), batch("b"), number=60, weights=weights))
    assert (counted["a"], counted["b"]) == pytest.approx(shares, abs=1)


def test_shares_are_counted_in_tokens_and_not_in_shards() -> None:
    counted = Counter(turns(batch("a", shard_tokens=30.0), batch("b"), number=40))
    assert (counted["a"], counted["b"]) == (10, 30)


def test_the_batches_of_a_tenant_share_its_part() -> None:
    counted = Counter(turns(batch("a1"), batch("a2"), batch("a3"), batch("b1"), number=60))
    assert counted["b1"] == 30
    assert {counted[name] for name in ("a1", "a2", "a3")} == {10}


def test_a_small_batch_beside_a_huge_one_has_its_turns_at_once() -> None:
    taken = turns(batch("a1", 100_000, had=5e6), batch("a2", 2, created_at=9), batch("b1", 100_000, had=3.0), number=8)
    assert taken.count("a2") == 2


def test_a_tenant_that_was_idle_does_not_catch_up() -> None:
    ledgers = Ledgers(times={(0, "a"): 500.0, (0, "b"): 500.0, (0, "c"): 20.0}, floors={0: 500.0})
    counted = Counter(Turns([batch("a"), batch("b"), batch("c")], ledgers, rate=0, now=NOW).take(30))
    assert set(counted.values()) == {10}


def test_one_who_was_held_back_while_it_waited_catches_up() -> None:
    assert turns(batch("a"), batch("b"), number=10, times={(0, "a"): 100.0, (0, "b"): 0.0}) == ["b"] * 10


def test_the_floor_follows_whoever_waits_and_is_furthest_behind() -> None:
    ledgers = Ledgers(times={(0, "a"): 70.0, (0, "b"): 90.0, (0, "idle"): 1.0, (3, "a"): 5.0}, floors={0: 50.0})
    assert raised_floors([batch("a"), batch("b"), batch("a2", priority=3)], ledgers) == {0: 70.0, 3: 5.0}


def test_a_near_deadline_goes_ahead_only_when_it_must() -> None:
    rate = 10.0  # 100 shards of 10 tokens take 100 s, and their estimate a margin.
    relaxed = turns(batch("a"), batch("b", expires_at=NOW + 300), number=10, rate=rate)
    assert Counter(relaxed) == {"a": 5, "b": 5}
    assert turns(batch("a"), batch("b", expires_at=NOW + 120), number=10, rate=rate) == ["b"] * 10


def test_what_cannot_be_met_any_more_does_not_hold_up_the_others() -> None:
    counted = Counter(turns(batch("a"), batch("b", expires_at=NOW + 50), number=10, rate=10.0))
    assert counted == {"a": 5, "b": 5}


def test_pressing_turns_are_charged_like_others() -> None:
    near = batch("b", 4, expires_at=NOW + 5)
    taken = turns(batch("a"), near, replace(near, id="b2", expires_at=FAR), number=12, rate=10.0)
    assert taken[:4] == ["b"] * 4
    assert Counter(taken[4:8]) == {"a": 4}


def test_as_many_deadlines_as_possible_are_met() -> None:
    work = [Due(id="big", tokens=90, at=100), Due(id="x", tokens=30, at=101), Due(id="y", tokens=30, at=102)]
    assert [due.id for due in feasible(work, rate=1.0, start=0.0)] == ["x", "y"]
    assert feasible(work, rate=0.0, start=0.0) == []


def test_work_presses_early_if_what_follows_it_needs_the_time() -> None:
    first, second = Due(id="1", tokens=10, at=1000), Due(id="2", tokens=850, at=1001)
    assert urgent([first, second], rate=1.0, now=0.0) == []
    assert [due.id for due in urgent([first, second], rate=1.0, now=45.0)] == ["1"]
    assert [due.id for due in urgent([first, second], rate=1.0, now=80.0)] == ["1", "2"]


def test_what_is_foreseen_is_what_fair_turns_bring() -> None:
    line = [batch("a1", 30), batch("a2", 10), batch("b1", 5), batch("c1", 20, priority=1), batch("d1", 200)]
    ledgers = Ledgers(weights={"a": 2.0})
    taken = Turns(line, ledgers, rate=0, now=NOW).take(1000)
    forecast = Forecast(line, ledgers, rate=10.0, now=NOW)
    for one in line:
        foreseen = forecast.of(one.id)
        assert foreseen is not None
        assert foreseen.ends_at is not None
        ends_after = 1 + max(place for place, name in enumerate(taken) if name == one.id)
        assert foreseen.ends_at - NOW == pytest.approx(ends_after, rel=0.1, abs=2)
        assert foreseen.feasible
    assert forecast.of("z") is None


def test_a_place_in_line_is_the_order_of_next_turns() -> None:
    line = [batch("a1", created_at=1), batch("a2", created_at=2), batch("b1"), batch("c1", 2, priority=1)]
    forecast = Forecast(line, Ledgers(times={(0, "a"): 1.0}), rate=0.0, now=NOW)
    places = {one.id: forecast.of(one.id) for one in line}
    assert sorted(places, key=lambda name: places[name].place) == ["c1", "b1", "a1", "a2"]  # type: ignore[union-attr]
    assert all(found is not None and found.ends_at is found.feasible is None for found in places.values())


def test_a_window_that_is_too_short_is_foreseen() -> None:
    line = [batch("a", 100, expires_at=NOW + 60), batch("b", 100, expires_at=NOW + 150)]
    forecast = Forecast(line, Ledgers(), rate=10.0, now=NOW, ahead=100.0)
    late, early = forecast.of("a"), forecast.of("b")
    assert late is not None
    assert early is not None
    assert (late.feasible, early.feasible) == (False, True)
    assert late.ends_at == pytest.approx(NOW + 210)
    assert early.ends_at == NOW + 150  # It is let ahead in time.
