"""The times of requests: what the engine tells of them when they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pressrun.engine.request import Lifetime, Request

Ask = Callable[..., Request]
Make = Callable[..., Any]


def in_order(life: Lifetime) -> bool:
    """Whether all of it happened, one thing after another."""
    assert life.admitted_at is not None
    assert life.first_token_at is not None
    return life.arrived_at <= life.admitted_at <= life.first_token_at <= life.ended_at


@pytest.mark.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)
def test_an_ended_request_tells_its_times_and_tokens(tiny: Path, make_engine: Make, ask: Ask) -> None:
    began = time.monotonic()
    engine = make_engine(tiny, max_num_seqs=1)
    outputs = {}
    engine.add([ask([5, 6, 7], id="first", max_tokens=6, ignore_eos=True), ask([8, 9], id="second", max_tokens=1)])
    while engine.has_work():
        time.sleep(0.01)
        outputs |= {output.id: output for output in engine.step()}
    first, second = outputs["first"].lifetime, outputs["second"].lifetime
    assert began < first.arrived_at
    assert in_order(first)
    assert in_order(second)
    # The second waits for the only row, and the first has five more tokens to draw after its first one.
    assert second.admitted_at >= first.first_token_at
    assert first.ended_at - first.first_token_at >= 5 * 0.01
    assert [(one.num_prompt_tokens, one.num_generated_tokens) for one in (first, second)] == [(3, 6), (2, 1)]


def test_only_the_last_output_of_a_stream_tells_its_times(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny)
    engine.add([ask([5, 6, 7], max_tokens=4, ignore_eos=True, stream=True)])
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert [output.lifetime is not None for output in outputs] == [False, False, False, True]
    assert outputs[-1].lifetime.num_generated_tokens == 4


def test_a_preempted_request_keeps_the_time_of_its_first_token(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, crowded=True, num_pages=12, page_size=4, max_num_batched_tokens=32)
    requests = [ask([i + 3, i + 4, i + 5], id=str(i), max_tokens=20, ignore_eos=True) for i in range(4)]
    engine.add(requests)
    seen: dict[str, set[float]] = {request.id: set() for request in requests}
    ended = {}
    while engine.has_work():
        ended |= {output.id: output.lifetime for output in engine.step()}
        for name, sequence in engine._live.items():
            seen[name] |= {sequence.first_token_at} - {None}
    assert engine.load().num_preemptions > 0
    assert all(times == {ended[name].first_token_at} for name, times in seen.items())
    assert all(map(in_order, ended.values()))


def test_a_refused_request_has_no_times_and_an_aborted_one_only_those_it_came_to(
    tiny: Path, make_engine: Make, ask: Ask
) -> None:
    engine = make_engine(tiny)
    engine.add([ask([], id="refused"), ask([5, 6, 7], id="aborted")])
    engine.abort(["aborted"])
    outputs = {output.id: output for output in engine.step()}
    assert outputs["refused"].lifetime is None
    life = outputs["aborted"].lifetime
    assert (life.admitted_at, life.first_token_at, life.num_generated_tokens) == (None, None, 0)
