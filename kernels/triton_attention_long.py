# mypy: ignore-errors
"""The attention kernel for rows with more queries than fit one small tile: prefills and chunks of them.

One program takes one tile of one row's queries and one kv head; programs without such a tile leave at once.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G, D head size (padded to a power of two),
M lines of a query tile, K keys of a tile.
"""

import triton
import triton.language as tl

from .triton_attention_tile import attend, load_queries, no_keys, store_out


@triton.jit
def _first_tile(start, row, BY_TOKENS: tl.constexpr, BLOCK_Q: tl.constexpr, MIN_Q: tl.constexpr):
    """The first tile of a row that starts at a token. Tiles are numbered row after row, with no count on the host.

    By rows, each has room for one tile that is partly filled. By tokens, a row has room for n / BLOCK_Q + n / MIN_Q
    tiles of its n queries, which is enough for rows of at least MIN_Q, the only ones that are looked for here.
    """
    if BY_TOKENS:
        return (start.to(tl.int64) * (BLOCK_Q + MIN_Q) // (BLOCK_Q * MIN_Q)).to(tl.int32)
    return (start // BLOCK_Q).to(tl.int32) + row


@triton.jit(do_not_specialize=["window", "num_rows"])
def long_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    table_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    k_desc,
    v_desc,
    scale_log2,
    window,
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
    SHORT_M: tl.constexpr,
    BY_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A row's last tiles see the most keys, so they go first.
    BLOCK_Q: tl.constexpr = BLOCK_M // REPEATS
    MIN_Q: tl.constexpr = SHORT_M // REPEATS + 1
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    tile = tl.num_programs(0) // NUM_KV_HEADS - 1 - tl.program_id(0) // NUM_KV_HEADS
    row = tile * 0
    end_row = row + num_rows
    while end_row - row > 1:
        middle = (row + end_row) // 2
        is_past = _first_tile(tl.load(starts_ptr + middle), middle, BY_TOKENS, BLOCK_Q, MIN_Q) > tile
        end_row = tl.where(is_past, middle, end_row)
        row = tl.where(is_past, row, middle)
    start = tl.load(starts_ptr + row)
    num_queries = (tl.load(starts_ptr + row + 1) - start).to(tl.int32)
    first_query = (tile - _first_tile(start, row, BY_TOKENS, BLOCK_Q, MIN_Q)) * BLOCK_Q
    if (first_query >= num_queries) | (num_queries * REPEATS <= SHORT_M):
        return
    context = tl.load(lens_ptr + row).to(tl.int32)
    line = row
    if rows_ptr is not None:
        line = tl.load(rows_ptr + row)
    lines_M = tl.arange(0, BLOCK_M)
    queries_M = first_query + lines_M // REPEATS
    heads_M = kv_head * REPEATS + lines_M % REPEATS
    live_M = (lines_M < BLOCK_Q * REPEATS) & (queries_M < num_queries)
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
    store_out(out_ptr, out_MD, sum_M, start + queries_M, heads_M, live_M, NUM_KV_HEADS * REPEATS, HEAD_SIZE, BLOCK_D)
