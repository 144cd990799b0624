# mypy: ignore-errors
"""Attention kernels for rows whose queries all fit one small tile: decodes, and a few tokens more.

One program takes one row and kv head, or, where there are too few of those to fill a GPU, a part of their keys; the
parts are then merged by log-sum-exp. Programs of rows with more queries leave at once. Source of the parts: Dao et al.
2023, Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G, D head size (padded to a power of two),
M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl

from .triton_attention_tile import attend, load_queries, store_out


@triton.jit(do_not_specialize=["window", "num_splits"])
def short_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    part_ptr,
    part_lse_ptr,
    scale_log2,
    window,
    num_splits,
    q_token_stride,
    q_head_stride,
    table_stride,
    k_page_stride,
    k_head_stride,
    k_token_stride,
    v_page_stride,
    v_head_stride,
    v_token_stride,
    NUM_KV_HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, kv_head = tl.program_id(0) // NUM_KV_HEADS, tl.program_id(0) % NUM_KV_HEADS
    start = tl.load(starts_ptr + row)
    num_queries = (tl.load(starts_ptr + row + 1) - start).to(tl.int32)
    if (num_queries == 0) | (num_queries * REPEATS > BLOCK_M):
        return
    context = tl.load(lens_ptr + row).to(tl.int32)
    lines_M = tl.arange(0, BLOCK_M)
    queries_M = lines_M // REPEATS
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    live_M = queries_M < num_queries
    positions_M = tl.where(live_M, context - num_queries + queries_M, -1)
    q_MD = load_queries(q_ptr, start + queries_M, heads_M, live_M, q_token_stride, q_head_stride, HEAD_SIZE, BLOCK_D)
    first_key, end_key = 0, context
    if HAS_WINDOW:
        first_key = tl.maximum(context - num_queries - window + 1, 0) // PAGE_SIZE * PAGE_SIZE
    if SPLIT:
        span = tl.cdiv(tl.cdiv(context - first_key, BLOCK_K), num_splits) * BLOCK_K
        first_key = first_key + tl.program_id(1) * span
        end_key = tl.minimum(first_key + span, context)
    out_MD, top_M, sum_M = attend(
        q_MD,
        positions_M,
        k_pages_ptr + kv_head.to(tl.int64) * k_head_stride,
        v_pages_ptr + kv_head.to(tl.int64) * v_head_stride,
        table_ptr + row.to(tl.int64) * table_stride,
        first_key,
        end_key,
        scale_log2,
        window,
        k_page_stride,
        k_token_stride,
        v_page_stride,
        v_token_stride,
        HEAD_SIZE,
        PAGE_SIZE,
        HAS_WINDOW,
        BLOCK_M,
        BLOCK_K,
        BLOCK_D,
    )
    if SPLIT:
        part_line_M = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK_M + lines_M
        seen_M = sum_M > 0
        sum_M = tl.where(seen_M, sum_M, 1.0)
        tl.store(part_lse_ptr + part_line_M, tl.where(seen_M, top_M + tl.log2(sum_M), float("-inf")))
        part_ptrs = part_ptr + part_line_M[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        tl.store(part_ptrs, out_MD / sum_M[:, None], mask=(live_M & seen_M)[:, None])
    else:
        store_out(
            out_ptr,
            out_MD,
            sum_M,
            start + queries_M,
            heads_M,
            live_M,
            NUM_KV_HEADS * REPEATS,
            HEAD_SIZE,
            BLOCK_D,
        )


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    part_ptr,
    part_lse_ptr,
    starts_ptr,
    out_ptr,
    num_splits,
    NUM_KV_HEADS: tl.constexpr,
    REPEATS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, kv_head = tl.program_id(0) // NUM_KV_HEADS, tl.program_id(0) % NUM_KV_HEADS
    start = tl.load(starts_ptr + row)
    num_queries = (tl.load(starts_ptr + row + 1) - start).to(tl.int32)
    if (num_queries == 0) | (num_queries * REPEATS > BLOCK_M):
        return
    lines_M = tl.arange(0, BLOCK_M)
    queries_M = lines_M // REPEATS
    live_M = queries_M < num_queries
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    out_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in range(num_splits):
        line_M = (split * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK_M + lines_M
        lse_M = tl.load(part_lse_ptr + line_M)
        # A part that saw no key wrote no values.
        part_mask = (live_M & (lse_M > float("-inf")))[:, None]
        part_MD = tl.load(part_ptr + line_M[:, None] * BLOCK_D + dims_1D, mask=part_mask, other=0.0)
        new_top_M = tl.maximum(top_M, lse_M)
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
        shrink_M, weight_M = tl.exp2(top_M - base_M), tl.exp2(lse_M - base_M)
        out_MD = out_MD * shrink_M[:, None] + part_MD * weight_M[:, None]
        sum_M = sum_M * shrink_M + weight_M
        top_M = new_top_M
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    store_out(out_ptr, out_MD, sum_M, start + queries_M, heads_M, live_M, NUM_KV_HEADS * REPEATS, HEAD_SIZE, BLOCK_D)
