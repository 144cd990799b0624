# mypy: ignore-errors
"""Launches the Triton kernels behind `kernels/paged_attention.py`.

Rows whose queries fit one small tile (decodes) are `triton_attention_short.py`'s, all others (prefills)
`triton_attention_long.py`'s, and what decodes share is first `triton_attention_shared.py`'s. The kernels run over
grids that shapes alone decide, whose programs find their work, or none, on the device: nothing is read back to the
host, and the launches can be captured in a CUDA graph. A prefill's last queries go through many keys one after another
and leave much of the device to others, so prefills run beside decodes.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page,
R lines of the page table, N pages a line.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from math import e, log2

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import triton_attention_tiling as tilings
from .paged_attention import Prefills, SharedPrefixes, find_prefills
from .triton_attention_long import long_kernel
from .triton_attention_shared import shared_kernel
from .triton_attention_short import merge_kernel, short_kernel
from .triton_attention_tiling import Tiling
from .triton_compiling import launcher
from .triton_device import beside


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
    num_splits: int | None = None,
    num_shared_parts: int | None = None,
) -> Tensor:
    """Launch the kernels; `kernels/paged_attention.py` says what they compute.

    For tests and measurements, `num_splits` and `num_shared_parts` fix into how many parts a short row's own keys and
    a shared prefix's are cut, however few they are.
    """
    (num_tokens, num_heads, head_size), (_, num_kv_heads, page_size, _) = q_THD.shape, k_pages_PGBD.shape
    num_rows, repeats = context_lens_S.shape[0], num_heads // num_kv_heads
    assert num_heads == repeats * num_kv_heads
    assert k_pages_PGBD.shape == v_pages_PGBD.shape
    assert k_pages_PGBD.shape[3] == head_size
    assert k_pages_PGBD.dtype == v_pages_PGBD.dtype
    assert k_pages_PGBD.dtype in (q_THD.dtype, torch.float8_e4m3fn)
    assert q_THD.dtype != torch.float64
    assert query_starts_S1.shape == (num_rows + 1,)
    assert page_table_RN.shape[0] == num_rows or rows_S is not None
    assert rows_S is None or (rows_S.shape == (num_rows,) and rows_S.is_contiguous())
    assert all(x.stride(-1) == 1 for x in (q_THD, k_pages_PGBD, v_pages_PGBD, page_table_RN))
    assert query_starts_S1.is_contiguous()
    assert context_lens_S.is_contiguous()
    assert window is None or window > 0
    assert scale > 0
    out_THD = q_THD.new_empty(q_THD.shape)
    if num_tokens == 0 or num_rows == 0:
        return out_THD
    block_d = triton.next_power_of_2(head_size)
    call = _Call(
        inputs=(q_THD, k_pages_PGBD, v_pages_PGBD, page_table_RN, rows_S, query_starts_S1, context_lens_S),
        out=out_THD,
        strides=(
            *q_THD.stride()[:2],
            page_table_RN.stride(0),
            *k_pages_PGBD.stride()[:3],
            *v_pages_PGBD.stride()[:3],
        ),
        scale_log2=scale * log2(e),
        window=window,
        num_rows=num_rows,
        num_kv_heads=num_kv_heads,
        longest_context=page_table_RN.shape[1] * page_size,
        constants={
            "NUM_KV_HEADS": num_kv_heads,
            "REPEATS": repeats,
            "HEAD_SIZE": head_size,
            "PAGE_SIZE": page_size,
            "HAS_WINDOW": window is not None,
            "BLOCK_D": block_d,
        },
    )
    short = tilings.short_tiling(repeats, block_d, k_pages_PGBD.dtype)
    long = tilings.long_tiling(repeats, block_d, q_THD.dtype)
    with ExitStack() as others:
        if max_query_len is None or max_query_len * repeats > short.block_m:
            found = prefills or find_prefills(query_starts_S1)
            others.enter_context(beside(q_THD.device, lambda: _launch_long(call, long, short.block_m, found)))
        parts = None if shared is None else _launch_shared(call, shared, long, num_shared_parts)
        _launch_short(call, short, num_splits, shared, parts)
    return out_THD


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """What all launches are given: tensors and strides in the kernels' order, and the constants of the shapes."""

    inputs: tuple[Tensor | None, ...]
    out: Tensor
    strides: tuple[int, ...]
    scale_log2: float
    window: int | None
    num_rows: int
    num_kv_heads: int
    longest_context: int
    constants: dict[str, int | bool]

    def options(self, tiling: Tiling) -> dict[str, int | bool]:
        """The keyword arguments of a launch with this tiling."""
        return {
            **self.constants,
            "BLOCK_M": tiling.block_m,
            "BLOCK_K": tiling.block_k,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }

    def descriptors(self, tiling: Tiling) -> tuple[TensorDescriptor | None, ...]:
        """Pages of keys and of values as matrices for the TMA; None where it cannot load a tile in one piece."""
        pages = self.inputs[1:3]
        fits = all(x.is_contiguous() and x.stride(2) * x.element_size() % 16 == 0 for x in pages)
        if not tiling.tma or not fits or self.constants["PAGE_SIZE"] % tiling.block_k != 0:
            return None, None
        block = [tiling.block_k, self.constants["BLOCK_D"]]
        return tuple(TensorDescriptor.from_tensor(x.flatten(0, 2), block) for x in pages)


@dataclass(frozen=True, kw_only=True, slots=True)
class _SharedParts:
    """What the passes over shared keys leave: results [parts, S, H, D] and log-sum-exps [parts, S, H]."""

    results: Tensor
    lse: Tensor


def _launch_shared(call: _Call, shared: SharedPrefixes, tiling: Tiling, num_parts: int | None) -> _SharedParts:
    q_THD, num_levels = call.inputs[0], len(shared.levels)
    rows_per_tile = tiling.block_m // call.constants["REPEATS"]
    if num_parts is None:
        programs = triton.cdiv(call.num_rows, rows_per_tile) * call.num_kv_heads
        num_parts = tilings.num_shared_parts(programs, call.longest_context, q_THD.device)
    shape = (num_levels * num_parts, call.num_rows, *q_THD.shape[1:])
    results = q_THD.new_empty(shape, dtype=torch.float32)
    lse = q_THD.new_full(shape[:3], float("-inf"), dtype=torch.float32)
    for index, level in enumerate(shared.levels):
        num_groups = level.first_keys.shape[0]
        num_tiles = call.num_rows // rows_per_tile + num_groups
        launcher(shared_kernel, (num_tiles * call.num_kv_heads, num_parts))(
            *call.inputs,
            level.group_starts,
            level.first_keys,
            level.end_keys,
            results[index * num_parts :],
            lse[index * num_parts :],
            *call.descriptors(tiling),
            call.scale_log2,
            call.window or 0,
            num_groups,
            call.num_rows,
            *call.strides,
            **call.options(tiling),
        )
    return _SharedParts(results=results, lse=lse)


def _launch_short(
    call: _Call,
    tiling: Tiling,
    num_splits: int | None,
    shared: SharedPrefixes | None,
    shared_parts: _SharedParts | None,
) -> None:
    out_THD, num_programs = call.out, call.num_rows * call.num_kv_heads
    min_split_keys = 1
    if num_splits is None:
        num_splits = tilings.num_splits(num_programs, call.longest_context, out_THD.device)
        min_split_keys = tilings.MIN_SPLIT_KEYS
    parts = parts_lse = None
    if num_splits > 1:
        parts_lse = out_THD.new_empty(num_splits, num_programs, tiling.block_m, dtype=torch.float32)
        parts = out_THD.new_empty(*parts_lse.shape, call.constants["HEAD_SIZE"], dtype=torch.float32)
    launcher(short_kernel, (num_programs, num_splits))(
        *call.inputs,
        out_THD,
        parts,
        parts_lse,
        None if shared is None else shared.own_first_keys,
        None if shared_parts is None else shared_parts.results,
        None if shared_parts is None else shared_parts.lse,
        call.scale_log2,
        call.window or 0,
        num_splits,
        min_split_keys,
        0 if shared_parts is None else shared_parts.lse.shape[0],
        *call.strides,
        **call.options(tiling),
        HAS_SHARED=shared is not None,
        SPLIT=num_splits > 1,
    )
    if num_splits > 1:
        sizes = {name: call.constants[name] for name in ("NUM_KV_HEADS", "REPEATS", "HEAD_SIZE", "BLOCK_D")}
        starts_S1 = call.inputs[5]
        launcher(merge_kernel, (num_programs,))(
            parts, parts_lse, starts_S1, out_THD, num_splits, **sizes, BLOCK_M=tiling.block_m
        )


def _launch_long(call: _Call, tiling: Tiling, short_m: int, prefills: Prefills) -> None:
    num_tokens = call.out.shape[0]
    # Each row, of two queries at least, has room for one tile that is partly filled.
    most_tiles = num_tokens // (tiling.block_m // call.constants["REPEATS"]) + min(call.num_rows, num_tokens // 2)
    if not most_tiles:
        return
    num_programs, persistent = tilings.long_programs(
        most_tiles * call.num_kv_heads, num_tokens, call.num_rows, call.out.device
    )
    launcher(long_kernel, (num_programs,))(
        *call.inputs,
        call.out,
        prefills.rows_S,
        prefills.starts_S1,
        prefills.count,
        *call.descriptors(tiling),
        call.scale_log2,
        call.window or 0,
        *call.strides,
        **call.options(tiling),
        SHORT_M=short_m,
        PERSISTENT=persistent,
    )
