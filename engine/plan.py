"""One step, written down: which rows compute what, and what the runner must be told of it.

Who takes part with how many tokens is decided before (`scheduler.py`); this only reads the rows. Knows nothing of who
waits, of free pages or of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .pages import IntArray
from .prefixes import Sharing
from .rows import Rows
from .sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step. S sequences take part, decodes first, with T tokens; U entries of the page table have changed.

    The sequence in row rows[i] computes lengths[i] tokens from position starts[i] on, and draws its next token
    where draws[i]. `tenancies` says whose rows they are. `token_ids` [T] holds the tokens, -1 for one that the row
    has drawn in the step before and that only the device knows. `admitted` are the sequences that are new in their
    row since the last step. What the first rows share of their contexts, `sharing` says; they compute one token each.
    `written` are the pages that it writes to.
    """

    rows: IntArray
    starts: IntArray
    lengths: IntArray
    draws: npt.NDArray[np.bool_]
    tenancies: IntArray
    token_ids: npt.NDArray[np.int32]
    admitted: list[Sequence]
    table_rows: IntArray
    table_columns: IntArray
    table_pages: IntArray
    sharing: Sharing | None
    written: IntArray


def make_plan(
    rows: Rows,
    rows_S: IntArray,
    lengths_S: IntArray,
    admitted: list[Sequence],
    *,
    grown: tuple[IntArray, IntArray] | None = None,
    sharing: Sharing | None = None,
) -> Plan:
    """The step in which these rows compute so many tokens each.

    `grown` are (rows, columns) of the page table that were added since the last step, beside those of the `admitted`.
    """
    table_rows_U, table_columns_U = _table_changes(rows, admitted, grown)
    starts_S = rows.num_computed_R[rows_S]
    ends_S = starts_S + lengths_S
    return Plan(
        rows=rows_S,
        starts=starts_S,
        lengths=lengths_S,
        draws=ends_S == rows.num_tokens_R[rows_S],
        tenancies=rows.tenancy_R[rows_S],
        token_ids=_token_ids(rows, rows_S, starts_S, lengths_S),
        admitted=admitted,
        table_rows=table_rows_U,
        table_columns=table_columns_U,
        table_pages=rows.page_table_RN[table_rows_U, table_columns_U].astype(np.int64),
        sharing=sharing,
        written=_written(rows, rows_S, starts_S, ends_S),
    )


def _token_ids(rows: Rows, rows_S: IntArray, starts_S: IntArray, lengths_S: IntArray) -> npt.NDArray[np.int32]:
    rows_T = np.repeat(rows_S, lengths_S)
    positions_T = _counted(lengths_S) + np.repeat(starts_S, lengths_S)
    is_known_T = positions_T < rows.num_known_R[rows_T]
    return np.where(is_known_T, rows.token_ids_RL[rows_T, positions_T], np.int32(-1))


def _written(rows: Rows, rows_S: IntArray, starts_S: IntArray, ends_S: IntArray) -> IntArray:
    first_S = starts_S // rows.page_size
    counts_S = -(-ends_S // rows.page_size) - first_S
    columns = _counted(counts_S) + np.repeat(first_S, counts_S)
    return rows.page_table_RN[np.repeat(rows_S, counts_S), columns].astype(np.int64)


def _table_changes(
    rows: Rows, admitted: list[Sequence], grown: tuple[IntArray, IntArray] | None
) -> tuple[IntArray, IntArray]:
    counts = np.array([rows.num_pages_R[sequence.row] for sequence in admitted], np.int64)
    opened = np.repeat(np.array([sequence.row for sequence in admitted], np.int64), counts)
    grown_rows, grown_columns = grown or (np.zeros(0, np.int64), np.zeros(0, np.int64))
    return np.concatenate([opened, grown_rows]), np.concatenate([_counted(counts), grown_columns])


def _counted(lengths: IntArray) -> IntArray:
    """0, 1, … length - 1 for each length, one after another."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
