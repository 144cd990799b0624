# mypy: ignore-errors
"""The attention kernel for prefixes that rows share: the prefix's keys are read once for many rows.

One program takes one kv head, as many rows of one group as fill its tile (each has one query), and the group's shared
keys or a part of them. It leaves a part, result and log-sum-exp, from which `triton_attention_short.py` starts on each
row's own keys. Sources: Juravsky et al. 2024 (Hydragen), https://arxiv.org/abs/2402.05099; Ye et al. 2024, cascade
inference, https://flashinfer.ai/2024/02/02/cascade-inference.html.

Legend: S rows (sequences), C groups of rows, H query heads, G kv heads, R = H / G, D head size (padded to a power of
two), M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl

from .triton_attention_tile import attend, load_queries, no_keys, store_part


@triton.jit(do_not_specialize=["window", "num_groups", "num_rows"])
def shared_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    group_starts_ptr,
    first_keys_ptr,
    end_keys_ptr,
    part_ptr,
    part_lse_ptr,
    k_desc,
    v_desc,
    scale_log2,
    window,
    num_groups,
    num_rows,
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
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Group c's first tile is group_starts[c] // BLOCK_Q + c, as `triton_attention_long.py` numbers those of rows.
    BLOCK_Q: tl.constexpr = BLOCK_M // REPEATS
    kv_head, tile = tl.program_id(0) % NUM_KV_HEADS, tl.program_id(0) // NUM_KV_HEADS
    group = tile * 0
    end_group = group + num_groups
    while end_group - group > 1:
        middle = (group + end_group) // 2
        is_past = (tl.load(group_starts_ptr + middle) // BLOCK_Q).to(tl.int32) + middle > tile
        end_group = tl.where(is_past, middle, end_group)
        group = tl.where(is_past, group, middle)
    group_start = tl.load(group_starts_ptr + group).to(tl.int32)
    group_end = tl.load(group_starts_ptr + group + 1).to(tl.int32)
    first_row = group_start + (tile - group - group_start // BLOCK_Q) * BLOCK_Q
    if first_row >= group_end:
        return
    first_key = tl.load(first_keys_ptr + group).to(tl.int32)
    end_key = tl.load(end_keys_ptr + group).to(tl.int32)
    span = tl.cdiv(tl.cdiv(end_key - first_key, BLOCK_K), tl.num_programs(1)) * BLOCK_K
    first_key = first_key + tl.program_id(1) * span
    end_key = tl.minimum(first_key + span, end_key)
    if first_key >= end_key:
        return
    line = group_start
    if rows_ptr is not None:
        line = tl.load(rows_ptr + group_start)
    lines_M = tl.arange(0, BLOCK_M)
    rows_M = first_row + lines_M // REPEATS
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    live_M = (lines_M < BLOCK_Q * REPEATS) & (rows_M < group_end)
    tokens_M = tl.load(starts_ptr + rows_M, mask=live_M, other=0)
    # A graph's padding may lie in a group; it has no query.
    live_M = live_M & (tl.load(starts_ptr + rows_M + 1, mask=live_M, other=0) > tokens_M)
    positions_M = tl.load(lens_ptr + rows_M, mask=live_M, other=0).to(tl.int32) - 1
    q_MD, scale_log2 = load_queries(
        q_ptr,
        tokens_M,
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
    out_MD, top_M, sum_M = attend(
        q_MD,
        positions_M,
        out_MD,
        top_M,
        sum_M,
        k_pages_ptr,
        v_pages_ptr,
        k_desc,
        v_desc,
        table_ptr + line.to(tl.int64) * table_stride,
        kv_head,
        first_key,
        end_key,
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
    part_lines_M = (tl.program_id(1) * num_rows + rows_M).to(tl.int64) * (NUM_KV_HEADS * REPEATS) + heads_M
    store_part(part_ptr, part_lse_ptr, part_lines_M, out_MD, top_M, sum_M, live_M, HEAD_SIZE, BLOCK_D)
