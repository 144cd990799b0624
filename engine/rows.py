"""The scheduler's side of the fixed rows: one array per quantity, one element (or line) per row.

Every running sequence owns a row until it ends or is preempted. Knows nothing of policy or of devices; the runner
keeps its own device rows under the same numbers.

R rows, L tokens a row can hold, N pages a row can hold.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .sequence import Sequence


class Rows:
    """Arrays indexed by row; `sequences[row]` is who owns it, None while it is free."""

    def __init__(self, num_rows: int, max_len: int, page_size: int) -> None:
        self.page_size = page_size
        self.sequences: list[Sequence | None] = [None] * num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self.token_ids_RL = np.zeros((num_rows, max_len), np.int32)
        self.page_table_RN = np.zeros((num_rows, -(-max_len // page_size)), np.int32)
        # Tokens that there are, with one that a step under way is drawing; those of them whose value is known here;
        # those whose keys and values are in the pages once all steps under way are done; how many there can ever be.
        self.num_tokens_R = np.zeros(num_rows, np.int64)
        self.num_known_R = np.zeros(num_rows, np.int64)
        self.num_computed_R = np.zeros(num_rows, np.int64)
        self.num_prompt_R = np.zeros(num_rows, np.int64)
        self.limit_R = np.zeros(num_rows, np.int64)
        # Pages that are owned; those, from the first on, that were found in the cache, or offered to it since.
        self.num_pages_R = np.zeros(num_rows, np.int64)
        self.num_cached_R = np.zeros(num_rows, np.int64)
        self.num_published_R = np.zeros(num_rows, np.int64)
        # A new number whenever a row gets an owner, so that a late result is not taken for the next owner's.
        self.tenancy_R = np.full(num_rows, -1, np.int64)
        self._num_tenancies = 0
        # Who goes first: lower priority numbers, then lower places.
        self.priority_R = np.zeros(num_rows, np.int64)
        self.place_R = np.zeros(num_rows, np.int64)
        self.heeds_eos_R = np.zeros(num_rows, np.bool_)
        self.may_end_early_R = np.zeros(num_rows, np.bool_)
        self.watched_R = np.zeros(num_rows, np.bool_)
        self.has_grammar_R = np.zeros(num_rows, np.bool_)
        self.scores_prompt_R = np.zeros(num_rows, np.bool_)
        self.only_reads_R = np.zeros(num_rows, np.bool_)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def set_aside(self, rows: npt.NDArray[np.int64]) -> bool:
        """Whether a free row is left that is none of these; then that is opened next."""
        aside = set(rows.tolist())
        self._free.sort(key=lambda row: row not in aside)
        return bool(self._free) and self._free[-1] not in aside

    def open(self, sequence: Sequence, pages: npt.NDArray[np.int64], num_cached_pages: int) -> int:
        """Give the sequence a row that holds its tokens and pages, the first `num_cached_pages` filled already."""
        row = self._free.pop()
        self.sequences[row] = sequence
        sequence.row = row
        num_tokens = len(sequence.tokens)
        self.token_ids_RL[row, :num_tokens] = sequence.tokens
        self.page_table_RN[row, : len(pages)] = pages
        self.num_tokens_R[row] = self.num_known_R[row] = num_tokens
        self.num_prompt_R[row] = sequence.num_prompt
        self.num_computed_R[row] = num_cached_pages * self.page_size
        self.limit_R[row] = sequence.limit
        self.num_pages_R[row] = len(pages)
        self.num_cached_R[row] = self.num_published_R[row] = num_cached_pages
        self.tenancy_R[row] = self._num_tenancies
        self._num_tenancies += 1
        self.priority_R[row], self.place_R[row] = sequence.order
        self.heeds_eos_R[row] = not sequence.request.params.ignore_eos
        self.may_end_early_R[row] = sequence.may_end_early
        self.watched_R[row] = sequence.watched
        self.has_grammar_R[row] = sequence.matcher is not None
        self.scores_prompt_R[row] = sequence.request.params.prompt_logprobs is not None
        self.only_reads_R[row] = sequence.only_reads
        return row

    def close(self, sequence: Sequence) -> None:
        """Take the row back; the sequence keeps the tokens it has by now."""
        row = sequence.row
        assert row is not None
        sequence.tokens = self.tokens(row).copy()
        sequence.row = None
        self.sequences[row] = None
        self.tenancy_R[row] = -1
        self._free.append(row)

    def sequence(self, row: int) -> Sequence:
        sequence = self.sequences[row]
        assert sequence is not None
        return sequence

    def tokens(self, row: int) -> npt.NDArray[np.int32]:
        """A view of the row's known tokens."""
        return self.token_ids_RL[row, : self.num_known_R[row]]

    def pages(self, row: int) -> npt.NDArray[np.int32]:
        """A view of the row's pages, in order."""
        return self.page_table_RN[row, : self.num_pages_R[row]]
