"""The meter of tokens a second."""

from __future__ import annotations

import pytest

from pressrun.workers.meter import Meter


def test_only_busy_time_counts() -> None:
    meter = Meter()
    for second in range(10):
        meter.note(second, busy=True, tokens=100 if second else 0)
    for second in range(10, 1000):
        meter.note(second, busy=False)
    assert meter.tokens_per_s == pytest.approx(100)


def test_what_is_more_than_a_minute_of_work_old_is_forgotten() -> None:
    meter = Meter()
    for second in range(200):
        meter.note(second, busy=True, tokens=10 if second < 100 else 50)
    assert meter.tokens_per_s == pytest.approx(50, rel=0.05)


def test_nothing_is_said_after_a_moment() -> None:
    meter = Meter()
    meter.note(0.0, busy=True)
    meter.note(0.1, busy=True, tokens=1000)
    assert meter.tokens_per_s == 0
