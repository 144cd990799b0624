# mypy: ignore-errors
"""The Triton kernel behind `find_prefills` of `kernels/paged_attention.py`: one program goes through all rows.

Legend there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_compiling import launcher

BLOCK_S = 1024


@triton.jit(do_not_specialize=["num_rows"])
def _find_prefills_kernel(query_starts_ptr, rows_ptr, starts_ptr, count_ptr, num_rows, BLOCK_S: tl.constexpr):
    count, total = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for first in range(0, num_rows, BLOCK_S):
        rows_S = first + tl.arange(0, BLOCK_S)
        in_range_S = rows_S < num_rows
        begin_S = tl.load(query_starts_ptr + rows_S, mask=in_range_S, other=0)
        end_S = tl.load(query_starts_ptr + rows_S + 1, mask=in_range_S, other=0)
        is_prefill_S = end_S - begin_S > 1
        lengths_S = tl.where(is_prefill_S, end_S - begin_S, 0)
        places_S = count + tl.cumsum(is_prefill_S.to(tl.int32), axis=0) - 1
        tl.store(rows_ptr + places_S, rows_S, mask=is_prefill_S)
        tl.store(starts_ptr + places_S, total + tl.cumsum(lengths_S, axis=0) - lengths_S, mask=is_prefill_S)
        count += tl.sum(is_prefill_S.to(tl.int32), axis=0)
        total += tl.sum(lengths_S, axis=0)
    tl.store(starts_ptr + count, total)
    tl.store(count_ptr, count)


def find_prefills(query_starts_S1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; `kernels/paged_attention.py` says what it finds."""
    assert query_starts_S1.dtype == torch.int32
    num_rows = len(query_starts_S1) - 1
    rows_S, count = query_starts_S1.new_empty(num_rows), query_starts_S1.new_empty(1)
    starts_S1 = query_starts_S1.new_empty(num_rows + 1)
    launcher(_find_prefills_kernel, (1,))(query_starts_S1, rows_S, starts_S1, count, num_rows, BLOCK_S=BLOCK_S)
    return rows_S, starts_S1, count
