"""The shapes of step that CUDA graphs are captured for, and which of them serves a step.

A captured step has a fixed number of rows and tokens, so shapes are graded: finely where padding costs, coarsely where
it does not. Large mixed steps have none, because they take the device longer than the host needs to launch them kernel
by kernel. Knows nothing of graphs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

# Rows that mixed steps are padded to, before all that there are: a row without tokens costs its share of the head.
MIXED_ROWS = (16, 64, 128, 256, 384, 512, 768, 1024, 1536)
# Until a shape has been met so often, a captured one of up to so many times its tokens and rows serves for it.
TIMES_BEFORE_CAPTURE, MOST_PADDING = 4, 4
NUM_DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What a captured step is made for; if it is not `mixed`, every row has one token."""

    num_tokens: int
    num_rows: int
    num_levels: int  # of shared prefixes
    mixed: bool

    def serves(self, other: Shape) -> bool:
        """Whether a step of the other shape can be padded to this one, and is worth it."""
        same = (self.num_levels, self.mixed) == (other.num_levels, other.mixed)
        tokens = other.num_tokens <= self.num_tokens <= MOST_PADDING * other.num_tokens
        return same and tokens and other.num_rows <= self.num_rows <= MOST_PADDING * other.num_rows


class Shapes:
    """`sizes` are the numbers of rows that there are shapes of decodes for, in order; they may become fewer."""

    def __init__(self, max_rows: int, max_mixed_tokens: int) -> None:
        self._max_rows, self._max_mixed_tokens = max_rows, max_mixed_tokens
        # Below 256 rows the reading of the weights hides what is padded.
        sizes = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, *range(256, 1024, 64), *range(1024, max_rows, 128))
        self.sizes = [size for size in sizes if size < max_rows] + [max_rows]
        self._num_met: Counter[Shape] = Counter()

    @property
    def max_tokens(self) -> int:
        """Of any shape."""
        return max(self._max_rows, _padded(self._max_mixed_tokens))

    def decodes(self, num_rows: int, num_levels: int = 0) -> Shape:
        """The smallest shape for so many rows of one token each."""
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        return Shape(size, size, num_levels, mixed=False)

    def exact(self, num_tokens: int, num_rows: int, num_levels: int) -> Shape | None:
        """The smallest shape for a step; None if it is too large for any."""
        if num_tokens == num_rows:
            return self.decodes(num_rows, num_levels)
        if num_tokens > self._max_mixed_tokens:
            return None
        rows = next((rows for rows in MIXED_ROWS if num_rows <= rows <= self._max_rows), self._max_rows)
        return Shape(_padded(num_tokens), rows, num_levels, mixed=True)

    def doubling(self) -> list[Shape]:
        """Mixed shapes of most rows, each of half as many tokens as the one before."""
        sizes = [self._max_mixed_tokens >> i for i in range(NUM_DOUBLINGS)]
        return [Shape(_padded(size), self._max_rows, 0, mixed=True) for size in sizes if size > self._max_rows]

    def paced(self, num_tokens: int) -> list[Shape]:
        """Shapes that steps of this many tokens to twice as many will have, the largest first."""
        tokens = {_padded(num) for num in (num_tokens, num_tokens * 3 // 2, num_tokens * 2)}
        return [
            Shape(num, rows, 0, mixed=True)
            for num in sorted(tokens, reverse=True)
            for rows in reversed(MIXED_ROWS)
            if num <= self._max_mixed_tokens and num // 8 <= rows < num and rows <= self._max_rows
        ]

    def serving(self, exact: Shape, captured: Collection[Shape]) -> Shape:
        """A captured shape for a step whose exact shape is not, while that is not known to come often; or else it."""
        self._num_met[exact] += 1
        if self._num_met[exact] > TIMES_BEFORE_CAPTURE:
            return exact
        serving = [shape for shape in captured if shape.serves(exact)]
        return min(serving, key=lambda shape: (shape.num_tokens, shape.num_rows), default=exact)


def _padded(num_tokens: int) -> int:
    """The number of tokens that a mixed step is padded to: at most an eighth more, in whole tiles of a product."""
    step = max(128, (1 << (num_tokens - 1).bit_length()) // 16)
    return -(-num_tokens // step) * step
