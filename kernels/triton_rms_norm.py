# mypy: ignore-errors
"""The Triton kernel behind `kernels/rms_norm.py`: one pass, each program holds whole rows in registers.

T rows, E elements of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_compiling import launcher

# Elements a program holds at least: short rows (norms of single heads) are taken several at a time.
MIN_PROGRAM_ELEMENTS = 2048


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    num_rows,
    x_stride,
    eps,
    SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    rows_T1 = (tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    columns_1E = tl.arange(0, BLOCK_E)[None, :]
    mask = (rows_T1 < num_rows) & (columns_1E < SIZE)
    x_TE = tl.load(x_ptr + rows_T1 * x_stride + columns_1E, mask=mask, other=0.0).to(tl.float32)
    weight_1E = tl.load(weight_ptr + columns_1E, mask=columns_1E < SIZE, other=0.0).to(tl.float32)
    inverse_T = tl.rsqrt(tl.sum(x_TE * x_TE, axis=1) / SIZE + eps)
    y_TE = x_TE * inverse_T[:, None] * weight_1E
    tl.store(y_ptr + rows_T1 * SIZE + columns_1E, y_TE.to(y_ptr.dtype.element_ty), mask=mask)


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Launch the kernel; `kernels/rms_norm.py` says what it computes."""
    size = x_TE.shape[-1]
    assert weight_E.shape == (size,)
    assert x_TE.dtype != torch.float64, "the kernel computes in float32"
    y_TE = x_TE.new_empty(x_TE.shape)
    if x_TE.numel() == 0:
        return y_TE
    rows = x_TE.reshape(-1, size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    block_e = triton.next_power_of_2(size)
    block_t = max(1, MIN_PROGRAM_ELEMENTS // block_e)
    launcher(_rms_norm_kernel, (triton.cdiv(rows.shape[0], block_t),))(
        rows,
        weight_E.contiguous(),
        y_TE,
        rows.shape[0],
        rows.stride(0),
        eps,
        SIZE=size,
        BLOCK_T=block_t,
        BLOCK_E=block_e,
        num_warps=min(16, max(4, block_e // 512)),
    )
    return y_TE
