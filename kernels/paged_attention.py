"""Attention of prefill and decode rows, mixed, over keys and values that lie in pages.

Knows nothing of requests: a row is a span of query tokens, a list of pages and a length.
T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page,
R lines of the page table, N pages a line, C groups of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .reference import paged_attention as reference
from .reference import prefills as reference_prefills


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedLevel:
    """Groups of neighbouring rows whose key positions first_keys[c] ≤ k < end_keys[c] lie in the same pages.

    Group c holds the rows group_starts[c] ≤ s < group_starts[c + 1] (starts ascend; a group may be empty). The
    shared positions, multiples of the page size, are looked up in the table line of the group's first row. All are
    int32 tensors on the device, contiguous.
    """

    group_starts: Tensor  # [C + 1]
    first_keys: Tensor  # [C]
    end_keys: Tensor  # [C]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefixes:
    """What a step's rows share, read once for all rows of a group and not once for each.

    Levels lie one behind the other: a system prompt, then examples below it. Row s alone attends to the keys from
    own_first_keys[s] on (int32; a multiple of the page size), and the levels' ranges of the groups that it is in
    must make up exactly the keys before that; 0 for a row in no group. Rows in a group have one query (decodes) or
    none, and with a window none of the shared pages may lie wholly before the window of the group's first row.
    """

    levels: tuple[SharedLevel, ...]
    own_first_keys: Tensor  # [S]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefills:
    """A step's rows that have more than one query, found once for all of a model's layers. All int32."""

    rows_S: Tensor  # in order, so many as there are
    starts_S1: Tensor  # how many queries those before each have together; the sum of all behind the last
    count: Tensor  # [1]


def find_prefills(query_starts_S1: Tensor) -> Prefills:
    """Find them by the starts (int32) of all rows' queries; on a GPU nothing is read back to the host."""
    if query_starts_S1.is_cuda:
        from . import triton_prefills

        find: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = triton_prefills.find_prefills
    else:
        find = reference_prefills.find_prefills
    rows_S, starts_S1, count = find(query_starts_S1)
    return Prefills(rows_S=rows_S, starts_S1=starts_S1, count=count)


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
    """Return out_THD, causal grouped-query attention of each row's queries over that row's pages.

    Row s's queries are q_THD[query_starts_S1[s] : query_starts_S1[s + 1]] (S + 1 starts, int32; there may be none) and
    are the last tokens of its context_lens_S[s] tokens, whose keys and values are all in the pages already. Its pages
    are page_table_RN[rows_S[s]] (int32 or int64, one line may serve several rows), or without `rows_S`
    page_table_RN[s]. With a `window`, a query at position p sees the keys p - window < k ≤ p. Entries of the table
    beyond a row's context, or for pages that lie wholly before the windows of all its queries, are never looked up,
    nor is anything of a row without queries; slots beyond the context are never used; tokens of q_THD that no row
    covers are left unwritten in the result. A page holds 16 tokens or a multiple of that. Pages are of the queries'
    dtype, or of torch.float8_e4m3fn, whose values are taken as they are. What is `shared` changes no result, only the
    work.

    On a GPU nothing is read back to the host, so the launch can be captured in a CUDA graph, and the contents of all
    tensors changed between replays. A hint, which must hold for the values on the device (in a graph: at every replay),
    saves work there: `max_query_len` ≥ the longest row of queries (1: decodes only). `prefills`, if given, are those
    of `query_starts_S1`; without them each call finds them.
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
        page_table_RN,
        query_starts_S1,
        context_lens_S,
        scale=scale,
        window=window,
        max_query_len=max_query_len,
        rows_S=rows_S,
        shared=shared,
        prefills=prefills,
    )
