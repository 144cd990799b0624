"""Who shares pages with whom: checked against what a page table says, row by row."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pressrun.engine.prefixes import MIN_ROWS, Sharing, all_share_a_page, find_sharing, shared_prefixes


def table_of(*rows: list[int]) -> np.ndarray:
    """Rows of pages, padded with pages of nobody else."""
    width = max(map(len, rows)) + 1
    return np.array([[*row, *(-1000 * i - 1 - j for j in range(width - len(row)))] for i, row in enumerate(rows)])


def find(*rows: list[int]) -> Sharing | None:
    return find_sharing(table_of(*rows).astype(np.int32), np.array([len(row) for row in rows]))


def check(sharing: Sharing, rows: list[list[int]]) -> None:
    """Every row's groups make up its first columns, one after another, and hold the pages that its row holds."""
    assert sorted(sharing.order.tolist()) == list(range(len(rows)))
    covered = [0] * len(rows)
    for level in sharing.levels:
        assert (level.starts[1:] >= level.ends[:-1]).all(), "groups of one level overlap"
        for start, end, first, last in zip(
            *(x.tolist() for x in (level.starts, level.ends, level.first_columns, level.end_columns)), strict=True
        ):
            assert end - start >= MIN_ROWS
            assert last > first
            leader = rows[sharing.order[start]]
            for place in range(start, end):
                assert covered[place] == first
                assert rows[sharing.order[place]][first:last] == leader[first:last]
                covered[place] = last
    assert covered == sharing.own_columns.tolist()


def test_rows_of_their_own_share_nothing() -> None:
    assert find([1, 2], [3, 4], [5], [6], []) is None


def test_rows_with_one_beginning_are_one_group() -> None:
    rows = [[1, 2, 3, 9], [50], [1, 2, 3], [1, 2, 3, 8, 7], [51, 52], [1, 2, 3, 6]]
    sharing = find(*rows)
    assert sharing is not None
    check(sharing, rows)
    assert sharing.num_spared == 3 * 3
    assert sharing.own_columns.tolist() == [3, 3, 3, 3, 0, 0]


def test_a_second_level_holds_what_only_some_of_a_group_share() -> None:
    system = [1, 2]
    rows = [[*system, *tail, 100 + i] for i in range(5) for tail in ([10, 11, 12], [20], [])]
    sharing = find(*rows)
    assert sharing is not None
    check(sharing, rows)
    assert len(sharing.levels) == 2
    assert sharing.num_spared == 14 * 2 + 4 * 3 + 4 * 1


@pytest.mark.parametrize("seed", range(30))
def test_any_tree_of_prefixes_is_grouped_rightly(seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for i in range(draw.randint(1, 80)):
        row: list[int] = []
        for depth in range(draw.randint(0, 4)):
            branch = draw.randrange(3)
            row += [hash((*row, depth, branch, j)) % 2**31 for j in range(1 + branch)]
        rows.append([*row, *(2**31 + 10 * i + j for j in range(draw.randint(0, 3)))])
    table = table_of(*rows)
    sharing = find_sharing(table, np.array([len(row) for row in rows]))
    if sharing is not None:
        check(sharing, rows)
    beginnings = [tuple(row[:1]) for row in rows if row]
    assert (sharing is not None) == any(beginnings.count(first) >= MIN_ROWS for first in set(beginnings))


def test_a_page_that_all_share_is_one_group_on_each_level() -> None:
    sharing = all_share_a_page(5, 2)
    assert [level.num_spared for level in sharing.levels] == [4, 4]
    prefixes = shared_prefixes(torch.from_numpy(sharing.words(16, 7)), 2)
    for number, level in enumerate(prefixes.levels):
        assert level.group_starts[:3].tolist() == [0, 0, 5]
        assert (int(level.first_keys[1]), int(level.end_keys[1])) == (16 * number, 16 * number + 16)
    assert prefixes.own_first_keys.tolist() == [32] * 5 + [0, 0]
