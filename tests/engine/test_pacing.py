"""How many tokens a step has where hurrying gains nothing."""

from __future__ import annotations

import numpy as np

from pressrun.engine.pacing import MULTIPLE, paced_tokens
from pressrun.engine.waiting import Ahead


def paced(prompts: list[int], lengths: list[int], remaining: list[int], *, least: int = 128, most: int = 8192) -> int:
    ahead = Ahead(prompt_tokens=np.cumsum(prompts), lengths=np.array(lengths, float))
    return paced_tokens(ahead, np.array(remaining, float), len(remaining), least=least, most=most)


def test_work_is_spread_over_the_steps_that_the_longest_needs() -> None:
    # 1000 steps; 400,000 tokens wait, and 10,000 come from what runs.
    tokens = paced([100] * 2000, [100] * 2000, [1000] * 10)
    assert tokens == 512  # 410 rounded up
    assert tokens % MULTIPLE == 0


def test_nothing_is_spread_where_who_waits_would_end_last() -> None:
    assert paced([100], [1000], [1000]) == 8192
    assert paced([100] * 50, [*[10] * 49, 1200], [1000]) == 8192


def test_who_must_start_soon_does() -> None:
    """Two steps are left until the second must have begun: its and the first's prompts must be computed by then."""
    assert paced([2000, 2000, 10], [500, 998, 3], [1000]) >= 2000


def test_decodes_are_never_held_up_and_the_limits_hold() -> None:
    assert paced([10], [1], [500] * 1000) >= 1000
    assert paced([10], [1], [500], least=700) == 768
    assert paced([10] * 5, [1] * 5, [50] * 9000) == 8192
