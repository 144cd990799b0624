"""Attention over paged keys and values in plain torch: what `kernels/paged_attention.py` means.

It is also what serves on a CPU, so it is arranged for one: rows of a single query token (decodes) are sorted by
context length and worked on in groups whose gathered pages stay in the processor's cache; other rows (prefills) go
one at a time through torch's fused attention. Lengths come to the host once a call, so a call on a CUDA device
waits for it: there this file only serves to check the kernel.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, R = H / G query heads a kv head, D head size,
P pages, B tokens a page, N pages a line of the table, C rows of one group, W pages gathered for each row of a
group, K = W · B keys gathered for each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..paged_attention import Prefills, SharedPrefixes

# Keys of one group of decode rows; values take as much again. Measured on a 2-core EPYC: fewer bytes cost more calls,
# more of them fall out of the cache.
GROUP_BYTES = 4 << 20


def paged_attention(
    q_THD: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    page_table_RN: Tensor,
    query_starts_S1: Tensor,
    context_lens_S: Tensor,
    *,
    scale: float,
    window: int | None = None,
    max_query_len: int | None = None,
    rows_S: Tensor | None = None,
    shared: SharedPrefixes | None = None,
    prefills: Prefills | None = None,
) -> Tensor:
    """Return out_THD; `kernels/paged_attention.py` says what each argument is.

    The hint and the prefills are not needed here, and what is `shared` changes no result, so it is not looked at.
    """
    starts, contexts = query_starts_S1.tolist(), context_lens_S.tolist()
    lines = range(len(contexts)) if rows_S is None else rows_S.tolist()
    out_THD = q_THD.new_empty(q_THD.shape)
    decodes: list[int] = []
    for row, context in enumerate(contexts):
        start, end = starts[row], starts[row + 1]
        if end - start == 1:
            decodes.append(row)
        elif end > start:
            out_THD[start:end] = _attend_prefill(
                q_THD[start:end], k_pages_PGBD, v_pages_PGBD, page_table_RN[lines[row]], context, scale, window
            )
    if decodes:
        decodes.sort(key=contexts.__getitem__)
        lines_C = torch.tensor([lines[row] for row in decodes], device=q_THD.device)
        tokens_C = torch.tensor([starts[row] for row in decodes], device=q_THD.device)
        out_THD[tokens_C] = _attend_decodes(
            q_THD[tokens_C],
            k_pages_PGBD,
            v_pages_PGBD,
            page_table_RN[lines_C],
            [contexts[row] for row in decodes],
            scale,
            window,
        )
    return out_THD


def _attend_prefill(
    q_THD: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    table_N: Tensor,
    context: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of one row's query tokens, which are the last of its context."""
    (num_tokens, num_heads, head_size), num_kv_heads, page_size = q_THD.shape, *k_pages_PGBD.shape[1:3]
    first_query = context - num_tokens
    first_page = 0 if window is None else max(0, first_query - window + 1) // page_size
    first_key, end_page = first_page * page_size, -(-context // page_size)
    pages_1W = table_N[first_page:end_page].unsqueeze(0)
    # A stride of zero stands for the query heads that share a kv head, so keys and values are not repeated.
    repeats = num_heads // num_kv_heads
    q_GRTD = q_THD.view(num_tokens, num_kv_heads, repeats, head_size).permute(1, 2, 0, 3)
    k_GRKD, v_GRKD = (
        _gather(pages_PGBD, pages_1W, q_THD.dtype)[0, :, None, : context - first_key].expand(-1, repeats, -1, -1)
        for pages_PGBD in (k_pages_PGBD, v_pages_PGBD)
    )
    mask_TK = None
    if first_query > 0 or window is not None:
        queries_T1 = torch.arange(first_query, context, device=q_THD.device).unsqueeze(1)
        keys_K = torch.arange(first_key, context, device=q_THD.device)
        mask_TK = _visible(queries_T1, keys_K, window)
    out_GRTD = torch.nn.functional.scaled_dot_product_attention(
        q_GRTD, k_GRKD, v_GRKD, attn_mask=mask_TK, is_causal=mask_TK is None, scale=scale
    )
    return out_GRTD.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_size)


def _attend_decodes(
    q_CHD: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    table_CN: Tensor,
    lens: list[int],
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of rows with one query token each; lens, their context lengths, ascend."""
    num_kv_heads, page_size, head_size = k_pages_PGBD.shape[1:]
    wide, device = torch.promote_types(q_CHD.dtype, torch.float32), q_CHD.device
    q_CGRD = q_CHD.view(len(lens), num_kv_heads, -1, head_size).to(wide) * scale
    lens_C1 = torch.tensor(lens, device=device).unsqueeze(1)
    first_pages_C1 = torch.zeros_like(lens_C1) if window is None else (lens_C1 - window).clamp_(0) // page_size
    end_pages_C1 = (lens_C1 + page_size - 1) // page_size
    # Rows with fewer pages repeat their last one: entries beyond the context must not be looked up.
    columns_CW = first_pages_C1 + torch.arange(-(-lens[-1] // page_size), device=device)
    pages_CW = table_CN.gather(1, torch.minimum(columns_CW, end_pages_C1 - 1)).long()
    keys_CK = first_pages_C1 * page_size + torch.arange(pages_CW.shape[1] * page_size, device=device)
    hidden_CK = ~_visible(lens_C1 - 1, keys_CK, window)
    widths = (end_pages_C1 - first_pages_C1).squeeze(1).tolist()

    groups = _groups(widths, k_pages_PGBD[0].numel() * k_pages_PGBD.element_size())
    # One pair of buffers for all groups: fresh memory would cost a page fault every 4 KiB.
    size = max((end - start) * max(widths[start:end]) for start, end in groups)
    buffers = [k_pages_PGBD.new_empty(size * num_kv_heads, page_size * head_size) for _ in range(2)]
    out_CGRD = q_CHD.new_empty(q_CGRD.shape)
    for start, end in groups:
        pages_cW = pages_CW[start:end, : max(widths[start:end])]
        k_bKD = _gather(k_pages_PGBD, pages_cW, q_CHD.dtype, buffers[0]).flatten(0, 1)
        v_cGKD = _gather(v_pages_PGBD, pages_cW, q_CHD.dtype, buffers[1])
        num_keys = k_bKD.shape[1]
        hidden_cK = hidden_CK[start:end, :num_keys]
        # Slots never written may hold NaN, and 0 · NaN is NaN. All lie beyond the group's shortest context.
        tail = min(widths[start:end]) * page_size - page_size
        v_cGKD[:, :, tail:].masked_fill_(hidden_cK[:, None, tail:, None], 0)
        scores_bRK = torch.bmm(q_CGRD[start:end].flatten(0, 1), k_bKD.to(wide).mT)
        scores_cGRK = scores_bRK.view(end - start, num_kv_heads, -1, num_keys)
        unseen = tail if window is None else 0
        scores_cGRK[..., unseen:].masked_fill_(hidden_cK[:, None, None, unseen:], float("-inf"))
        weights_bRK = scores_bRK.softmax(-1).to(v_cGKD.dtype)
        out_CGRD[start:end].flatten(0, 1).copy_(torch.bmm(weights_bRK, v_cGKD.flatten(0, 1)))
    return out_CGRD.view(q_CHD.shape)


def _visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which key positions each query position may see; the arguments broadcast."""
    causal = keys <= queries
    return causal if window is None else causal & (keys > queries - window)


def _gather(pages_PGBD: Tensor, pages_CW: Tensor, dtype: torch.dtype, buffer: Tensor | None = None) -> Tensor:
    """Copy whole pages so that each head's keys of a row lie together: [C, G, W · B, D], in the buffer if given."""
    num_kv_heads, page_size, head_size = pages_PGBD.shape[1:]
    heads_G1 = torch.arange(num_kv_heads, device=pages_CW.device).unsqueeze(1)
    index = torch.add(heads_G1, pages_CW.long().unsqueeze(1), alpha=num_kv_heads).view(-1)
    flat = pages_PGBD.flatten(2).flatten(0, 1)
    if flat.dtype == torch.float8_e4m3fn:
        # torch neither selects nor multiplies 8-bit floats.
        picked = flat.view(torch.uint8).index_select(0, index).view(flat.dtype).to(dtype)
    else:
        picked = torch.index_select(flat, 0, index, out=None if buffer is None else buffer[: index.shape[0]])
    return picked.view(pages_CW.shape[0], num_kv_heads, pages_CW.shape[1] * page_size, head_size)


def _groups(widths: list[int], page_bytes: int) -> list[tuple[int, int]]:
    """Cut rows, which take `widths` pages each, into spans of at most GROUP_BYTES of keys, padding included."""
    spans: list[tuple[int, int]] = []
    start, widest = 0, 0
    for row, width in enumerate(widths):
        if row > start and (row + 1 - start) * max(widest, width) * page_bytes > GROUP_BYTES:
            spans.append((start, row))
            start, widest = row, 0
        widest = max(widest, width)
    spans.append((start, len(widths)))
    return spans
