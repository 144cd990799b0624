# mypy: ignore-errors
"""The Triton kernel behind `kernels/rotary.py`: one program rotates all heads of one token.

T tokens, H query heads, G key heads, N heads of either, D head size, R rotated pairs a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate_heads(
    x_ptr,
    x_head_stride,
    out_ptr,
    cos_R,
    sin_R,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    heads_N1 = tl.arange(0, BLOCK_N)[:, None]
    pairs_1R = tl.arange(0, BLOCK_R)[None, :]
    mask = (heads_N1 < NUM_HEADS) & (pairs_1R < NUM_PAIRS)
    x_ptrs = x_ptr + heads_N1 * x_head_stride + pairs_1R
    out_ptrs = out_ptr + heads_N1 * HEAD_SIZE + pairs_1R
    first_NR = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    second_NR = tl.load(x_ptrs + NUM_PAIRS, mask=mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptrs, (first_NR * cos_R - second_NR * sin_R).to(dtype), mask=mask)
    tl.store(out_ptrs + NUM_PAIRS, (second_NR * cos_R + first_NR * sin_R).to(dtype), mask=mask)
    if 2 * NUM_PAIRS < HEAD_SIZE:
        rest_1D = 2 * NUM_PAIRS + tl.arange(0, BLOCK_REST)[None, :]
        rest_mask = (heads_N1 < NUM_HEADS) & (rest_1D < HEAD_SIZE)
        rest_ND = tl.load(x_ptr + heads_N1 * x_head_stride + rest_1D, mask=rest_mask, other=0.0)
        tl.store(out_ptr + heads_N1 * HEAD_SIZE + rest_1D, rest_ND, mask=rest_mask)


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    pairs_1R = tl.arange(0, BLOCK_R)[None, :]
    table_1R = tl.load(positions_ptr + token).to(tl.int64) * NUM_PAIRS + pairs_1R
    cos_1R = tl.load(cos_ptr + table_1R, mask=pairs_1R < NUM_PAIRS, other=0.0).to(tl.float32)
    sin_1R = tl.load(sin_ptr + table_1R, mask=pairs_1R < NUM_PAIRS, other=0.0).to(tl.float32)
    _rotate_heads(
        q_ptr + token * q_token_stride,
        q_head_stride,
        q_out_ptr + token * NUM_HEADS * HEAD_SIZE,
        cos_1R,
        sin_1R,
        NUM_HEADS,
        HEAD_SIZE,
        NUM_PAIRS,
        BLOCK_H,
        BLOCK_R,
        BLOCK_REST,
    )
    _rotate_heads(
        k_ptr + token * k_token_stride,
        k_head_stride,
        k_out_ptr + token * NUM_KV_HEADS * HEAD_SIZE,
        cos_1R,
        sin_1R,
        NUM_KV_HEADS,
        HEAD_SIZE,
        NUM_PAIRS,
        BLOCK_G,
        BLOCK_R,
        BLOCK_REST,
    )


def rotary(q_THD: Tensor, k_TGD: Tensor, positions_T: Tensor, cos_MR: Tensor, sin_MR: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel; `kernels/rotary.py` says what it computes."""
    (num_tokens, num_heads, head_size), num_kv_heads, num_pairs = q_THD.shape, k_TGD.shape[1], cos_MR.shape[1]
    assert q_THD.stride(2) == 1
    assert k_TGD.stride(2) == 1
    assert 2 * num_pairs <= head_size
    assert cos_MR.is_contiguous()
    assert sin_MR.is_contiguous()
    assert q_THD.dtype != torch.float64, "the kernel computes in float32"
    q_out_THD, k_out_TGD = q_THD.new_empty(q_THD.shape), k_TGD.new_empty(k_TGD.shape)
    if num_tokens == 0:
        return q_out_THD, k_out_TGD
    _rotary_kernel[(num_tokens,)](
        q_THD,
        k_TGD,
        positions_T.contiguous(),
        cos_MR,
        sin_MR,
        q_out_THD,
        k_out_TGD,
        q_THD.stride(0),
        q_THD.stride(1),
        k_TGD.stride(0),
        k_TGD.stride(1),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_SIZE=head_size,
        NUM_PAIRS=num_pairs,
        BLOCK_H=triton.next_power_of_2(num_heads),
        BLOCK_G=triton.next_power_of_2(num_kv_heads),
        BLOCK_R=triton.next_power_of_2(num_pairs),
        BLOCK_REST=triton.next_power_of_2(max(1, head_size - 2 * num_pairs)),
    )
    return q_out_THD, k_out_TGD
