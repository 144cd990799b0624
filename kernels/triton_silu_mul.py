# mypy: ignore-errors
"""The Triton kernel behind `kernels/silu_mul.py`: each program takes a stretch of one token's features.

T tokens, F features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_compiling import launcher

BLOCK_F = 1024


@triton.jit
def _silu_mul_kernel(x_ptr, y_ptr, x_stride, NUM_FEATURES: tl.constexpr, BLOCK_F: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_F
    # Gate and up lie side by side: both are loaded in one piece, and parted in registers.
    pairs = 2 * first + tl.arange(0, 2 * BLOCK_F)
    x = tl.load(x_ptr + token * x_stride + pairs, mask=pairs < 2 * NUM_FEATURES, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(x, (BLOCK_F, 2)))
    y = gate * tl.sigmoid(gate) * up
    features = first + tl.arange(0, BLOCK_F)
    tl.store(y_ptr + token * NUM_FEATURES + features, y.to(y_ptr.dtype.element_ty), mask=features < NUM_FEATURES)


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
    launcher(_silu_mul_kernel, grid)(rows, y_TF, rows.stride(0), NUM_FEATURES=num_features, BLOCK_F=BLOCK_F)
    return y_TF
