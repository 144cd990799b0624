# mypy: ignore-errors
"""What the Triton attention kernels share: a tile of queries meets a stretch of paged keys.

The query heads of a kv head share a tile: its line m is query token m // R, query head m % R of that kv head.
Source of the algorithm: Dao 2023 (FlashAttention-2), https://arxiv.org/abs/2307.08691.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G, D head size (padded to a power of two),
M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def load_queries(
    q_ptr,
    tokens_M,
    heads_M,
    live_M,
    token_stride,
    head_stride,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load a tile of query lines; lines that are not live are zero."""
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    pointers = q_ptr + tokens_M.to(tl.int64)[:, None] * token_stride + heads_M[:, None] * head_stride + dims_1D
    return tl.load(pointers, mask=live_M[:, None] & (dims_1D < HEAD_SIZE), other=0.0)


@triton.jit
def store_out(
    out_ptr,
    out_MD,
    sum_M,
    tokens_M,
    heads_M,
    live_M,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Divide by the sum of weights and store the live lines in a contiguous [T, H, D]."""
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    out_MD = out_MD / tl.where(sum_M > 0, sum_M, 1.0)[:, None]
    lines_M = tokens_M.to(tl.int64) * NUM_HEADS + heads_M
    mask = live_M[:, None] & (dims_1D < HEAD_SIZE)
    tl.store(out_ptr + lines_M[:, None] * HEAD_SIZE + dims_1D, out_MD.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attend(
    q_MD,
    positions_M,
    k_ptr,
    v_ptr,
    table_ptr,
    first_key,
    end_key,
    scale_log2,
    window,
    k_page_stride,
    k_token_stride,
    v_page_stride,
    v_token_stride,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend to keys first_key ≤ k < end_key; return the weighted sum of values, and maximum and sum of weights."""
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    out_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(first_key, end_key, BLOCK_K):
        keys_K = start + tl.arange(0, BLOCK_K)
        # Slots from end_key on may hold NaN, or have no page at all.
        live_K = keys_K < end_key
        pages_K = tl.load(table_ptr + keys_K // PAGE_SIZE, mask=live_K, other=0).to(tl.int64)
        offsets_K = keys_K % PAGE_SIZE
        mask_KD = live_K[:, None] & (dims_1D < HEAD_SIZE)
        k_KD = tl.load(
            k_ptr + (pages_K * k_page_stride + offsets_K * k_token_stride)[:, None] + dims_1D,
            mask=mask_KD,
            other=0.0,
        )
        v_KD = tl.load(
            v_ptr + (pages_K * v_page_stride + offsets_K * v_token_stride)[:, None] + dims_1D,
            mask=mask_KD,
            other=0.0,
        )
        scores_MK = tl.dot(q_MD, tl.trans(k_KD), input_precision="ieee") * scale_log2
        visible_MK = keys_K[None, :] <= positions_M[:, None]
        if HAS_WINDOW:
            visible_MK = visible_MK & (keys_K[None, :] > positions_M[:, None] - window)
        scores_MK = tl.where(visible_MK, scores_MK, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(scores_MK, axis=1))
        # A line that has seen no key yet has a maximum of -inf, and -inf − -inf is NaN.
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
        weights_MK = tl.exp2(scores_MK - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MK, axis=1)
        out_MD = tl.dot(weights_MK.to(v_KD.dtype), v_KD, out_MD * shrink_M[:, None], input_precision="ieee")
        top_M = new_top_M
    return out_MD, top_M, sum_M
