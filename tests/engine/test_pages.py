"""The page pool alone: what is matched, taken, published, released and evicted."""

from __future__ import annotations

import numpy as np
import pytest

from pressrun.engine.pages import Match, PagePool, page_hash

NOTHING = Match(pages=[], num_unowned=0)


def names(*tokens: int) -> list[bytes]:
    """The chained hashes of pages of one token each."""
    found: list[bytes] = []
    for token in tokens:
        found.append(page_hash(found[-1] if found else b"", np.array([token], np.int32)))
    return found


def published(pool: PagePool, hashes: list[bytes]) -> np.ndarray:
    pages = pool.grow(len(hashes))
    for page, name in zip(pages.tolist(), hashes, strict=True):
        pool.publish(page, name)
    return pages


def test_a_hash_names_the_page_and_all_before_it() -> None:
    assert names(1, 2, 3) == names(1, 2, 3)
    assert names(1, 2, 3)[2] != names(4, 2, 3)[2]
    assert names(1, 2)[:1] == names(1, 3)[:1]


def test_released_pages_are_found_again_and_owned_by_whoever_takes_them() -> None:
    pool = PagePool(4)
    pages = published(pool, names(1, 2))
    pool.release(pages)
    match = pool.match(names(1, 2, 3))
    assert match == Match(pages=pages.tolist(), num_unowned=2)
    taken = pool.take(match, 1)
    assert taken.tolist()[:2] == pages.tolist()
    assert pool.num_free == 1
    pool.check([taken])


def test_a_match_ends_where_the_prefix_does() -> None:
    pool = PagePool(4)
    pages = published(pool, names(1, 2, 3))
    assert pool.match(names(1, 9, 3)).pages == pages.tolist()[:1]
    assert pool.match(names(9, 2, 3)) == NOTHING
    pool.check([pages])


def test_shared_pages_are_free_when_the_last_owner_releases_them() -> None:
    pool = PagePool(3)
    first = published(pool, names(1, 2))
    match = pool.match(names(1, 2))
    assert match.num_unowned == 0
    second = pool.take(match, 1)
    pool.check([first, second])
    assert (pool.num_released(first), pool.num_released(second)) == (0, 1)
    assert pool.num_released(np.concatenate([first, second])) == 3
    pool.release(first)
    assert pool.num_free == 0
    pool.release(second)
    assert pool.num_free == 3
    pool.check([])


def test_the_longest_unowned_page_is_evicted_first_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = PagePool(4)
    old, new = published(pool, names(1, 2)), published(pool, names(8, 9))
    pool.release(old)
    pool.release(new)
    grown = pool.grow(1)
    assert pool.match(names(1, 2)).pages == old.tolist()[:1]
    grown = np.concatenate([grown, pool.grow(2)])
    assert pool.match(names(1, 2)) == NOTHING
    assert pool.match(names(8, 9)).pages == new.tolist()[:1]
    pool.check([grown])


def test_pages_of_unknown_content_are_used_up_before_any_is_evicted() -> None:
    pool = PagePool(3)
    pool.release(published(pool, names(1)))
    grown = pool.grow(2)
    assert len(pool.match(names(1)).pages) == 1
    pool.check([grown])


def test_taking_a_match_never_evicts_the_matched_pages() -> None:
    pool = PagePool(4)
    old, new = published(pool, names(1, 2)), published(pool, names(8, 9))
    pool.release(old)
    pool.release(new)
    taken = pool.take(pool.match(names(1, 2)), 2)
    assert taken.tolist()[:2] == old.tolist()
    assert pool.match(names(8)) == NOTHING
    pool.check([taken])


def test_the_first_page_published_under_a_name_keeps_it() -> None:
    pool = PagePool(3)
    first, second = published(pool, names(1)), published(pool, names(1))
    assert pool.match(names(1)).pages == first.tolist()
    pool.release(second)
    pool.check([first])
    pool.release(first)
    assert pool.num_free == 3
    pool.check([])


@pytest.mark.parametrize("held", [[], [[0, 1], [1]], [[0, 0]], [[0, 1, 2]]])
def test_the_check_finds_books_that_do_not_agree(held: list[list[int]]) -> None:
    pool = PagePool(3)
    assert sorted(pool.grow(2).tolist()) == [0, 1]
    pool.check([np.array([0, 1])])
    with pytest.raises(AssertionError):
        pool.check(np.array(pages) for pages in held)
