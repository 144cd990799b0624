# mypy: ignore-errors
"""The Triton kernel behind `kernels/step_inputs.py`: one program a row, and one more for the tokens that pad.

Legend there.
"""

import triton
import triton.language as tl
from torch import Tensor

from .step_inputs import StepInputs
from .triton_compiling import launcher

BLOCK_T = 256


@triton.jit(
    do_not_specialize=["num_rows", "num_tokens", "num_padded_rows", "num_padded_tokens", "nobodys_row", "table_stride"]
)
def _step_inputs_kernel(
    rows_ptr,
    starts_ptr,
    query_starts_ptr,
    given_ids_ptr,
    table_ptr,
    drawn_ptr,
    token_ids_out,
    positions_out,
    slots_out,
    rows_out,
    query_starts_out,
    context_lens_out,
    last_out,
    num_rows,
    num_tokens,
    num_padded_rows,
    num_padded_tokens,
    nobodys_row,
    table_stride,
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    s = tl.program_id(0)
    if s == num_padded_rows:
        for first in range(num_tokens, num_padded_tokens, BLOCK_T):
            padding_T = first + tl.arange(0, BLOCK_T)
            mask = padding_T < num_padded_tokens
            zeros_T = tl.zeros([BLOCK_T], tl.int32)
            tl.store(token_ids_out + padding_T, zeros_T, mask=mask)
            tl.store(positions_out + padding_T, zeros_T, mask=mask)
            tl.store(slots_out + padding_T, zeros_T - 1, mask=mask)
        tl.store(query_starts_out, 0)
        return
    if s >= num_rows:
        tl.store(rows_out + s, nobodys_row)
        tl.store(query_starts_out + s + 1, num_tokens)
        tl.store(context_lens_out + s, 0)
        tl.store(last_out + s, 0)
        return
    row, start = tl.load(rows_ptr + s), tl.load(starts_ptr + s)
    begin, end = tl.load(query_starts_ptr + s), tl.load(query_starts_ptr + s + 1)
    tl.store(rows_out + s, row)
    tl.store(query_starts_out + s + 1, end)
    tl.store(context_lens_out + s, start + end - begin)
    tl.store(last_out + s, end - 1)
    drawn = tl.load(drawn_ptr + row)
    for first in range(begin, end, BLOCK_T):
        tokens_T = first + tl.arange(0, BLOCK_T)
        mask = tokens_T < end
        given_T = tl.load(given_ids_ptr + tokens_T, mask=mask)
        positions_T = start + tokens_T - begin
        pages_T = tl.load(table_ptr + row.to(tl.int64) * table_stride + positions_T // PAGE_SIZE, mask=mask)
        tl.store(token_ids_out + tokens_T, tl.where(given_T < 0, drawn, given_T), mask=mask)
        tl.store(positions_out + tokens_T, positions_T, mask=mask)
        tl.store(slots_out + tokens_T, pages_T * PAGE_SIZE + positions_T % PAGE_SIZE, mask=mask)


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
    """Launch the kernel; `kernels/step_inputs.py` says what it fills."""
    num_padded_rows, num_padded_tokens = len(out.rows_Q), len(out.token_ids_P)
    assert num_padded_rows >= len(rows_S)
    assert num_padded_tokens >= len(given_ids_T)
    assert page_table_RN.stride(1) == 1
    launcher(_step_inputs_kernel, (num_padded_rows + 1,))(
        rows_S,
        starts_S,
        query_starts_S1,
        given_ids_T,
        page_table_RN,
        drawn_R,
        out.token_ids_P,
        out.positions_P,
        out.slots_P,
        out.rows_Q,
        out.query_starts_Q1,
        out.context_lens_Q,
        out.last_Q,
        len(rows_S),
        len(given_ids_T),
        num_padded_rows,
        num_padded_tokens,
        len(drawn_R) - 1,
        page_table_RN.stride(0),
        PAGE_SIZE=page_size,
        BLOCK_T=BLOCK_T,
    )
