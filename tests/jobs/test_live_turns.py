"""Whose turn it is among online requests that wait: by priority, then fair among tenants; and for whom it is full."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from itertools import count

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.live import Call, Live, Place

MODEL, WORKER = "m", "w"


class Line:
    """A model's line. Requests are called after their tenants: `a0`, `a1`, `b0`."""

    def __init__(self, live: Live, most: int = 1000, life_s: float = 60) -> None:
        self.live = live
        self._most, self._life_s = most, life_s
        self._num_asked: Counter[str] = Counter()
        self._takings = count()
        self.calls: dict[str, Call] = {}

    def ask(self, tenant: str, *, priority: int = 0, price: float = 1.0) -> str:
        name = f"{tenant}{self._num_asked[tenant]}"
        self._num_asked[tenant] += 1
        self.calls[name] = Call(id=name, attempt=1, api="api_1", url="/v1/completions", model=MODEL, body={})
        place = Place(tenant=tenant, priority=priority, price=price)
        return self.live.ask(self.calls[name], most_waiting=self._most, life_s=self._life_s, place=place)

    def ask_many(self, tenants: Iterable[str], **place: float) -> None:
        assert {self.ask(tenant, **place) for tenant in tenants} == {"ok"}  # type: ignore[arg-type]

    def take(self, most: int) -> list[str]:
        return [call.id for call in self.live.take(MODEL, WORKER, next(self._takings), most)]


@pytest.fixture
def live(backend: Backend) -> Live:
    backend.live.beat(MODEL, WORKER, taking=True)
    return backend.live


def test_a_tenant_that_fills_the_line_does_not_keep_another_waiting(live: Live) -> None:
    line = Line(live)
    line.ask_many("a" * 500 + "bb")
    assert line.take(4) == ["a0", "b0", "a1", "b1"]
    assert line.take(2) == ["a2", "a3"]


def test_turns_are_taken_by_tokens_and_weight(live: Live) -> None:
    line = Line(live)
    line.ask_many("a" * 100, price=30.0)  # A hundred tokens, for a weight of 3 and a third.
    line.ask_many("b" * 100, price=10.0)
    assert Counter(name[0] for name in line.take(80)) == {"a": 20, "b": 60}


def test_a_lower_priority_goes_first_whoever_asks(live: Live) -> None:
    line = Line(live)
    line.ask_many("aab")
    line.ask_many("aa", priority=-5)
    line.ask_many("b", priority=7)
    assert line.take(10) == ["a2", "a3", "a0", "b0", "a1", "b1"]


def test_who_was_idle_has_saved_nothing_up(live: Live) -> None:
    line = Line(live)
    line.ask_many("a" * 60)
    assert len(line.take(50)) == 50
    line.ask_many("b" * 10)
    assert Counter(name[0] for name in line.take(8)) == {"a": 4, "b": 4}


def test_who_was_served_just_now_does_not_start_anew_by_pausing(live: Live) -> None:
    line = Line(live)
    line.ask_many("b" * 20)
    line.ask_many("a", price=10.0)
    taken = line.take(4)
    assert "a0" in taken  # Ten turns of the other's at once: it owes for them.
    line.ask_many("a")
    assert not any(name[0] == "a" for name in line.take(6))


def test_hanging_up_keeps_no_place(live: Live) -> None:
    line = Line(live)
    line.ask_many("a" + "b" * 60)
    live.hang_up(line.calls["a0"])
    assert all(name[0] == "b" for name in line.take(50))
    line.ask_many("a" * 10)
    assert Counter(name[0] for name in line.take(8))["a"] in (4, 5)


def test_the_line_is_full_for_who_fills_it(live: Live) -> None:
    line = Line(live, most=6)
    line.ask_many("a" * 6)
    assert line.ask("a") == "full"
    line.ask_many("b" * 3)
    assert [line.ask("b"), line.ask("a")] == ["full", "full"]
    line.ask_many("cc")
    assert [line.ask("c"), line.ask("b")] == ["full", "full"]
    assert len(line.take(6)) == 6  # Two of each; five are left.
    line.ask_many("a")
    assert [line.ask("a"), line.ask("d")] == ["full", "ok"]


def test_nobody_has_a_larger_part_by_asking_at_many_priorities(live: Live) -> None:
    line = Line(live, most=6)
    for priority in range(6):
        line.ask_many("a", priority=priority)
    assert line.ask("a", priority=9) == "full"
    line.ask_many("b" * 3)
    assert line.ask("b") == "full"


def test_requests_that_were_given_up_make_room(live: Live) -> None:
    line = Line(live, most=2, life_s=0.1)
    line.ask_many("aa")
    assert line.ask("a") == "full"
    live.hang_up(line.calls["a0"])
    line.ask_many("a")
    assert line.ask("a") == "full"
    time.sleep(1.1)  # Nobody told that these are given up: their API process is dead.
    line.ask_many("a")
    assert line.take(9) == ["a5"]


def test_who_asks_again_goes_ahead_of_all(live: Live) -> None:
    line = Line(live)
    line.ask_many("bbb", priority=-100)
    again = Call(id="x", attempt=2, api="api_1", url="/v1/completions", model=MODEL, body={})
    assert live.ask(again, most_waiting=1, life_s=60, place=Place(tenant="a", priority=100)) == "ok"
    assert line.take(2) == ["x", "b0"]


@pytest.mark.parametrize("seed", range(4))
def test_everybody_gets_a_turn_once_and_nothing_of_them_stays(live: Live, seed: int) -> None:
    chance, line = random.Random(seed), Line(live)
    gone: set[str] = set()
    taken: list[str] = []
    for _ in range(400):
        act = chance.random()
        if act < 0.6:
            line.ask_many(chance.choice("abcd"), priority=chance.randrange(3), price=chance.uniform(1, 100))
        elif act < 0.8:
            taken += line.take(chance.randrange(1, 5))
        elif waiting := sorted(line.calls.keys() - gone - set(taken)):
            name = chance.choice(waiting)
            live.hang_up(line.calls[name])
            gone.add(name)
    taken += line.take(10_000)
    assert len(taken) == len(set(taken))
    assert not set(taken) & gone
    assert set(taken) | gone == line.calls.keys()
    live.forget([line.calls[name] for name in taken])
    kept = {key.decode().split("}:")[1].split(":")[0] for key in live.redis.keys(f"pressrun:live:{{{MODEL}}}:*")}
    assert kept <= {"bell", "taking", "workers", "taken", "had", "clock", "stop"}
