"""A step's tensors in plain torch: what `kernels/step_inputs.py` means. Legend there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..step_inputs import StepInputs


def step_inputs(
    rows_S: Tensor,
    starts_S: Tensor,
    query_starts_S1: Tensor,
    given_ids_T: Tensor,
    page_table_RN: Tensor,
    drawn_R: Tensor,
    page_size: int,
    out: StepInputs,
) -> None:
    """Fill `out`; `kernels/step_inputs.py` says how."""
    num_rows, num_tokens = len(rows_S), len(given_ids_T)
    lengths_S = query_starts_S1.diff()
    rows_T = rows_S.repeat_interleave(lengths_S)
    firsts_T = (starts_S - query_starts_S1[:-1]).repeat_interleave(lengths_S)
    positions_T = torch.arange(num_tokens, dtype=torch.int32, device=rows_S.device) + firsts_T
    pages_T = page_table_RN[rows_T, positions_T // page_size]
    for padded, values, filler in (
        (out.token_ids_P, torch.where(given_ids_T < 0, drawn_R[rows_T], given_ids_T), 0),
        (out.positions_P, positions_T, 0),
        (out.slots_P, pages_T * page_size + positions_T % page_size, -1),
        (out.rows_Q, rows_S, len(drawn_R) - 1),
        (out.query_starts_Q1, query_starts_S1, num_tokens),
        (out.context_lens_Q, starts_S + lengths_S, 0),
        (out.last_Q, query_starts_S1[1:] - 1, 0),
    ):
        padded[: len(values)] = values
        padded[len(values) :] = filler
    assert len(out.rows_Q) >= num_rows
