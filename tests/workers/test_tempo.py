"""How soon a worker's threads give way: at once where somebody waits for a first token, else as Python has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pressrun.workers.tempo import ATTENTIVE_S, LATER_S, SOON_S, Tempo


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)


def test_threads_give_way_soon_while_online_requests_come_and_for_a_while_after() -> None:
    now = 100.0
    tempo = Tempo(clock=lambda: now)
    heard = []
    for moment, online in [(100.0, False), (101.0, True), (102.0, False), (101.0 + ATTENTIVE_S, False)]:
        now = moment
        tempo.note(online=online)
        heard.append(sys.getswitchinterval())
    assert heard == pytest.approx([LATER_S, SOON_S, SOON_S, LATER_S])
