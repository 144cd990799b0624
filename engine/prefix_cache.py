"""Which full pages sequences have, by name, so that others with the same beginning find them instead of computing them.

Pages are offered once they are filled with known tokens; names of pages that are about to be filled are kept too, so
that who would compute the same can wait for it. Knows nothing of the order of work. D rows that have new tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .pages import IntArray, Match, PagePool, page_hash
from .rows import Rows
from .sequence import Sequence


class PrefixCache:
    """`name` what arrives; `match` it; tell when it `entered` a row, `publish` what it fills, tell when it `leaves`.

    Where it is not `enabled` nothing has a name, and so nothing is found.
    """

    def __init__(self, pool: PagePool, rows: Rows, *, enabled: bool) -> None:
        self._pool, self._rows, self._enabled = pool, rows, enabled
        # Names of pages that running sequences are about to fill, with those sequences' priorities.
        self._coming: dict[bytes, int] = {}

    def name(self, sequence: Sequence, tokens: npt.NDArray[np.int32]) -> None:
        """Hash the full pages of a sequence's `tokens` that have no name yet."""
        if not self._enabled:
            return
        names, size = sequence.page_hashes, self._rows.page_size
        for i in range(len(names), len(tokens) // size):
            names.append(page_hash(names[-1] if names else b"", tokens[i * size : (i + 1) * size]))

    def match(self, sequence: Sequence) -> Match:
        """The pages of its beginning that are there."""
        return self._pool.match(sequence.page_hashes[: self._most_matched(sequence)])

    def is_coming(self, sequence: Sequence, num_matched: int) -> bool:
        """Whether the first page it would have to compute is just being computed by one that is not after it."""
        if num_matched >= self._most_matched(sequence) or not self._enabled:
            return False
        priority = self._coming.get(sequence.page_hashes[num_matched])
        return priority is not None and priority <= sequence.request.priority

    def entered(self, sequence: Sequence, num_matched: int) -> None:
        """It has a row, and will compute all that was not found."""
        for name in sequence.page_hashes[num_matched:]:
            self._coming.setdefault(name, sequence.request.priority)

    def leaves(self, sequence: Sequence, row: int) -> None:
        """It gives its row back, and fills no more pages."""
        for name in sequence.page_hashes[self._rows.num_published_R[row] :]:
            self._coming.pop(name, None)

    def publish(self, rows_D: IntArray) -> None:
        """Offer the pages for reuse that rows have filled with known tokens: steps to come find them written."""
        if not self._enabled:
            return
        rows = self._rows
        num_full_D = np.minimum(rows.num_computed_R[rows_D], rows.num_known_R[rows_D]) // rows.page_size
        news = num_full_D > rows.num_published_R[rows_D]
        for row, num_full in zip(rows_D[news].tolist(), num_full_D[news].tolist(), strict=True):
            sequence = rows.sequence(row)
            self.name(sequence, rows.tokens(row)[: num_full * rows.page_size])
            for i in range(int(rows.num_published_R[row]), num_full):
                self._pool.publish(int(rows.page_table_RN[row, i]), sequence.page_hashes[i])
                self._coming.pop(sequence.page_hashes[i], None)
            rows.num_published_R[row] = num_full

    def _most_matched(self, sequence: Sequence) -> int:
        return 0 if sequence.avoids_cache else sequence.most_cached // self._rows.page_size
