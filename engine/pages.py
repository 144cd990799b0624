"""The page pool: who owns which page of the KV cache, and which unowned pages still hold a known prefix.

Knows nothing of tensors, rows or requests. A page is a number. An owned page has a count of owners; a page that
holds a full page of known tokens is published under a hash of those tokens and all before them, so that a later
sequence with the same beginning can own it too. An unowned published page stays findable until its space is needed:
the least recently released is evicted first.

Ask, then act with the answer: `match = pool.match(hashes)`, then `pool.take(match, num_new)`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The pages found for the longest known prefix, in order, and how many of them nobody owns (they are free)."""

    pages: list[int]
    num_unowned: int


def page_hash(before: bytes, tokens: npt.NDArray[np.int32]) -> bytes:
    """Name a full page by its token ids and the hash of the page before it (b"" for the first)."""
    return hashlib.blake2b(tokens.tobytes(), key=before, digest_size=16).digest()


class PagePool:
    """Counts owners of `num_pages` pages. `num_free` pages can be taken, evicting what they hold if need be."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._owners = np.zeros(num_pages, np.int64)
        # A stack: the first _num_empty of them are empty.
        self._empty = np.arange(num_pages - 1, -1, -1)
        self._num_empty = num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # unowned but published, oldest first
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return self._num_empty + len(self._idle)

    def match(self, hashes: Sequence[bytes]) -> Match:
        """Find the pages of the longest prefix of `hashes` that is published. Changes nothing."""
        pages: list[int] = []
        for name in hashes:
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
        return Match(pages=pages, num_unowned=sum(page in self._idle for page in pages))

    def take(self, match: Match, num_new: int) -> IntArray:
        """Own the matched pages and `num_new` more; return them all in order. They must fit in `num_free`."""
        assert match.num_unowned + num_new <= self.num_free
        for page in match.pages:
            self._idle.pop(page, None)
        shared = np.array(match.pages, np.int64)
        self._owners[shared] += 1
        return np.concatenate([shared, self.grow(num_new)])

    def take_beside(self, match: Match, num_new: int, written: IntArray) -> IntArray | None:
        """As `take`, but none of the pages that are being `written`; None if there are too few others."""
        if np.isin(match.pages, written).any():
            return None
        empty = self._empty[: self._num_empty]
        is_written = np.isin(empty, written)
        # A stack's order is nobody's business: those that may not be taken go to its bottom.
        self._empty[: self._num_empty] = np.concatenate([empty[is_written], empty[~is_written]])
        others = (page for page in self._idle if page not in match.pages)
        evicted = list(islice(others, max(0, num_new - int((~is_written).sum()))))
        if num_new > int((~is_written).sum()) + len(evicted) or np.isin(evicted, written).any():
            return None
        for page in evicted:
            self._idle.move_to_end(page, last=False)
            self._put_empty(self._evict())
        return self.take(match, num_new)

    def grow(self, num_new: int) -> IntArray:
        """Own `num_new` pages of unknown content. They must fit in `num_free`."""
        assert num_new <= self.num_free
        start = max(0, self._num_empty - num_new)
        empty = self._empty[start : self._num_empty]
        evicted = [self._evict() for _ in range(num_new - len(empty))]
        pages = np.concatenate([empty, np.array(evicted, np.int64)])
        self._num_empty = start
        self._owners[pages] = 1
        return pages

    def publish(self, page: int, name: bytes) -> None:
        """Make an owned page findable under `name`. If another page has that name already, that one keeps it."""
        assert self._owners[page] > 0
        if name not in self._page_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def release(self, pages: IntArray) -> None:
        """Give up one ownership of each page of one sequence, given in order."""
        self._owners[pages] -= 1
        # Last pages first: a prefix is only worth keeping while its beginning is there.
        for page in pages[self._owners[pages] == 0][::-1].tolist():
            if page in self._hash_of:
                self._idle[page] = None
            else:
                self._put_empty(page)

    def forget_idle(self) -> None:
        """Empty all pages that nobody owns."""
        while self._idle:
            self._put_empty(self._evict())

    def num_released(self, pages: IntArray) -> int:
        """How many pages would be free if sequences released all of theirs, given one after another."""
        counts = np.bincount(pages, minlength=self.num_pages)
        return int(((counts > 0) & (counts == self._owners)).sum())

    def check(self, held: Iterable[IntArray]) -> None:
        """Raise AssertionError unless the books agree with `held`, the pages of every live sequence.

        Owned and free pages make up the pool; counts equal the holders; only published pages are shared.
        """
        counts = np.zeros(self.num_pages, np.int64)
        for pages in held:
            assert len(set(pages.tolist())) == len(pages), "a sequence holds a page twice"
            counts[pages] += 1
        assert (counts == self._owners).all(), "owner counts differ from the pages that sequences hold"
        empty = self._empty[: self._num_empty].tolist()
        free = empty + list(self._idle)
        assert len(set(free)) == len(free), "a page is free twice"
        assert set(free) == set(np.flatnonzero(counts == 0).tolist()), "owned and free pages are not all pages"
        assert all(page in self._hash_of for page in np.flatnonzero(counts > 1).tolist()), "shared, not published"
        assert all(page in self._hash_of for page in self._idle), "an idle page has no name"
        assert not any(page in self._hash_of for page in empty), "an empty page has a name"
        assert {page: name for name, page in self._page_of.items()} == self._hash_of, "names and pages disagree"

    def _put_empty(self, page: int) -> None:
        self._empty[self._num_empty] = page
        self._num_empty += 1

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._hash_of.pop(page)]
        return page
