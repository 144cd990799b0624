"""Narrowing a shard down to the line that kills its workers."""

from __future__ import annotations

import pytest

from pressrun.jobs.suspects import portion, suspect_from


@pytest.mark.parametrize("most", [1, 2, 4, 10, 20])
def test_the_first_attempt_is_made_with_all_lines(most: int) -> None:
    assert portion(64, 1, most) == 64
    assert suspect_from(most) > 0


def test_with_the_usual_number_of_attempts_one_line_is_left_of_a_shard() -> None:
    assert [portion(64, attempt, 10) for attempt in range(1, 11)] == [64, 64, 64, 32, 16, 8, 4, 2, 1, 1]
    assert suspect_from(10) == 3


@pytest.mark.parametrize("deadly", range(0, 64, 7))
def test_any_deadly_line_is_found_and_no_other(deadly: int) -> None:
    left, failed, attempts, deaths = list(range(64)), [], 0, 0
    while left:
        attempts += 1
        tried = left[: portion(len(left), attempts, 10)]
        if deadly not in tried:
            left, attempts = left[len(tried) :], 0
            continue
        deaths += 1
        if attempts == 10:
            failed += tried
            left, attempts = left[len(tried) :], 0
    assert failed == [deadly]
    assert deaths <= 50
