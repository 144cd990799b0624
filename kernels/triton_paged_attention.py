# mypy: ignore-errors
"""Launches the Triton kernels behind `kernels/paged_attention.py`.

Rows whose queries fit one small tile (decodes) are `triton_attention_short.py`'s, all others (prefills)
`triton_attention_long.py`'s. Both kernels run over a grid that shapes alone decide, and a program that finds its row
to be the other's leaves at once: nothing is read back to the host, and the launches can be captured in a CUDA graph.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page, N pages a row.
"""

from dataclasses import dataclass
from math import e, log2

import torch
import triton
from torch import Tensor

from .triton_attention_long import long_kernel
from .triton_attention_short import merge_kernel, short_kernel

# A short row's keys are shared out until the grid has this many programs for each multiprocessor …
PROGRAMS_PER_PROCESSOR = 16
# … but no program is given fewer keys than this, at the longest context.
MIN_SPLIT_KEYS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a kernel's work is cut: lines and keys of a tile, warps a program, tiles of keys on their way at once."""

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def _short_tiling(repeats: int, row_bytes: int) -> Tiling:
    """Tensor cores want 16 lines; 16 KiB of keys a tile keep enough loads in flight with two programs a processor."""
    block_m = max(16, triton.next_power_of_2(repeats))
    return Tiling(block_m=block_m, block_k=_tile_keys(16384, row_bytes, 128), num_warps=4, num_stages=3)


def _long_tiling(repeats: int, row_bytes: int, dtype: torch.dtype) -> Tiling:
    """Large tiles where the tensor cores do the work; small ones in float32, which is multiplied in registers."""
    if dtype == torch.float32:
        block_m, block_k, num_warps = 32, 16, 4
    elif row_bytes <= 256:
        block_m, block_k, num_warps = 128, 64, 8
    else:
        block_m, block_k, num_warps = 64, 32, 4
    block_m = max(block_m, triton.next_power_of_2(repeats))
    return Tiling(block_m=block_m, block_k=block_k, num_warps=num_warps, num_stages=2)


def _tile_keys(tile_bytes: int, row_bytes: int, most: int) -> int:
    return max(16, min(most, tile_bytes // row_bytes))


def _num_splits(programs: int, longest_context: int, device: torch.device) -> int:
    """Into how many parts each short row's keys are cut, from what the host knows without asking the device."""
    if device.type != "cuda":
        return 1
    wanted = PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(wanted // programs, longest_context // MIN_SPLIT_KEYS))


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
    num_splits: int | None = None,
) -> Tensor:
    """Launch the kernels; `kernels/paged_attention.py` says what they compute.

    `num_splits`, for tests and measurements, fixes into how many parts a short row's keys are cut.
    """
    (num_tokens, num_heads, head_size), (_, num_kv_heads, page_size, _) = q_THD.shape, k_pages_PGBD.shape
    num_rows, repeats = context_lens_S.shape[0], num_heads // num_kv_heads
    assert num_heads == repeats * num_kv_heads
    assert k_pages_PGBD.shape == v_pages_PGBD.shape
    assert k_pages_PGBD.shape[3] == head_size
    assert q_THD.dtype == k_pages_PGBD.dtype == v_pages_PGBD.dtype != torch.float64
    assert query_starts_S1.shape == (num_rows + 1,)
    assert page_table_SN.shape[0] == num_rows
    assert all(x.stride(-1) == 1 for x in (q_THD, k_pages_PGBD, v_pages_PGBD, page_table_SN))
    assert query_starts_S1.is_contiguous()
    assert context_lens_S.is_contiguous()
    assert window is None or window > 0
    out_THD = q_THD.new_empty(q_THD.shape)
    if num_tokens == 0 or num_rows == 0:
        return out_THD
    block_d = triton.next_power_of_2(head_size)
    call = _Call(
        tensors=(q_THD, k_pages_PGBD, v_pages_PGBD, page_table_SN, query_starts_S1, context_lens_S, out_THD),
        strides=(
            *q_THD.stride()[:2],
            page_table_SN.stride(0),
            *k_pages_PGBD.stride()[:3],
            *v_pages_PGBD.stride()[:3],
        ),
        scale_log2=scale * log2(e),
        window=window,
        page_size=page_size,
        num_programs=num_rows * num_kv_heads,
        sizes={
            "NUM_KV_HEADS": num_kv_heads,
            "REPEATS": repeats,
            "HEAD_SIZE": head_size,
            "BLOCK_D": block_d,
        },
    )
    row_bytes = block_d * q_THD.element_size()
    short = _short_tiling(repeats, row_bytes)
    if num_splits is None:
        longest = page_table_SN.shape[1] * page_size if max_context_len is None else max_context_len
        num_splits = _num_splits(call.num_programs, longest, q_THD.device)
    _launch_short(call, short, num_splits)
    if max_query_len is None or max_query_len * repeats > short.block_m:
        _launch_long(call, _long_tiling(repeats, row_bytes, q_THD.dtype), short.block_m)
    return out_THD


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """What both launches are given: tensors and strides in the kernels' order, and the constants of the shapes."""

    tensors: tuple[Tensor, ...]
    strides: tuple[int, ...]
    scale_log2: float
    window: int | None
    page_size: int
    num_programs: int
    sizes: dict[str, int]


def _launch_short(call: _Call, tiling: Tiling, num_splits: int) -> None:
    *_, starts_S1, _, out_THD = call.tensors
    parts = parts_lse = None
    if num_splits > 1:
        parts_lse = out_THD.new_empty(num_splits, call.num_programs, tiling.block_m, dtype=torch.float32)
        parts = out_THD.new_empty(*parts_lse.shape, call.sizes["BLOCK_D"], dtype=torch.float32)
    short_kernel[(call.num_programs, num_splits)](
        *call.tensors,
        parts,
        parts_lse,
        call.scale_log2,
        call.window or 0,
        num_splits,
        *call.strides,
        **call.sizes,
        PAGE_SIZE=call.page_size,
        HAS_WINDOW=call.window is not None,
        SPLIT=num_splits > 1,
        BLOCK_M=tiling.block_m,
        BLOCK_K=tiling.block_k,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if num_splits > 1:
        merge_kernel[(call.num_programs,)](
            parts, parts_lse, starts_S1, out_THD, num_splits, **call.sizes, BLOCK_M=tiling.block_m
        )


def _launch_long(call: _Call, tiling: Tiling, short_m: int) -> None:
    num_tokens, num_rows = call.tensors[0].shape[0], call.tensors[3].shape[0]
    num_tiles = num_tokens // (tiling.block_m // call.sizes["REPEATS"]) + num_rows
    long_kernel[(num_tiles * call.sizes["NUM_KV_HEADS"],)](
        *call.tensors,
        call.scale_log2,
        call.window or 0,
        num_rows,
        *call.strides,
        **call.sizes,
        PAGE_SIZE=call.page_size,
        HAS_WINDOW=call.window is not None,
        SHORT_M=short_m,
        BLOCK_M=tiling.block_m,
        BLOCK_K=tiling.block_k,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
