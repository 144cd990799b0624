"""What is left to the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from pressrun.jobs.garbage import settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_a_process_has_loaded_is_not_looked_through_again_and_its_garbage_still_is() -> None:
    class Knot:
        pass

    settle()
    assert gc.get_freeze_count() > 1000
    knot = Knot()
    knot.__dict__["self"] = knot
    del knot
    assert gc.collect() >= 1
