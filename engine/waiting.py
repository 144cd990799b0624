"""Sequences that wait for a row, in the order in which they are to get one.

By priority, and of one priority in rounds: a round is all that wait when the round before has been admitted, so that
nobody is overtaken for ever. Within a round sequences that begin alike follow each other, so that what they share is
computed and read together; and those that will run longest start first, because a batch ends with its last sequence.
Sources: Zheng et al. 2024 (BatchLLM), https://arxiv.org/abs/2412.03594; Graham 1969 (longest processing time first).

Knows nothing of pages' owners or rows.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .forecast import FloatArray
from .pages import IntArray
from .request import URGENT
from .sequence import Sequence

# Groups within groups, so deep.
MOST_LEVELS = 32
# Sequences are kept together for the sake of so many tokens in common, beside those that the whole round has.
MIN_COMMON_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What a round still wants, in order: tokens to compute up to and with each sequence's prompt, and to generate."""

    prompt_tokens: IntArray
    lengths: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What its sequences want, by place, and the first of their places."""

    first_place: int
    prompt_tokens: IntArray
    lengths: FloatArray


class Waiting:
    """`add` in order of arrival; look at the `first`, then `pop` it; `put_back` who must wait after all.

    `expect` says how many tokens sequences will generate.
    """

    def __init__(self, page_size: int, expect: Callable[[list[Sequence]], FloatArray]) -> None:
        self._page_size, self._expect = page_size, expect
        # Sequences of rounds that have begun, each with its place for good; and by priority those behind them.
        self._begun: list[tuple[tuple[int, int], Sequence]] = []
        self._num_begun: Counter[int] = Counter()
        self._behind: dict[int, list[Sequence]] = {}
        self._num_places = 0
        self._rounds: dict[int, _Round] = {}  # of each priority the one that began last

    def __len__(self) -> int:
        return len(self._begun) + sum(map(len, self._behind.values()))

    @property
    def urgent(self) -> bool:
        """Whether who is next is urgent."""
        return any(priority < URGENT for priority in self._behind) or (
            bool(self._begun) and self._begun[0][1].is_urgent
        )

    def add(self, sequence: Sequence) -> None:
        self._behind.setdefault(sequence.request.priority, []).append(sequence)

    def first(self) -> Sequence | None:
        """Who is next; None if nobody waits."""
        urgent = min(self._behind, default=None)
        if urgent is not None and (not self._begun or urgent < self._begun[0][0][0]):
            self._begin(urgent)
        return self._begun[0][1] if self._begun else None

    def pop(self) -> Sequence:
        """Take out who is next."""
        (priority, _), sequence = heapq.heappop(self._begun)
        self._num_begun[priority] -= 1
        return sequence

    def put_back(self, sequence: Sequence) -> None:
        """One that has been taken out takes its place again."""
        heapq.heappush(self._begun, (sequence.order, sequence))
        self._num_begun[sequence.request.priority] += 1

    def remove(self, gone: set[Sequence]) -> None:
        self._begun = [entry for entry in self._begun if entry[1] not in gone]
        heapq.heapify(self._begun)
        self._num_begun = Counter(priority for (priority, _), _ in self._begun)
        kept = {priority: [s for s in behind if s not in gone] for priority, behind in self._behind.items()}
        self._behind = {priority: behind for priority, behind in kept.items() if behind}

    def ahead(self) -> Ahead | None:
        """What is left of the round that began last, if nobody waits beside or behind it."""
        if not self._begun or self._behind:
            return None
        (priority, place), _ = self._begun[0]
        last = self._rounds[priority]
        start = place - last.first_place
        if start < 0 or self._num_begun[priority] < len(self._begun):
            return None
        return Ahead(prompt_tokens=np.cumsum(last.prompt_tokens[start:]), lengths=last.lengths[start:])

    def _begin(self, priority: int) -> None:
        """Give everyone of a priority who waits behind a place."""
        arrived = self._behind.pop(priority)
        lengths = self._expect(arrived)
        order, num_common = arrange(arrived, lengths, -(-MIN_COMMON_TOKENS // self._page_size))
        first_place = self._num_places
        for place, index in enumerate(order, self._num_places):
            arrived[index].place = place
            self.put_back(arrived[index])
        self._num_places += len(order)
        num_prompt = np.array([arrived[index].num_prompt for index in order])
        own_tokens = num_prompt - np.array(num_common) * self._page_size
        self._rounds[priority] = _Round(first_place=first_place, prompt_tokens=own_tokens, lengths=lengths[order])


def arrange(sequences: list[Sequence], lengths: FloatArray, min_common: int) -> tuple[list[int], list[int]]:
    """An order for sequences, as indices, and how many first pages each has in common with the one before it.

    Those with `min_common` pages in common, not counting what all have, are a group, and are arranged alike. The group
    whose longest member is longest goes first, among equals the one that arrived first.
    """
    by_pages = sorted(range(len(sequences)), key=lambda index: sequences[index].page_hashes)
    num_common = [0, *(_num_common(sequences[a].page_hashes, sequences[b].page_hashes) for a, b in pairwise(by_pages))]
    arranged = _arranged(list(zip(by_pages, num_common, strict=True)), lengths, min_common, MOST_LEVELS)
    return [index for index, _ in arranged], [0, *(common for _, common in arranged[1:])]


def _arranged(
    members: list[tuple[int, int]], lengths: FloatArray, min_common: int, num_levels: int
) -> list[tuple[int, int]]:
    """Members, each with what it has in common with the one before it, in another order."""
    if len(members) == 1 or num_levels == 0:
        return members
    common_to_all = min(common for _, common in members[1:])
    groups: list[list[tuple[int, int]]] = []
    for place, (index, common) in enumerate(members):
        if place == 0 or common - common_to_all < min_common:
            groups.append([])
        groups[-1].append((index, common))
    groups.sort(key=lambda group: (-max(lengths[index] for index, _ in group), min(index for index, _ in group)))
    arranged: list[tuple[int, int]] = []
    for group in groups:
        (first, _), *others = _arranged(group, lengths, min_common, num_levels - 1)
        # Between groups only what all have is certain.
        arranged += [(first, common_to_all), *others]
    return arranged


def _num_common(one: list[bytes], other: list[bytes]) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
