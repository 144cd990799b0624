"""The simulated cluster: shares, small batches and deadlines under the policy that the service runs."""

from __future__ import annotations

import random

import pytest

from pressrun.bench.fairness import missed_deadlines, share_error, small_beside_huge


def test_shares_follow_weights_among_many_tenants() -> None:
    mean, worst, _ = share_error(50, 200, random.Random(1))
    assert mean < 0.03
    assert worst < 0.25  # A shard more or less, of the few that the lightest had.


def test_a_small_batch_waits_for_what_is_in_rq_and_not_for_a_huge_one() -> None:
    median, worst = small_beside_huge(random.Random(2))
    assert median < 10
    assert worst < 12


@pytest.mark.parametrize("load", [0.5, 0.9, 1.2])
@pytest.mark.parametrize("seed", range(3))
def test_hardly_more_deadlines_are_missed_than_must_be(load: float, seed: int) -> None:
    missed, least, number = missed_deadlines(load, random.Random(seed))
    assert least <= missed <= least + 0.03 * number
