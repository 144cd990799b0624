"""How many lines a worker wants: bounded by rows and by pages, and never none with nothing in hand."""

from __future__ import annotations

from pressrun.engine.request import Load
from pressrun.workers.appetite import Appetite


def load(num_pages: int = 2**20, num_rows: int = 100) -> Load:
    return Load(
        num_rows=num_rows,
        num_running=0,
        num_waiting=0,
        num_free_pages=num_pages,
        num_pages=num_pages,
        page_size=16,
        num_preemptions=0,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_generated_tokens=0,
    )


def test_it_wants_two_engine_loads_of_rows_where_pages_abound() -> None:
    appetite = Appetite()
    assert appetite.wanted(load(), 0, 0.0) == 200
    assert appetite.wanted(load(), 150, 1000.0) == 50
    assert appetite.wanted(load(), 300, 1000.0) == 0


def test_long_lines_make_it_want_fewer() -> None:
    appetite = Appetite()
    for _ in range(1000):
        appetite.learn(num_prompt=1000, num_output=600)
    assert appetite.wanted(load(num_pages=1000), 0, 0.0) == 20
    assert appetite.wanted(load(num_pages=1000), 10, 16000.0) == 10
    assert appetite.wanted(load(num_pages=1000), 20, 32000.0) == 0


def test_with_nothing_in_hand_it_wants_at_least_one() -> None:
    assert Appetite().wanted(load(num_pages=1, num_rows=1), 0, 0.0) == 1
