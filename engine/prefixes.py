"""Which running sequences share the first pages of their contexts, so that a step can read those once for all of them.

Sequences share a page when its number stands in the same column of their page tables. Groups are found on two levels: a
system prompt, then what follows it in some of the sequences (examples, one of several documents). Knows nothing of
tokens or of how attention is computed.

S rows of the page table, N columns, C groups of one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..kernels.paged_attention import SharedLevel, SharedPrefixes
from .pages import IntArray

Table = npt.NDArray[np.int32]

NUM_LEVELS = 2
MAX_GROUPS = 32
# With rows between two groups that are in neither, so many spans of rows make up a level.
NUM_SPANS = 2 * MAX_GROUPS + 1
# Smaller groups do not fill the tiles that a group's queries are worked on in.
MIN_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Group c: the rows starts[c] ≤ s < ends[c] share the pages in columns first_columns[c] to end_columns[c]."""

    starts: IntArray
    ends: IntArray
    first_columns: IntArray
    end_columns: IntArray

    @property
    def num_spared(self) -> int:
        """Pages that need not be read, because a neighbour's reading serves."""
        return int(((self.ends - self.starts - 1) * (self.end_columns - self.first_columns)).sum())

    def words(self, page_size: int) -> IntArray:
        """Spans of rows that follow each other: between two groups lies one that shares nothing, maybe of no rows."""
        bounds = np.full(NUM_SPANS + 1, self.ends[-1])
        bounds[0], bounds[1 : 2 * len(self.starts) : 2], bounds[2 : 2 * len(self.starts) : 2] = (
            0,
            self.starts,
            self.ends[:-1],
        )
        keys = np.zeros((2, NUM_SPANS), np.int64)
        keys[:, 1 : 2 * len(self.starts) : 2] = self.first_columns * page_size, self.end_columns * page_size
        return np.concatenate([bounds, *keys])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Rows in an order that has groups together, and the groups; own_columns [S] is each row's first own column."""

    order: IntArray
    levels: tuple[Level, ...]
    own_columns: IntArray

    @property
    def num_spared(self) -> int:
        return sum(level.num_spared for level in self.levels)

    def words(self, page_size: int, num_rows: int) -> IntArray:
        """As attention takes it, in tokens instead of pages, for a step that has other rows behind these.

        For each level NUM_SPANS + 1 starts of spans, their NUM_SPANS first shared keys and their end keys; then each
        row's first own key.
        """
        own_keys = np.zeros(num_rows, np.int64)
        own_keys[: len(self.own_columns)] = self.own_columns * page_size
        return np.concatenate([*(level.words(page_size) for level in self.levels), own_keys])


def all_share_a_page(num_rows: int, num_levels: int) -> Sharing:
    """All rows in one group on each level, each of which is one page."""
    columns = np.arange(num_levels)[:, None]
    levels = tuple(
        Level(starts=np.zeros(1, np.int64), ends=np.full(1, num_rows), first_columns=c, end_columns=c + 1)
        for c in columns
    )
    return Sharing(order=np.arange(num_rows), levels=levels, own_columns=np.full(num_rows, num_levels))


def shared_prefixes(words: Tensor, num_levels: int) -> SharedPrefixes:
    """Views of `Sharing.words` on the device."""
    levels = []
    for _ in range(num_levels):
        starts, first_keys, end_keys, words = words.tensor_split([NUM_SPANS + 1, 2 * NUM_SPANS + 1, 3 * NUM_SPANS + 1])
        levels.append(SharedLevel(group_starts=starts, first_keys=first_keys, end_keys=end_keys))
    return SharedPrefixes(levels=tuple(levels), own_first_keys=words)


@dataclass(frozen=True, slots=True)
class _Group:
    rows: IntArray
    first: int
    end: int

    @property
    def num_spared(self) -> int:
        return (len(self.rows) - 1) * (self.end - self.first)


def find_sharing(table_SN: Table, num_full_S: IntArray) -> Sharing | None:
    """Group the rows of a page table whose first num_full_S columns hold full pages; None if nobody shares."""
    level = _groups(table_SN, num_full_S, np.arange(len(table_SN)), 0)
    levels = [_largest(level)]
    while levels[-1] and len(levels) < NUM_LEVELS:
        finer = [part for group in levels[-1] for part in _groups(table_SN, num_full_S, group.rows, group.end)]
        levels.append(_largest(finer))
    levels = [groups for groups in levels if groups]
    if not levels:
        return None
    order = _order(len(table_SN), levels)
    place_S = np.empty_like(order)
    place_S[order] = np.arange(len(order))
    own_columns_S = np.zeros_like(order)
    for groups in levels:
        for group in groups:
            own_columns_S[place_S[group.rows]] = group.end
    return Sharing(order=order, levels=tuple(_level(groups, place_S) for groups in levels), own_columns=own_columns_S)


def _groups(table_SN: Table, num_full_S: IntArray, rows: IntArray, column: int) -> list[_Group]:
    """The groups among some rows that share the page in a column, each with all columns from there that it shares."""
    rows = rows[num_full_S[rows] > column]
    if len(rows) < MIN_ROWS:
        return []
    pages = table_SN[rows, column]
    by_page = np.argsort(pages, kind="stable")
    _, firsts, counts = np.unique(pages[by_page], return_index=True, return_counts=True)
    found: list[_Group] = []
    for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
        if count >= MIN_ROWS:
            members = rows[by_page[first : first + count]]
            found.append(_Group(members, column, _end(table_SN, members, column, int(num_full_S[members].min()))))
    return found


def _end(table_SN: Table, rows: IntArray, first: int, limit: int) -> int:
    """The column up to which the rows agree, from `first` on."""
    agree = (table_SN[rows, first:limit] == table_SN[rows[0], first:limit]).all(axis=0)
    return first + (len(agree) if agree.all() else int(agree.argmin()))


def _largest(groups: list[_Group]) -> list[_Group]:
    return sorted(groups, key=lambda group: group.num_spared, reverse=True)[:MAX_GROUPS]


def _order(num_rows: int, levels: list[list[_Group]]) -> IntArray:
    """Rows of a group next to each other, on every level; the others last."""
    keys = []
    for groups in levels:
        key = np.full(num_rows, MAX_GROUPS, np.int64)
        for number, group in enumerate(groups):
            key[group.rows] = number
        keys.append(key)
    return np.lexsort(keys[::-1])


def _level(groups: list[_Group], place_S: IntArray) -> Level:
    starts = np.array([place_S[group.rows].min() for group in groups])
    by_start = np.argsort(starts)
    sizes = np.array([len(group.rows) for group in groups])
    return Level(
        starts=starts[by_start],
        ends=(starts + sizes)[by_start],
        first_columns=np.array([group.first for group in groups])[by_start],
        end_columns=np.array([group.end for group in groups])[by_start],
    )
