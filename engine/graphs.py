"""CUDA graphs of whole steps, captured when a shape of step has been met often enough.

A captured step runs for a fixed number of rows and tokens; smaller steps are padded with rows that have no tokens and
tokens that are nobody's. All graphs share one memory pool, because only one runs at a time, and leave their logits in
one place. Large steps are not captured: they take the device longer than the host. Knows nothing of the model.

R rows of the engine, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.paged_attention import SharedPrefixes
from ..kernels.step_inputs import StepInputs
from .prefixes import NUM_LEVELS, NUM_SPANS, shared_prefixes

# Rows that mixed steps are padded to, before all that there are: rows without tokens cost next to nothing, but how many
# there are decides into how many parts a row's keys are cut.
MIXED_ROWS = (16, 256)
# Until a shape has been met so often, a captured one of up to so many times its tokens serves for it.
TIMES_BEFORE_CAPTURE, MOST_PADDING = 4, 4


class Compute(Protocol):
    """A step's logits, from inputs, what its rows share, and the longest query."""

    def __call__(
        self,
        inputs: StepInputs,
        shared: SharedPrefixes,
        max_query_len: int | None,
        out: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a captured step is made for; if it is not `mixed`, every row has one token."""

    num_tokens: int
    num_rows: int
    num_levels: int
    mixed: bool

    def serves(self, other: Shape) -> bool:
        """Whether a step of the other shape can be padded to this one."""
        same = (self.num_levels, self.mixed) == (other.num_levels, other.mixed)
        return same and self.num_tokens >= other.num_tokens and self.num_rows >= other.num_rows


class StepGraphs:
    """`shape = shape(…)`; fill `inputs(shape, …)`; `run(shape, inputs, compute)` computes the logits.

    `sizes` are the numbers of rows that there are shapes of decodes for, in order. Mixed steps are captured up to
    `max_mixed_tokens`.
    """

    def __init__(self, logits_RV: Tensor, max_mixed_tokens: int) -> None:
        self._logits_RV, self._max_mixed_tokens = logits_RV, max_mixed_tokens
        max_rows = len(logits_RV)
        self.sizes = _sizes(max_rows)
        self._inputs = StepInputs.empty(max(max_rows, _padded(max_mixed_tokens)), max_rows, logits_RV.device)
        num_words = NUM_LEVELS * (3 * NUM_SPANS + 1) + max_rows
        self._shared = torch.zeros(num_words, dtype=torch.int32, device=logits_RV.device)
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._num_met: Counter[Shape] = Counter()
        self._has_run: set[Shape] = set()
        self._stream = torch.cuda.Stream(logits_RV.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def shape(self, num_tokens: int, num_rows: int, num_levels: int) -> Shape | None:
        """The shape that is to serve a step of such a size; None if it is too large to be captured."""
        exact = self.exact(num_tokens, num_rows, num_levels)
        if exact is None or exact in self._graphs:
            return exact
        self._num_met[exact] += 1
        if self._num_met[exact] > TIMES_BEFORE_CAPTURE:
            return exact
        serving = [s for s in self._graphs if s.serves(exact) and s.num_tokens <= MOST_PADDING * num_tokens]
        return min(serving, key=lambda s: (s.num_tokens, s.num_rows), default=exact)

    def exact(self, num_tokens: int, num_rows: int, num_levels: int) -> Shape | None:
        """The smallest shape for a step of such a size, captured or not; None if it is too large to be captured."""
        if num_tokens == num_rows:
            size = self.sizes[bisect_left(self.sizes, num_rows)]
            return Shape(size, size, num_levels, mixed=False)
        if num_tokens > self._max_mixed_tokens:
            return None
        rows = min((r for r in MIXED_ROWS if num_rows <= r <= self.sizes[-1]), default=self.sizes[-1])
        return Shape(_padded(num_tokens), rows, num_levels, mixed=True)

    def inputs(self, shape: Shape, shared: Tensor) -> StepInputs:
        """What to fill before `run`; `shared` says what the rows share (`Sharing.words`)."""
        self._shared[: len(shared)].copy_(shared)
        return self._inputs.narrowed(shape.num_tokens, shape.num_rows)

    def run(self, shape: Shape, inputs: StepInputs, compute: Compute) -> Tensor:
        """Compute the logits, by a graph if this shape has been run before. The next run overwrites them."""
        if shape not in self._has_run:
            self._has_run.add(shape)
            return self._step(shape, inputs, compute)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape, inputs, compute)
        self._graphs[shape].replay()
        return self._logits_RV[: shape.num_rows]

    def drop_slow_sizes(self) -> None:
        """Forget each captured size that takes as long as a larger one: products of some sizes are slow."""
        kept: list[int] = []
        best = float("inf")
        for size in reversed(self.sizes):
            shape = Shape(size, size, 0, mixed=False)
            milliseconds = self._replay_milliseconds(self._graphs[shape])
            if milliseconds < best:
                best = milliseconds
                kept.append(size)
            else:
                del self._graphs[shape]
        self.sizes = kept[::-1]

    def _replay_milliseconds(self, graph: torch.cuda.CUDAGraph) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _step(self, shape: Shape, inputs: StepInputs, compute: Compute) -> Tensor:
        shared = shared_prefixes(self._shared, shape.num_levels)
        shared = replace(shared, own_first_keys=shared.own_first_keys[: shape.num_rows])
        return compute(inputs, shared, None if shape.mixed else 1, self._logits_RV[: shape.num_rows])

    def _capture(self, shape: Shape, inputs: StepInputs, compute: Compute) -> torch.cuda.CUDAGraph:
        """Record a step without running it, and without waiting for what runs."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(shape, inputs, compute)
            finally:
                graph.capture_end()
        return graph


def _sizes(max_rows: int) -> list[int]:
    """Finely graded where a padded row costs, coarsely where the reading of the weights hides it."""
    sizes = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, *range(256, 1024, 64), *range(1024, max_rows, 128))
    return [size for size in sizes if size < max_rows] + [max_rows]


def _padded(num_tokens: int) -> int:
    """The number of tokens that a mixed step is padded to: at most an eighth more, in whole tiles of a product."""
    step = max(128, (1 << (num_tokens - 1).bit_length()) // 8)
    return -(-num_tokens // step) * step
