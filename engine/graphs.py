"""CUDA graphs of whole decode steps, captured when a size of step is met for the second time.

A captured step runs for a fixed number of rows; steps with fewer are padded with rows that have no tokens. All graphs
share one memory pool, because only one runs at a time, and leave their logits in one place. Knows nothing of the model.

Q rows of a captured step, each with one token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.paged_attention import SharedPrefixes
from ..kernels.step_inputs import StepInputs
from .prefixes import NUM_LEVELS, NUM_SPANS, shared_prefixes

# Rows are padded to one of these, and above to a multiple of 16 or of more, at most an eighth too many.
SMALL_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
SHORTEST_CONTEXT = 1024


class Compute(Protocol):
    """A step's logits, from inputs, what its rows share, longest query and longest context."""

    def __call__(
        self,
        inputs: StepInputs,
        shared: SharedPrefixes,
        max_query_len: int,
        max_context_len: int,
        out: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a captured step is made for: rows, the longest context, and levels of shared prefixes."""

    num_rows: int
    max_context_len: int
    num_levels: int


class StepGraphs:
    """`shape = shape(…)`; fill `inputs(shape, …)`; `run(shape, inputs)` computes the logits."""

    def __init__(self, compute: Compute, logits_RV: Tensor, max_len: int) -> None:
        self._compute, self._logits_RV, self._max_len = compute, logits_RV, max_len
        self._max_rows = len(logits_RV)
        self._inputs = StepInputs.empty(self._max_rows, self._max_rows, logits_RV.device)
        num_words = NUM_LEVELS * (3 * NUM_SPANS + 1) + self._max_rows
        self._shared = torch.zeros(num_words, dtype=torch.int32, device=logits_RV.device)
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._met: set[Shape] = set()
        self._stream = torch.cuda.Stream(logits_RV.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def shape(self, num_rows: int, max_context_len: int, num_levels: int) -> Shape:
        """The shape that serves so many rows."""
        longest = min(self._max_len, max(SHORTEST_CONTEXT, 1 << (max_context_len - 1).bit_length()))
        return Shape(min(padded(num_rows), self._max_rows), longest, num_levels)

    def inputs(self, shape: Shape, shared: Tensor) -> StepInputs:
        """What to fill before `run`; `shared` says what the rows share (`Sharing.words`)."""
        self._shared[: len(shared)].copy_(shared)
        return self._inputs.narrowed(shape.num_rows, shape.num_rows)

    def run(self, shape: Shape, inputs: StepInputs) -> Tensor:
        """Compute the logits, by a graph if this shape has been met before. The next run overwrites them."""
        if shape not in self._met:
            self._met.add(shape)
            return self._step(shape, inputs)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape, inputs)
        self._graphs[shape].replay()
        return self._logits_RV[: shape.num_rows]

    def _step(self, shape: Shape, inputs: StepInputs) -> Tensor:
        shared = shared_prefixes(self._shared, shape.num_levels)
        shared = replace(shared, own_first_keys=shared.own_first_keys[: shape.num_rows])
        return self._compute(inputs, shared, 1, shape.max_context_len, self._logits_RV[: shape.num_rows])

    def _capture(self, shape: Shape, inputs: StepInputs) -> torch.cuda.CUDAGraph:
        """Record a step without running it, and without waiting for what runs."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(shape, inputs)
            finally:
                graph.capture_end()
        return graph


def padded(num_rows: int) -> int:
    """The size of captured step that serves so many rows."""
    for size in SMALL_SIZES:
        if num_rows <= size:
            return size
    step = 1 << max(4, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step
