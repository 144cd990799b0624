"""Captured steps without a GPU: what replays a graph there runs the step again here, on the same padded inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pressrun.engine import engine as engine_module
from pressrun.engine import graphs as graphs_module
from pressrun.engine import runner as runner_module
from pressrun.engine.graphs import StepGraphs
from pressrun.engine.memory import choose_sizes
from pressrun.engine.shapes import Shape

from .spelling import crowd


class Again:
    """In place of a CUDA graph."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self.replay = lambda between=None: step()


class NoStream:
    """In place of a CUDA stream, of which nothing is asked."""

    def __init__(self, device: torch.device) -> None:
        pass


class Replays(list[Shape]):
    """The shapes that were replayed, in order."""


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Engines have graphs of steps of up to 64 tokens, on a CPU."""
    replays = Replays()

    def capture(graphs: StepGraphs, shape: Shape, inputs: Any, compute: Any) -> Again:
        def step() -> None:
            replays.append(shape)
            graphs.compute(shape, inputs, compute)

        return Again(step)

    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(StepGraphs, "_capture", capture)
    # The second largest of six sizes is slower than the largest.
    times = iter([5.0, 6.0, 4.0] + [3.0 - i / 10 for i in range(20)])

    def milliseconds(run: Callable[[], None]) -> float:
        run()
        return next(times)

    for module in (graphs_module, runner_module):
        monkeypatch.setattr(module, "gpu_milliseconds", milliseconds)
    monkeypatch.setattr(
        engine_module, "choose_sizes", lambda *args: replace(choose_sizes(*args), num_graphed_tokens=64)
    )
    return replays


def test_a_graph_that_finds_no_memory_is_done_without(
    tiny: Path, make_engine: Callable[..., Any], ask: Any, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tiny, max_num_seqs=21)
    num_graphs = len(engine._runner._graphs._graphs)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room for a graph")

    monkeypatch.setattr(StepGraphs, "_capture", fail)
    requests = [ask([3 + i] * (5 + i), id=str(i), max_tokens=6) for i in range(30)]
    outputs = engine.finish(requests, arrivals=random.Random(0))
    assert {len(output.token_ids) for output in outputs.values()} <= set(range(1, 7))
    assert len(engine._runner._graphs._graphs) == num_graphs
    assert engine.load().num_rows == 21
    assert engine.load().num_preemptions == 0


def test_what_sharing_costs_is_measured_in_tokens_that_need_not_be_read(
    tiny: Path, make_engine: Callable[..., Any], replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_engine(tiny, max_num_seqs=21, num_pages=120, page_size=4)._runner
    assert runner.spared_tokens_worth_sharing() is None, "nothing was captured that shares"
    runner.warm_up(num_paced_tokens=64, shares_reading=True)
    # A step of its own 7 ms, the same with sharing 9, and to copy one layer's keys 0.5.
    times = iter([7.0, 9.0])
    monkeypatch.setattr(graphs_module, "gpu_milliseconds", lambda run: (run(), next(times))[1])
    monkeypatch.setattr(runner_module, "gpu_milliseconds", lambda run: (run(), 0.5)[1])
    num_layers = len(runner._kv.keys)
    assert runner.spared_tokens_worth_sharing() == int(4 * 120 * 4 / num_layers)


@pytest.mark.parametrize("is_async", [False, True])
def test_padded_steps_draw_the_same_tokens(
    make_model: Callable[..., Path], make_engine: Callable[..., Any], ask: Any, replays: Replays, is_async: bool
) -> None:
    model = make_model("qwen3", head_dim=16)
    draw = random.Random(4)
    head = [draw.randrange(3, 256) for _ in range(24)]
    requests = [
        ask(
            (head if i % 3 else []) + [draw.randrange(3, 256) for _ in range(draw.choice([1, 5, 30, 90]))],
            id=str(i),
            max_tokens=draw.choice([1, 3, 20]),
            temperature=i % 2,
            seed=i,
            logprobs=1 if i % 5 == 0 else None,
        )
        for i in range(40)
    ]
    settings = {"page_size": 4, "num_pages": 120, "max_num_seqs": 21, "async_scheduling": is_async, "crowded": True}
    engine = make_engine(model, max_num_batched_tokens=100, **settings)
    dropped = set(range(1, 22)) - set(engine._runner._graphs.shapes.sizes)
    assert 16 in dropped
    # So that sharing is worth it on a tiny model.
    engine._scheduler._shares, engine._scheduler._min_spared_tokens = True, 0
    replays.clear()
    outputs = engine.finish(requests, arrivals=random.Random(1))
    assert {shape.mixed for shape in replays} == {False, True}
    assert {shape.num_levels for shape in replays} >= {0, 1}
    assert not any(shape.num_rows in dropped for shape in replays if not shape.mixed)
    plain = make_engine(model, enforce_eager=True, max_num_batched_tokens=100)
    plain._runner._graphs = None
    expected = plain.finish(requests)
    for request in requests:
        assert outputs[request.id].token_ids == expected[request.id].token_ids
        assert outputs[request.id].finish_reason == expected[request.id].finish_reason


@pytest.mark.parametrize("is_async", [False, True])
def test_rows_with_grammars_draw_again_behind_the_step(
    speller: Path, make_engine: Callable[..., Any], ask: Any, replays: Replays, is_async: bool
) -> None:
    settings = {"num_pages": 120, "page_size": 4, "decode": str, "crowded": True, "async_scheduling": is_async}
    engine = make_engine(speller, max_num_seqs=21, max_num_batched_tokens=60, **settings)
    replays.clear()
    outputs = engine.finish(crowd(ask), arrivals=random.Random(1))
    assert {shape.mixed for shape in replays} == {False, True}
    plain = make_engine(speller, decode=str)
    plain._runner._graphs = None
    expected = plain.finish(crowd(ask))
    for request in crowd(ask):
        assert outputs[request.id].token_ids == expected[request.id].token_ids
        assert outputs[request.id].finish_reason == expected[request.id].finish_reason
