# mypy: ignore-errors
"""The Triton kernel behind `kernels/rotate_and_write.py`: one program takes some heads, of one kind, of one token.

Programs of a token go through its query heads, then its key heads, then its value heads. They are small, some
kilobytes, so that many are in flight in one multiprocessor; each loads all it needs before it computes.
T tokens, F features, H query heads, G kv heads, N heads of one program, D head size, R rotated pairs a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_compiling import launcher

# Elements that a program holds at most, where single heads are not longer.
PROGRAM_ELEMENTS = 2048
# The largest value of float8_e4m3fn.
FLOAT8_MAX = tl.constexpr(448.0)


@triton.jit
def _rotated_heads(
    x_ptr,
    heads_N1,
    in_range_N1,
    weight_ptr,
    position,
    cos_ptr,
    sin_ptr,
    eps,
    HEAD_SIZE: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """The heads of x in three parts, first and second of each pair and what passes, float32; and their columns."""
    pairs_1R = tl.arange(0, BLOCK_R)[None, :]
    rest_1D = 2 * NUM_PAIRS + tl.arange(0, BLOCK_REST)[None, :]
    x_ptrs = x_ptr + heads_N1 * HEAD_SIZE
    in_pairs, in_rest = in_range_N1 & (pairs_1R < NUM_PAIRS), in_range_N1 & (rest_1D < HEAD_SIZE)
    first = tl.load(x_ptrs + pairs_1R, mask=in_pairs, other=0.0).to(tl.float32)
    second = tl.load(x_ptrs + NUM_PAIRS + pairs_1R, mask=in_pairs, other=0.0).to(tl.float32)
    table_1R = position * NUM_PAIRS + pairs_1R
    cos_1R = tl.load(cos_ptr + table_1R, mask=pairs_1R < NUM_PAIRS, other=0.0).to(tl.float32)
    sin_1R = tl.load(sin_ptr + table_1R, mask=pairs_1R < NUM_PAIRS, other=0.0).to(tl.float32)
    rest = first  # without any, a stand-in that nobody stores
    if 2 * NUM_PAIRS < HEAD_SIZE:
        rest = tl.load(x_ptrs + rest_1D, mask=in_rest, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        squares_N = tl.sum(first * first + second * second, axis=1)
        if 2 * NUM_PAIRS < HEAD_SIZE:
            squares_N += tl.sum(rest * rest, axis=1)
            rest *= tl.load(weight_ptr + rest_1D, mask=rest_1D < HEAD_SIZE, other=0.0).to(tl.float32)
        inverse_N1 = tl.rsqrt(squares_N / HEAD_SIZE + eps)[:, None]
        first *= tl.load(weight_ptr + pairs_1R, mask=pairs_1R < NUM_PAIRS, other=0.0).to(tl.float32) * inverse_N1
        weight_1R = tl.load(weight_ptr + NUM_PAIRS + pairs_1R, mask=pairs_1R < NUM_PAIRS, other=0.0)
        second *= weight_1R.to(tl.float32) * inverse_N1
        rest *= inverse_N1
    return first * cos_1R - second * sin_1R, second * cos_1R + first * sin_1R, rest


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """x in the dtype; float8 saturates, and NaN stays NaN."""
    if dtype == tl.float8e4nv:
        x = tl.clamp(x.to(tl.float32), -FLOAT8_MAX, FLOAT8_MAX, propagate_nan=tl.PropagateNan.ALL)
    return x.to(dtype)


@triton.jit
def _store_heads(
    out_ptrs,
    in_range_N1,
    first,
    second,
    rest,
    HEAD_SIZE: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    dtype: tl.constexpr = out_ptrs.dtype.element_ty
    pairs_1R = tl.arange(0, BLOCK_R)[None, :]
    mask = in_range_N1 & (pairs_1R < NUM_PAIRS)
    tl.store(out_ptrs + pairs_1R, _rounded(first, dtype), mask=mask)
    tl.store(out_ptrs + NUM_PAIRS + pairs_1R, _rounded(second, dtype), mask=mask)
    if 2 * NUM_PAIRS < HEAD_SIZE:
        rest_1D = 2 * NUM_PAIRS + tl.arange(0, BLOCK_REST)[None, :]
        tl.store(out_ptrs + rest_1D, _rounded(rest, dtype), mask=in_range_N1 & (rest_1D < HEAD_SIZE))


@triton.jit
def _rotate_and_write_kernel(
    qkv_ptr,
    positions_ptr,
    slots_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    qkv_stride,
    k_page_stride,
    k_page_head_stride,
    k_page_token_stride,
    v_page_stride,
    v_page_head_stride,
    v_page_token_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x_ptr = qkv_ptr + token * qkv_stride
    num_q_parts: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H
    num_kv_parts: tl.constexpr = (NUM_KV_HEADS + BLOCK_G - 1) // BLOCK_G
    if part < num_q_parts:
        position = tl.load(positions_ptr + token).to(tl.int64)
        heads_N1 = part * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        in_range_N1 = heads_N1 < NUM_HEADS
        first, second, rest = _rotated_heads(
            x_ptr,
            heads_N1,
            in_range_N1,
            q_norm_ptr,
            position,
            cos_ptr,
            sin_ptr,
            eps,
            HEAD_SIZE,
            NUM_PAIRS,
            BLOCK_R,
            BLOCK_REST,
        )
        out_ptrs = q_ptr + token * NUM_HEADS * HEAD_SIZE + heads_N1 * HEAD_SIZE
        _store_heads(out_ptrs, in_range_N1, first, second, rest, HEAD_SIZE, NUM_PAIRS, BLOCK_R, BLOCK_REST)
        return
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    page, offset = slot // PAGE_SIZE, slot % PAGE_SIZE
    if part < num_q_parts + num_kv_parts:
        position = tl.load(positions_ptr + token).to(tl.int64)
        heads_N1 = (part - num_q_parts) * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
        in_range_N1 = heads_N1 < NUM_KV_HEADS
        first, second, rest = _rotated_heads(
            x_ptr + NUM_HEADS * HEAD_SIZE,
            heads_N1,
            in_range_N1,
            k_norm_ptr,
            position,
            cos_ptr,
            sin_ptr,
            eps,
            HEAD_SIZE,
            NUM_PAIRS,
            BLOCK_R,
            BLOCK_REST,
        )
        out_ptrs = k_pages_ptr + page * k_page_stride + offset * k_page_token_stride + heads_N1 * k_page_head_stride
        _store_heads(out_ptrs, in_range_N1, first, second, rest, HEAD_SIZE, NUM_PAIRS, BLOCK_R, BLOCK_REST)
    else:
        heads_N1 = (part - num_q_parts - num_kv_parts) * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
        dims_1D = tl.arange(0, BLOCK_D)[None, :]
        mask = (heads_N1 < NUM_KV_HEADS) & (dims_1D < HEAD_SIZE)
        x_ptr += (NUM_HEADS + NUM_KV_HEADS) * HEAD_SIZE
        v_ND = tl.load(x_ptr + heads_N1 * HEAD_SIZE + dims_1D, mask=mask, other=0.0)
        out_ptrs = v_pages_ptr + page * v_page_stride + offset * v_page_token_stride + heads_N1 * v_page_head_stride
        tl.store(out_ptrs + dims_1D, _rounded(v_ND, v_pages_ptr.dtype.element_ty), mask=mask)


def rotate_and_write(
    qkv_TF: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
    cos_MR: Tensor,
    sin_MR: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    *,
    num_heads: int,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Launch the kernel; `kernels/rotate_and_write.py` says what it computes."""
    num_tokens, num_pairs = len(qkv_TF), cos_MR.shape[1]
    _, num_kv_heads, page_size, head_size = k_pages_PGBD.shape
    assert qkv_TF.shape == (num_tokens, (num_heads + 2 * num_kv_heads) * head_size)
    assert v_pages_PGBD.shape == k_pages_PGBD.shape
    assert positions_T.shape == slots_T.shape == (num_tokens,)
    assert all(x.stride(-1) == 1 for x in (qkv_TF, k_pages_PGBD, v_pages_PGBD))
    assert all(x.is_contiguous() for x in (cos_MR, sin_MR, positions_T, slots_T))
    assert all(norm is None or norm.shape == (head_size,) for norm in (q_norm_D, k_norm_D))
    assert 2 * num_pairs <= head_size
    assert qkv_TF.dtype != torch.float64, "the kernel computes in float32"
    q_THD = qkv_TF.new_empty(num_tokens, num_heads, head_size)
    if num_tokens == 0:
        return q_THD
    block_d = triton.next_power_of_2(head_size)
    block_n = max(1, PROGRAM_ELEMENTS // block_d)
    block_h, block_g = (min(block_n, triton.next_power_of_2(n)) for n in (num_heads, num_kv_heads))
    num_parts = triton.cdiv(num_heads, block_h) + 2 * triton.cdiv(num_kv_heads, block_g)
    launcher(_rotate_and_write_kernel, (num_tokens, num_parts))(
        qkv_TF,
        positions_T,
        slots_T,
        cos_MR,
        sin_MR,
        q_norm_D,
        k_norm_D,
        q_THD,
        k_pages_PGBD,
        v_pages_PGBD,
        qkv_TF.stride(0),
        *k_pages_PGBD.stride()[:3],
        *v_pages_PGBD.stride()[:3],
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_SIZE=head_size,
        NUM_PAIRS=num_pairs,
        PAGE_SIZE=page_size,
        BLOCK_H=block_h,
        BLOCK_G=block_g,
        BLOCK_R=triton.next_power_of_2(num_pairs),
        BLOCK_REST=triton.next_power_of_2(max(1, head_size - 2 * num_pairs)),
        BLOCK_D=block_d,
    )
    return q_THD
