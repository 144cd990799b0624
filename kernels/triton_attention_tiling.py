# mypy: ignore-errors
"""How the Triton attention kernels cut their work: tiles by shape and dtype, parts by what fills the device.

Knows nothing of pages' contents: every choice is made from shapes, so that launches can be captured in a CUDA graph.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton

from .triton_device import num_processors

# A short row's keys are shared out until the grid has this many programs for each multiprocessor: more of them take
# longer to merge than they save, because the longest rows go first …
PROGRAMS_PER_PROCESSOR = 4
# … but no program is given fewer keys than this, unless its row has no more.
MIN_SPLIT_KEYS = 256
# A step of so many tokens for each of its rows is nearly all prefill.
PREFILL_TOKENS_A_ROW = 32
# Each part of a shared prefix costs a float32 result for every row.
MAX_SHARED_PARTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a kernel's work is cut: lines and keys of a tile, warps a program, tiles of keys on their way at once."""

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int
    # Tiles of keys and values come through the tensor memory accelerator (TMA).
    tma: bool = False


@cache
def short_tiling(repeats: int, block_d: int, pages_dtype: torch.dtype) -> Tiling:
    """Tensor cores want 16 lines; 64 keys of 128 in bfloat16, 16 KiB, keep enough loads in flight.

    Over 8-bit pages two warps were measured to reach 97% of the rate of a copy where four reached 93%.
    """
    block_m, block_k = max(16, triton.next_power_of_2(repeats)), max(16, min(64, 8192 // block_d))
    if pages_dtype.itemsize == 4:
        block_k = max(16, block_k // 2)
    return Tiling(block_m=block_m, block_k=block_k, num_warps=2 if pages_dtype.itemsize == 1 else 4, num_stages=3)


@cache
def long_tiling(repeats: int, block_d: int, dtype: torch.dtype) -> Tiling:
    """The smallest tile for one group of four warps, so that one program's exponentials run beside another's products.

    Three stages of 64 keys of 128 leave a multiprocessor just room for two programs. Products in float32 are made in
    registers and want small tiles.
    """
    if dtype == torch.float32:
        return Tiling(block_m=max(32, triton.next_power_of_2(repeats)), block_k=16, num_warps=4, num_stages=2)
    block_m, block_k, num_stages = max(64, triton.next_power_of_2(repeats)), *((64, 3) if block_d <= 128 else (32, 2))
    return Tiling(block_m=block_m, block_k=block_k, num_warps=4, num_stages=num_stages, tma=True)


def num_splits(programs: int, longest_context: int, device: torch.device) -> int:
    """Into how many parts each short row's keys are cut, from what the host knows without asking the device."""
    wanted = PROGRAMS_PER_PROCESSOR * num_processors(device)
    return max(1, min(wanted // programs, longest_context // MIN_SPLIT_KEYS))


def num_shared_parts(programs: int, longest_context: int, device: torch.device) -> int:
    """Into how many parts a shared prefix's keys are cut where all rows are in full tiles of one group."""
    return max(1, min(num_processors(device) // programs, longest_context // MIN_SPLIT_KEYS, MAX_SHARED_PARTS))


def long_programs(tiles: int, tokens: int, rows: int, device: torch.device) -> tuple[int, bool]:
    """How many programs take the tiles of prefills, of which there are at most so many; whether each takes several.

    Beside decodes there is one program for each multiprocessor: that leaves decodes room, and no others need be
    launched only to find that there is no tile for them. Where a step is nearly all prefill, a program takes one tile,
    so that a multiprocessor that is done early is given the next.
    """
    if tokens >= PREFILL_TOKENS_A_ROW * rows:
        return tiles, False
    return min(tiles, num_processors(device)), True
