"""How long the parts of a request's way took, as far as it went."""

from __future__ import annotations

import time

from pressrun.engine.request import Output, Passage
from pressrun.workers.moments import Moments


def test_each_part_begins_where_the_one_before_ended() -> None:
    now = time.monotonic()
    moments = Moments(taken_at=now - 1, ready_at=now - 0.9, sent_at=now - 0.7)
    moments.hear([Output(id="0.0", token_ids=[1], passage=Passage(came_at=now - 0.6, left_at=now - 0.2))])
    phases = moments.phases()
    assert list(phases) == ["prompt", "sending", "inbox", "engine", "return", "text"]
    assert [round(phases[name]) for name in ("prompt", "sending", "inbox", "engine")] == [100, 200, 100, 400]
    assert 200 <= phases["return"] < 1000
    assert sum(phases.values()) >= 1000


def test_only_the_first_tokens_count() -> None:
    moments = Moments()
    moments.hear([Output(id="0.0", token_ids=[1])])
    heard_at = moments.heard_at
    moments.hear([Output(id="0.0", token_ids=[2], passage=Passage(came_at=0.0, left_at=0.0))])
    assert (moments.heard_at, moments.passage) == (heard_at, None)


def test_what_never_reached_the_engine_has_no_such_parts() -> None:
    assert list(Moments().phases()) == ["text"]
