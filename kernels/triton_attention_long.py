# mypy: ignore-errors
"""The attention kernel for rows with more queries than fit one small tile: prefills and chunks of them.

A program takes tiles of a row's queries and a kv head, one after another; there may be none for it.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G, D head size (padded to a power of two),
M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl

from .triton_attention_tile import attend, load_queries, no_keys, store_out


@triton.jit
def _attend_to_tile(
    number,
    num_prefills,
    num_tiles,
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    prefill_rows_ptr,
    prefill_starts_ptr,
    k_desc,
    v_desc,
    scale_log2,
    window,
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
    SHORT_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Tile and kv head of this number. A row's last tiles see the most keys, so they go first."""
    BLOCK_Q: tl.constexpr = BLOCK_M // REPEATS
    kv_head, tile = number % NUM_KV_HEADS, num_tiles - 1 - number // NUM_KV_HEADS
    prefill, end = tile * 0, num_prefills
    while end - prefill > 1:
        middle = (prefill + end) // 2
        is_past = tl.load(prefill_starts_ptr + middle) // BLOCK_Q + middle > tile
        end = tl.where(is_past, middle, end)
        prefill = tl.where(is_past, prefill, middle)
    row = tl.load(prefill_rows_ptr + prefill)
    start = tl.load(starts_ptr + row)
    num_queries = (tl.load(starts_ptr + row + 1) - start).to(tl.int32)
    first_query = (tile - tl.load(prefill_starts_ptr + prefill) // BLOCK_Q - prefill) * BLOCK_Q
    if (first_query < num_queries) & (num_queries * REPEATS > SHORT_M):
        context = tl.load(lens_ptr + row).to(tl.int32)
        line = row
        if rows_ptr is not None:
            line = tl.load(rows_ptr + row)
        lines_M = tl.arange(0, BLOCK_M)
        queries_M = first_query + lines_M // REPEATS
        heads_M = kv_head * REPEATS + lines_M % REPEATS
        live_M = (lines_M < BLOCK_Q * REPEATS) & (queries_M < num_queries)
        positions_M = tl.where(live_M, context - num_queries + queries_M, -1)
        q_MD, q_scale_log2 = load_queries(
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
        first_key = 0
        if HAS_WINDOW:
            first_key = tl.maximum(context - num_queries + first_query - window + 1, 0) // PAGE_SIZE * PAGE_SIZE
        out_MD, top_M, sum_M = no_keys(BLOCK_M, BLOCK_D)
        out_MD, _, sum_M = attend(
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
            context - num_queries + first_query + 1,
            context - num_queries + tl.minimum(first_query + BLOCK_Q, num_queries),
            q_scale_log2,
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
        tokens_M = start + queries_M
        store_out(out_ptr, out_MD, sum_M, tokens_M, heads_M, live_M, NUM_KV_HEADS * REPEATS, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize=["window"])
def long_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    prefill_rows_ptr,
    prefill_starts_ptr,
    num_prefills_ptr,
    k_desc,
    v_desc,
    scale_log2,
    window,
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
    SHORT_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    # Tiles are numbered prefill after prefill, each with room for one that is partly filled.
    num_prefills = tl.load(num_prefills_ptr)
    num_tiles = tl.load(prefill_starts_ptr + num_prefills) // (BLOCK_M // REPEATS) + num_prefills
    num_rounds = 1
    if PERSISTENT:
        num_rounds = tl.cdiv(num_tiles * NUM_KV_HEADS, tl.num_programs(0))
    for nth in range(num_rounds):
        number = tl.program_id(0) + nth * tl.num_programs(0)
        if number < num_tiles * NUM_KV_HEADS:
            _attend_to_tile(
                number,
                num_prefills,
                num_tiles,
                q_ptr,
                k_pages_ptr,
                v_pages_ptr,
                table_ptr,
                rows_ptr,
                starts_ptr,
                lens_ptr,
                out_ptr,
                prefill_rows_ptr,
                prefill_starts_ptr,
                k_desc,
                v_desc,
                scale_log2,
                window,
                q_token_stride,
                q_head_stride,
                table_stride,
                k_page_stride,
                k_head_stride,
                k_token_stride,
                v_page_stride,
                v_head_stride,
                v_token_stride,
                NUM_KV_HEADS,
                REPEATS,
                HEAD_SIZE,
                PAGE_SIZE,
                HAS_WINDOW,
                SHORT_M,
                BLOCK_M,
                BLOCK_K,
                BLOCK_D,
            )
