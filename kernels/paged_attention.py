"""Attention of prefill and decode rows, mixed, over keys and values that lie in pages.

Knows nothing of requests: a row is a span of query tokens, a list of pages and a length.
T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page, N pages a row.
"""

from collections.abc import Callable

from torch import Tensor

from .reference import paged_attention as reference


def paged_attention(
    q_THD: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    page_table_SN: Tensor,
    query_starts_S1: Tensor,
    context_lens_S: Tensor,
    *,
    scale: float,
    window: int | None = None,
    max_query_len: int | None = None,
    max_context_len: int | None = None,
) -> Tensor:
    """Return out_THD, causal grouped-query attention of each row's queries over that row's pages.

    Row s's queries are q_THD[query_starts_S1[s] : query_starts_S1[s + 1]] (S + 1 starts; a row may have none) and are
    the last tokens of its context_lens_S[s] tokens, whose keys and values are all in the pages already. With a
    `window`, a query at position p sees the keys p - window < k ≤ p. Entries of page_table_SN beyond a row's context,
    or for pages that lie wholly before the windows of all its queries, are never looked up; slots beyond the context
    are never used; tokens of q_THD that no row covers are left unwritten in the result. A page holds 16 tokens or a
    multiple of that.

    On a GPU nothing is read back to the host, so the launch can be captured in a CUDA graph. Two hints, which must
    hold for the values on the device (in a graph: at every replay), save work there: `max_query_len` ≥ the longest
    row of queries (1: decodes only), `max_context_len` ≥ the longest context (default: what the table can hold).
    """
    if q_THD.is_cuda:
        from . import triton_paged_attention

        attend: Callable[..., Tensor] = triton_paged_attention.paged_attention
    else:
        attend = reference.paged_attention
    return attend(
        q_THD,
        k_pages_PGBD,
        v_pages_PGBD,
        page_table_SN,
        query_starts_S1,
        context_lens_S,
        scale=scale,
        window=window,
        max_query_len=max_query_len,
        max_context_len=max_context_len,
    )
