"""How long running sequences will still grow, and whether the page pool can hold them at the height of it.

A sequence that may end early is expected to be as long as those that have ended lately and were longer than it is now.
Sequences are admitted while the pool's highest use, as far as that can be foreseen, stays within it: a wrong guess
costs a preemption, never a result. Knows nothing of rows or of who waits.

S running sequences. Times are steps, of one token each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .pages import IntArray

FloatArray = npt.NDArray[np.float64]

# Lengths of the last sequences that ended, and what is believed before any has.
NUM_REMEMBERED = 1024
FIRST_GUESS = 256


class LengthForecast:
    """Learns how many tokens sequences generate before they end by themselves."""

    def __init__(self) -> None:
        self._recent = np.full(NUM_REMEMBERED, FIRST_GUESS, np.int64)
        self._num_seen = 0
        self._sorted: FloatArray | None = None
        self._sums_beyond: FloatArray | None = None

    def learn(self, lengths: IntArray) -> None:
        """Sequences have ended with these numbers of generated tokens."""
        for length in lengths.tolist():
            self._recent[self._num_seen % NUM_REMEMBERED] = length
            self._num_seen += 1
        self._sorted = None

    def remaining(self, generated_S: IntArray, most_S: IntArray, may_end_early_S: npt.NDArray[np.bool_]) -> FloatArray:
        """The tokens still to come of sequences that have generated so many: `most_S` if none may end early."""
        if self._sorted is None:
            self._sorted = np.sort(self._recent[: max(1, min(self._num_seen, NUM_REMEMBERED))]).astype(np.float64)
            self._sums_beyond = np.append(np.cumsum(self._sorted[::-1])[::-1], 0.0)
        assert self._sums_beyond is not None
        first_longer_S = np.searchsorted(self._sorted, generated_S, side="right")
        num_longer_S = len(self._sorted) - first_longer_S
        mean_S = self._sums_beyond[first_longer_S] / np.maximum(num_longer_S, 1)
        # One that has outgrown all others is expected to be half done.
        expected_S = np.where(num_longer_S > 0, mean_S - generated_S, np.maximum(generated_S, 1))
        return np.where(may_end_early_S, np.minimum(expected_S, most_S), most_S)


class Outlook:
    """The pages that running sequences will own, at every moment at which one of them ends."""

    def __init__(self, remaining_S: FloatArray, own_pages_S: FloatArray, *, shared_pages: int, page_size: int) -> None:
        order = np.argsort(remaining_S, kind="stable")
        self._remaining_S, self._own_pages_S = remaining_S[order], own_pages_S[order]
        self._shared_pages, self._page_size = shared_pages, page_size

    def peak_with(self, remaining: float, own_pages: float, shared_pages: int) -> float:
        """The most pages in use at once if one more sequence is admitted, which adds so many shared ones."""
        remaining_S, own_pages_S = self._with(remaining, own_pages)
        num_left_S = np.arange(len(remaining_S), 0, -1)
        # Before the k-th shortest ends, it and all longer ones have grown by what it still had to come.
        held_S = np.cumsum(own_pages_S[::-1])[::-1] + num_left_S * remaining_S / self._page_size
        return float(held_S.max()) + self._shared_pages + shared_pages

    def add(self, remaining: float, own_pages: float, shared_pages: int) -> None:
        """Count it in."""
        self._remaining_S, self._own_pages_S = self._with(remaining, own_pages)
        self._shared_pages += shared_pages

    def _with(self, remaining: float, own_pages: float) -> tuple[FloatArray, FloatArray]:
        place = int(np.searchsorted(self._remaining_S, remaining))
        return np.insert(self._remaining_S, place, remaining), np.insert(self._own_pages_S, place, own_pages)
