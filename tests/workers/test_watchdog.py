"""When an engine is taken to hang, by a clock that the test turns."""

from __future__ import annotations

import pytest

from pressrun.workers.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def seconds_until_hang(watchdog: Watchdog, clock: Clock, *, busy: bool = True, progress: int = 7) -> float | None:
    started = clock.now
    for _ in range(1000):
        clock.now += 0.1
        if watchdog.sees_hang(busy=busy, progress=progress):
            return clock.now - started
    return None


def test_an_engine_without_progress_hangs_after_the_patience(clock: Clock) -> None:
    watchdog = Watchdog(10, clock=clock)
    assert seconds_until_hang(watchdog, clock) == pytest.approx(10, abs=0.2)


def test_an_engine_with_nothing_to_do_never_hangs(clock: Clock) -> None:
    assert seconds_until_hang(Watchdog(10, clock=clock), clock, busy=False) is None


def test_progress_starts_the_count_again(clock: Clock) -> None:
    watchdog = Watchdog(10, clock=clock)
    for progress in range(50):
        clock.now += 0.9
        assert not watchdog.sees_hang(busy=True, progress=progress)
    assert seconds_until_hang(watchdog, clock, progress=49) == pytest.approx(10, abs=0.2)


def test_a_pause_of_the_worker_itself_is_not_the_engines(clock: Clock) -> None:
    watchdog = Watchdog(10, clock=clock)
    watchdog.sees_hang(busy=True, progress=7)
    clock.now += 3600
    assert not watchdog.sees_hang(busy=True, progress=7)
    assert seconds_until_hang(watchdog, clock) == pytest.approx(9, abs=0.2)


def test_without_patience_it_sleeps(clock: Clock) -> None:
    assert seconds_until_hang(Watchdog(0, clock=clock), clock) is None
