# mypy: ignore-errors
"""What the Triton attention kernels share: a tile of queries meets a stretch of paged keys.

The query heads of a kv head share a tile: its line m is query token m // R, query head m % R of that kv head.
Weights are powers of two: `scale_log2` carries the factor log2(e), and log-sum-exps are base 2.
Sources: Dao 2023 (FlashAttention-2), https://arxiv.org/abs/2307.08691; the merging of parts, Milakov and Gimelshein
2018, https://arxiv.org/abs/1805.02867.

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
    scale_log2,
    pages_ptr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load a tile of query lines, zero where not live; return it and the factor that its scores still lack.

    Hopper turns 8-bit floats into float16 in one instruction, into bfloat16 in several, so queries in bfloat16 meet
    8-bit pages as float16: scaled first, which brings them well inside its range.
    """
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    pointers = q_ptr + tokens_M.to(tl.int64)[:, None] * token_stride + heads_M[:, None] * head_stride + dims_1D
    q_MD = tl.load(pointers, mask=live_M[:, None] & (dims_1D < HEAD_SIZE), other=0.0)
    if q_ptr.dtype.element_ty == tl.bfloat16 and pages_ptr.dtype.element_ty != tl.bfloat16:
        q_MD = (q_MD.to(tl.float32) * scale_log2).to(tl.float16)
        scale_log2 = 1.0
    return q_MD, scale_log2


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
def store_part(
    part_ptr, lse_ptr, lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Store live lines' results over a part of their keys, and the log-sum-exp: -inf and no result without a key."""
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    seen_M = sum_M > 0
    sum_M = tl.where(seen_M, sum_M, 1.0)
    tl.store(lse_ptr + lines_M, tl.where(seen_M, top_M + tl.log2(sum_M), float("-inf")), mask=live_M)
    mask = (live_M & seen_M)[:, None] & (dims_1D < HEAD_SIZE)
    tl.store(part_ptr + lines_M[:, None] * HEAD_SIZE + dims_1D, out_MD / sum_M[:, None], mask=mask)


@triton.jit
def merge_part(
    part_ptr, lse_ptr, lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Merge what `store_part` stored into the results so far."""
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    lse_M = tl.load(lse_ptr + lines_M, mask=live_M, other=float("-inf"))
    mask = (lse_M > float("-inf"))[:, None] & (dims_1D < HEAD_SIZE)
    part_MD = tl.load(part_ptr + lines_M[:, None] * HEAD_SIZE + dims_1D, mask=mask, other=0.0)
    new_top_M = tl.maximum(top_M, lse_M)
    base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
    shrink_M, weight_M = tl.exp2(top_M - base_M), tl.exp2(lse_M - base_M)
    return out_MD * shrink_M[:, None] + part_MD * weight_M[:, None], new_top_M, sum_M * shrink_M + weight_M


@triton.jit
def no_keys(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the results before any key was seen: weighted sum of values, maximum, and sum of weights."""
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return tl.zeros([BLOCK_M, BLOCK_D], tl.float32), top_M, tl.zeros([BLOCK_M], tl.float32)


@triton.jit
def attend(
    q_MD,
    positions_M,
    out_MD,
    top_M,
    sum_M,
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    table_ptr,
    kv_head,
    first_key,
    full_end,
    end_key,
    scale_log2,
    window,
    k_page_stride,
    k_head_stride,
    k_token_stride,
    v_page_stride,
    v_head_stride,
    v_token_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend to keys first_key ≤ k < end_key, on top of the results so far; return them as `no_keys` does.

    All live lines see the keys before `full_end` (but for a window); where a tile's keys lie in one page, `first_key`
    must be a multiple of the keys of a tile.
    """
    k_ptr += kv_head.to(tl.int64) * k_head_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride
    ONE_PAGE: tl.constexpr = PAGE_SIZE % BLOCK_K == 0
    WHOLE_D: tl.constexpr = HEAD_SIZE == BLOCK_D
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    slots_K = tl.arange(0, BLOCK_K)
    main_end = first_key + tl.maximum(full_end - first_key, 0) // BLOCK_K * BLOCK_K
    for LOOP in tl.static_range(2):
        # Loop 0 has the tiles that need no mask, loop 1 the rest.
        begin, end = first_key, main_end
        if LOOP == 1:
            begin, end = main_end, end_key
        # Page numbers are loaded one tile ahead, so that no tile's loads wait for a load.
        lookup = begin
        if not ONE_PAGE:
            lookup = begin + slots_K
        next_page = tl.load(table_ptr + lookup // PAGE_SIZE, mask=lookup < end, other=0)
        for start in range(begin, end, BLOCK_K):
            keys_K = start + slots_K
            # Slots from end_key on may hold NaN, or have no page at all.
            live_K = keys_K < end_key
            page = next_page.to(tl.int64)
            lookup += BLOCK_K
            next_page = tl.load(table_ptr + lookup // PAGE_SIZE, mask=lookup < end, other=0)
            if ONE_PAGE:
                offsets_K1 = (start % PAGE_SIZE + slots_K)[:, None]
                k_ptrs = k_ptr + page * k_page_stride + offsets_K1 * k_token_stride + dims_1D
                v_ptrs = v_ptr + page * v_page_stride + offsets_K1 * v_token_stride + dims_1D
            else:
                k_ptrs = k_ptr + (page * k_page_stride + keys_K % PAGE_SIZE * k_token_stride)[:, None] + dims_1D
                v_ptrs = v_ptr + (page * v_page_stride + keys_K % PAGE_SIZE * v_token_stride)[:, None] + dims_1D
            if LOOP == 1:
                mask_KD = live_K[:, None] & (dims_1D < HEAD_SIZE)
                k_KD = tl.load(k_ptrs, mask=mask_KD, other=0.0)
                v_KD = tl.load(v_ptrs, mask=mask_KD, other=0.0)
            elif k_desc is not None:
                line = ((page * NUM_KV_HEADS + kv_head) * PAGE_SIZE + start % PAGE_SIZE).to(tl.int32)
                k_KD = k_desc.load([line, 0])
                v_KD = v_desc.load([line, 0])
            elif WHOLE_D:
                k_KD = tl.load(k_ptrs)
                v_KD = tl.load(v_ptrs)
            else:
                k_KD = tl.load(k_ptrs, mask=dims_1D < HEAD_SIZE, other=0.0)
                v_KD = tl.load(v_ptrs, mask=dims_1D < HEAD_SIZE, other=0.0)
            scores_MK = tl.dot(q_MD, tl.trans(k_KD.to(q_MD.dtype)), input_precision="ieee")
            if HAS_WINDOW:
                visible_MK = (keys_K[None, :] <= positions_M[:, None]) & live_K[None, :]
                visible_MK = visible_MK & (keys_K[None, :] > positions_M[:, None] - window)
                scores_MK = tl.where(visible_MK, scores_MK, float("-inf"))
            elif LOOP == 1:
                visible_MK = (keys_K[None, :] <= positions_M[:, None]) & live_K[None, :]
                scores_MK = tl.where(visible_MK, scores_MK, float("-inf"))
            new_top_M = tl.maximum(top_M, tl.max(scores_MK, axis=1) * scale_log2)
            base_M = new_top_M
            if LOOP == 1 or HAS_WINDOW:
                # A line that has seen no key yet has a maximum of -inf, and -inf − -inf is NaN.
                base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
            weights_MK = tl.exp2(scores_MK * scale_log2 - base_M[:, None])
            shrink_M = tl.exp2(top_M - base_M)
            sum_M = sum_M * shrink_M + tl.sum(weights_MK, axis=1)
            out_MD = tl.dot(
                weights_MK.to(q_MD.dtype), v_KD.to(q_MD.dtype), out_MD * shrink_M[:, None], input_precision="ieee"
            )
            top_M = new_top_M
    return out_MD, top_M, sum_M
