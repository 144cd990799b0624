"""CUDA graphs of whole steps, some for each shape that is worth it (`shapes.py`): a step is captured in parts.

Steps smaller than their shape are padded with rows that have no tokens and tokens that are nobody's. All graphs share
one memory pool, because only one runs at a time, and leave logits and draws in one place. Knows nothing of the model.

R rows of the engine, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.paged_attention import SharedPrefixes
from ..kernels.step_inputs import StepInputs
from .parts import NUM_PARTS, Between, Captured, before_layers
from .prefixes import NUM_LEVELS, NUM_SPANS, shared_prefixes
from .sampling import Drawn
from .shapes import Shape, Shapes

log = logging.getLogger(__name__)


# Each keeps some memory of its own; what is left aside for them holds so many.
MOST_GRAPHS = 256


class Compute(Protocol):
    """A step's logits and draws, from inputs, what its rows share, and the longest query."""

    def __call__(
        self,
        inputs: StepInputs,
        shared: SharedPrefixes,
        max_query_len: int | None,
        out: Drawn | None = None,
        before_layer: Callable[[int], None] | None = None,
    ) -> Drawn: ...


class StepGraphs:
    """`shape = shape(…)`; fill `inputs(shape, …)`; `run(shape, inputs, compute)` computes logits and draws.

    Mixed steps are captured up to `max_mixed_tokens`.
    """

    def __init__(self, logits_RV: Tensor, max_mixed_tokens: int, num_layers: int) -> None:
        max_rows = len(logits_RV)
        tokens_R = torch.zeros(max_rows, dtype=torch.int64, device=logits_RV.device)
        self._drawn = Drawn(logits_SV=logits_RV, tokens_S=tokens_R)
        self.shapes = Shapes(max_rows, max_mixed_tokens)
        self._inputs = StepInputs.empty(self.shapes.max_tokens, max_rows, logits_RV.device)
        # Steps that are only compiled find in it what was there before.
        self._inputs.clear()
        num_words = NUM_LEVELS * (3 * NUM_SPANS + 1) + max_rows
        self._shared = torch.zeros(num_words, dtype=torch.int32, device=logits_RV.device)
        self._layers_a_part = -(-num_layers // NUM_PARTS)
        self._graphs: dict[Shape, Captured] = {}
        self._has_run: set[Shape] = set()
        self._most_graphs = MOST_GRAPHS
        self._stream = torch.cuda.Stream(logits_RV.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def shape(self, num_tokens: int, num_rows: int, num_levels: int) -> Shape | None:
        """The shape that is to serve a step of such a size; None if it is too large to be captured."""
        exact = self.shapes.exact(num_tokens, num_rows, num_levels)
        if exact is None or exact in self._graphs:
            return exact
        return self.shapes.serving(exact, self._graphs)

    def inputs(self, shape: Shape, shared: Tensor) -> StepInputs:
        """What to fill before `run`; `shared` says what the rows share (`Sharing.words`)."""
        self._shared[: len(shared)].copy_(shared)
        return self._inputs.narrowed(shape.num_tokens, shape.num_rows)

    def run(self, shape: Shape, inputs: StepInputs, compute: Compute, between: Between | None = None) -> Drawn:
        """Compute the step, by graphs if this shape has been run before. The next run overwrites what it leaves.

        `between` is called between the parts of a captured step.
        """
        graph = self._graphs.get(shape)
        if graph is None and shape in self._has_run and len(self._graphs) < self._most_graphs:
            try:
                graph = self._graphs[shape] = self._capture(shape, inputs, compute)
            except torch.OutOfMemoryError as e:
                self._most_graphs = len(self._graphs)
                log.warning("no memory for more than %d graphs, so none of %s: %s", self._most_graphs, shape, e)
        if graph is None:
            drawn = self.compute(shape, inputs, compute, before_layers(between))
            self._has_run.add(shape)
            return drawn
        graph.replay(between)
        return self._drawn.narrowed(shape.num_rows)

    def compute(
        self,
        shape: Shape,
        inputs: StepInputs,
        compute: Compute,
        before_layer: Callable[[int], None] | None = None,
    ) -> Drawn:
        """Compute the step without graphs."""
        shared = shared_prefixes(self._shared, shape.num_levels)
        shared = replace(shared, own_first_keys=shared.own_first_keys[: shape.num_rows])
        max_query_len, out = None if shape.mixed else 1, self._drawn.narrowed(shape.num_rows)
        return compute(inputs, shared, max_query_len, out, before_layer)

    def drop_slow_sizes(self) -> None:
        """Forget each captured size that takes as long as a larger one: products of some sizes are slow."""
        kept: list[int] = []
        best = float("inf")
        for size in reversed(self.shapes.sizes):
            shape = self.shapes.decodes(size)
            milliseconds = gpu_milliseconds(self._graphs[shape].replay)
            if milliseconds < best:
                best = milliseconds
                kept.append(size)
            else:
                del self._graphs[shape]
        self.shapes.sizes = kept[::-1]

    def milliseconds(self, shape: Shape) -> float | None:
        """What a captured step takes on the inputs that were filled in for it last; None if it was not captured."""
        graph = self._graphs.get(shape)
        return None if graph is None else gpu_milliseconds(graph.replay)

    def _capture(self, shape: Shape, inputs: StepInputs, compute: Compute) -> Captured:
        """Record a step without running it, and without waiting for what runs."""
        graphs: list[torch.cuda.CUDAGraph] = []

        def begin() -> None:
            graphs.append(torch.cuda.CUDAGraph())
            graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")

        def cut(layer: int) -> None:
            if layer % self._layers_a_part == 0:
                graphs[-1].capture_end()
                begin()

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            begin()
            try:
                self.compute(shape, inputs, compute, cut)
            except BaseException:
                with suppress(RuntimeError):  # What went wrong tells more than that the capture did.
                    graphs[-1].capture_end()
                raise
            graphs[-1].capture_end()
        return Captured(graphs)


def gpu_milliseconds(run: Callable[[], object]) -> float:
    """What the device takes for it, the second time."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
