# mypy: ignore-errors
"""Attention kernels for rows whose queries all fit one small tile: decodes, and a few tokens more.

One program takes one row and kv head, or, where there are too few of those to fill a GPU, a part of their keys; the
parts are then merged by log-sum-exp. Rows that share a prefix start from what `triton_attention_shared.py` left of it.
Programs of rows with more queries leave at once. Source of the parts: Dao et al. 2023, Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G, D head size (padded to a power of two),
M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl

from .triton_attention_tile import attend, load_queries, merge_part, no_keys, store_out, store_part


@triton.jit(do_not_specialize=["window", "num_splits", "min_split_keys", "num_shared"])
def short_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    part_ptr,
    part_lse_ptr,
    own_first_ptr,
    shared_ptr,
    shared_lse_ptr,
    scale_log2,
    window,
    num_splits,
    min_split_keys,
    num_shared,
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
    HAS_SHARED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * REPEATS
    row, kv_head = tl.program_id(0) // NUM_KV_HEADS, tl.program_id(0) % NUM_KV_HEADS
    start = tl.load(starts_ptr + row)
    num_queries = (tl.load(starts_ptr + row + 1) - start).to(tl.int32)
    if (num_queries == 0) | (num_queries * REPEATS > BLOCK_M):
        return
    context = tl.load(lens_ptr + row).to(tl.int32)
    line = row
    if rows_ptr is not None:
        line = tl.load(rows_ptr + row)
    lines_M = tl.arange(0, BLOCK_M)
    queries_M = lines_M // REPEATS
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    live_M = queries_M < num_queries
    positions_M = tl.where(live_M, context - num_queries + queries_M, -1)
    q_MD, scale_log2 = load_queries(
        q_ptr,
        start + queries_M,
        heads_M,
        live_M,
        q_token_stride,
        q_head_stride,
        scale_log2,
        k_pages_ptr,
        HEAD_SIZE,
        BLOCK_D,
    )
    out_MD, top_M, sum_M = no_keys(BLOCK_M, BLOCK_D)
    first_key, end_key = 0, context
    if HAS_WINDOW:
        first_key = tl.maximum(context - num_queries - window + 1, 0) // PAGE_SIZE * PAGE_SIZE
    if HAS_SHARED:
        own_first = tl.load(own_first_ptr + row).to(tl.int32)
        first_key = tl.maximum(first_key, own_first)
        # Only the first of the programs that split a row's own keys takes what its groups' passes left.
        num_parts = tl.where((own_first > 0) & (tl.program_id(1) == 0), num_shared, 0)
        for part in range(num_parts):
            part_lines_M = (part * (tl.num_programs(0) // NUM_KV_HEADS) + row).to(tl.int64) * NUM_HEADS + heads_M
            out_MD, top_M, sum_M = merge_part(
                shared_ptr, shared_lse_ptr, part_lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE, BLOCK_D
            )
    if SPLIT:
        # Short contexts have fewer parts: the last ones are without keys then.
        span = tl.maximum(tl.cdiv(context - first_key, num_splits), min_split_keys)
        span = tl.cdiv(span, BLOCK_K) * BLOCK_K
        first_key = first_key + tl.program_id(1) * span
        end_key = tl.minimum(first_key + span, context)
    out_MD, top_M, sum_M = attend(
        q_MD,
        positions_M,
        out_MD,
        top_M,
        sum_M,
        k_pages_ptr,
        v_pages_ptr,
        None,
        None,
        table_ptr + line.to(tl.int64) * table_stride,
        kv_head,
        first_key,
        tl.minimum(context - num_queries + 1, end_key),
        end_key,
        scale_log2,
        window,
        k_page_stride,
        k_head_stride,
        k_token_stride,
        v_page_stride,
        v_head_stride,
        v_token_stride,
        NUM_KV_HEADS,
        HEAD_SIZE,
        PAGE_SIZE,
        HAS_WINDOW,
        BLOCK_K,
        BLOCK_D,
    )
    if SPLIT:
        part_lines_M = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK_M + lines_M
        store_part(part_ptr, part_lse_ptr, part_lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE, BLOCK_D)
    else:
        store_out(out_ptr, out_MD, sum_M, start + queries_M, heads_M, live_M, NUM_HEADS, HEAD_SIZE, BLOCK_D)


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
    out_MD, top_M, sum_M = no_keys(BLOCK_M, BLOCK_D)
    for split in range(num_splits):
        part_lines_M = (split * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK_M + lines_M
        out_MD, top_M, sum_M = merge_part(
            part_ptr, part_lse_ptr, part_lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE, BLOCK_D
        )
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    store_out(out_ptr, out_MD, sum_M, start + queries_M, heads_M, live_M, NUM_KV_HEADS * REPEATS, HEAD_SIZE, BLOCK_D)
