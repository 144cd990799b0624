"""The parts of a lease fit into it, however long it is."""

from __future__ import annotations

import pytest

from pressrun.jobs.leases import Lease
from pressrun.workers.housekeeping import CARE_S, TICK_S


@pytest.mark.parametrize("whole", [1, 1.5, 2, 5, 30, 300])
def test_what_was_in_dead_hands_is_fed_again_within_the_lease(whole: float) -> None:
    lease, care = Lease(whole), CARE_S + TICK_S
    assert lease.hold + care + lease.feeding + TICK_S <= whole
    assert 2 * lease.sweep + lease.missing + lease.feeding + 2 * TICK_S <= whole
    assert lease.ending + care <= whole


@pytest.mark.parametrize("whole", [1, 30, 300])
def test_some_renewals_may_fail(whole: float) -> None:
    assert Lease(whole).renewal <= Lease(whole).hold / 5
