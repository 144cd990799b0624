# mypy: ignore-errors
"""The Triton kernel behind `kernels/silu_mul.py`: each program takes a stretch of one token's features.

T tokens, F features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_F = 1024


@triton.jit
def _silu_mul_kernel(x_ptr, y_ptr, x_stride, NUM_FEATURES: tl.constexpr, BLOCK_F: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = features < NUM_FEATURES
    x_ptrs = x_ptr + token * x_stride + features
    gate = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptrs + NUM_FEATURES, mask=mask, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + token * NUM_FEATURES + features, y.to(y_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """Launch the kernel; `kernels/silu_mul.py` says what it computes."""
    assert gate_up_T2F.dtype != torch.float64, "the kernel computes in float32"
    num_features = gate_up_T2F.shape[-1] // 2
    y_TF = gate_up_T2F.new_empty(*gate_up_T2F.shape[:-1], num_features)
    if y_TF.numel() == 0:
        return y_TF
    rows = gate_up_T2F.reshape(-1, 2 * num_features)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    grid = (rows.shape[0], triton.cdiv(num_features, BLOCK_F))
    _silu_mul_kernel[grid](rows, y_TF, rows.stride(0), NUM_FEATURES=num_features, BLOCK_F=BLOCK_F)
    return y_TF
