# mypy: ignore-errors
"""The Triton kernel behind `kernels/gated_product.py`: as many programs as multiprocessors, each of which takes tiles.

Sums stay in registers until the activation: what the product leaves is never written and read again. Because gate and
up alternate, both sums of a feature lie beside each other in the same thread. Two products for a tile, one with each
part of the weight, were measured to take 1.25 times as long. Tiles come and go through the tensor memory accelerator
(TMA), the next tile's first while the last one's sums are worked off; tiles that share weights follow each other, so
that these are read out of the L2 cache.

Where the last round of tiles would leave most multiprocessors idle, several programs share each of its tiles: each
multiplies a part of the inputs, then waits for the others and finishes a part of the tile's tokens.

T tokens, F features, K inputs; M tokens, N rows of the weight of a tile.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .triton_compiling import launcher
from .triton_device import num_processors

BLOCK_M, BLOCK_N, BLOCK_K, NUM_WARPS = 128, 256, 64, 8
# Of a column of tiles at most so many rows are taken before the next column's.
MAX_GROUP_M = 8
# Up to so many tokens four tiles are on their way at once, beyond that three: each was measured to be the faster.
FEW_TOKENS = 768
# A tile of fewer inputs is not worth sharing: handing the sums over costs as much as some ten tiles' steps.
MIN_SHARED_INPUTS = 2048
# After more rounds than this the last one hardly counts.
MAX_ROUNDS = 16
_MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def _place(tile, num_m, num_n, group_m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first token and the first row of the weight of a tile."""
    first_m = tile // (group_m * num_n) * group_m
    height = min(num_m - first_m, group_m)
    return (first_m + tile % (group_m * num_n) % height) * BLOCK_M, tile % (group_m * num_n) // height * BLOCK_N


@triton.jit
def _gated(sum_MN, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    gate, up = tl.split(tl.reshape(sum_MN, (BLOCK_M, BLOCK_N // 2, 2)))
    return gate * up / (1 + tl.exp2(gate * _MINUS_LOG2_E))


@triton.jit(do_not_specialize=["num_tokens", "group_m"])
def _gated_product_kernel(
    x_desc,
    weight_desc,
    y_desc,
    y_ptr,
    parts_ptr,
    counts_ptr,
    num_tokens,
    num_features,
    num_inputs,
    group_m,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_PROCESSORS: tl.constexpr,
    NUM_SHARERS: tl.constexpr,
):
    num_m, num_n = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(2 * num_features, BLOCK_N)
    num_alone = num_m * num_n
    if NUM_SHARERS > 1:
        num_alone = num_alone // NUM_PROCESSORS * NUM_PROCESSORS
    for tile in tl.range(tl.program_id(0), num_alone, NUM_PROCESSORS, flatten=True):
        m, n = _place(tile, num_m, num_n, group_m, BLOCK_M, BLOCK_N)
        sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, num_inputs, BLOCK_K):
            sum_MN = tl.dot(x_desc.load([m, k]), weight_desc.load([n, k]).T, sum_MN)
        y_desc.store([m, n // 2], _gated(sum_MN, BLOCK_M, BLOCK_N).to(y_desc.dtype))
    if NUM_SHARERS > 1:
        shared, sharer = tl.program_id(0) // NUM_SHARERS, tl.program_id(0) % NUM_SHARERS
        if shared < num_m * num_n - num_alone:
            m, n = _place(num_alone + shared, num_m, num_n, group_m, BLOCK_M, BLOCK_N)
            span = tl.cdiv(num_inputs, BLOCK_K * NUM_SHARERS) * BLOCK_K
            sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(sharer * span, min((sharer + 1) * span, num_inputs), BLOCK_K):
                sum_MN = tl.dot(x_desc.load([m, k]), weight_desc.load([n, k]).T, sum_MN)
            lines_M1, columns_1N = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
            tile_ptr = parts_ptr + shared * NUM_SHARERS * BLOCK_M * BLOCK_N
            tl.store(tile_ptr + (sharer * BLOCK_M + lines_M1) * BLOCK_N + columns_1N, sum_MN)
            _meet(counts_ptr + 2 * shared, NUM_SHARERS)
            BLOCK_L: tl.constexpr = BLOCK_M // NUM_SHARERS
            lines_L1 = sharer * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
            sum_LN = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
            for part in tl.static_range(NUM_SHARERS):
                part_ptrs = tile_ptr + (part * BLOCK_M + lines_L1) * BLOCK_N + columns_1N
                sum_LN += tl.load(part_ptrs, cache_modifier=".cg")
            y_LF = _gated(sum_LN, BLOCK_L, BLOCK_N)
            tokens_L1, features_1F = m + lines_L1, n // 2 + tl.arange(0, BLOCK_N // 2)[None, :]
            mask = (tokens_L1 < num_tokens) & (features_1F < num_features)
            y_ptrs = y_ptr + tokens_L1.to(tl.int64) * num_features + features_1F
            tl.store(y_ptrs, y_LF.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _meet(counts_ptr, NUM_SHARERS: tl.constexpr):
    """Wait until all who share a tile have stored their part of it; leave both counts at zero for the next time.

    All of them run at once, because there are no more programs than multiprocessors.
    """
    tl.debug_barrier()  # This program's stores come before its count.
    tl.atomic_add(counts_ptr, 1, sem="release")
    while tl.atomic_add(counts_ptr, 0, sem="acquire") < NUM_SHARERS:
        pass
    tl.debug_barrier()
    if tl.atomic_add(counts_ptr + 1, 1) == NUM_SHARERS - 1:
        tl.store(counts_ptr, 0)
        tl.store(counts_ptr + 1, 0)


def gated_product(x_TK: Tensor, weight_2FK: Tensor) -> Tensor:
    """Launch the kernel; `kernels/gated_product.py` says what it computes, and of which shapes.

    Launches on one device must follow each other, in one stream: they share the memory that parts are handed over in.
    """
    (num_tokens, num_inputs), num_features = x_TK.shape, len(weight_2FK) // 2
    assert x_TK.dtype == weight_2FK.dtype
    assert x_TK.dtype in (torch.bfloat16, torch.float16)
    y_TF = x_TK.new_empty(num_tokens, num_features)
    processors = num_processors(x_TK.device)
    num_tiles = _num_tiles(num_tokens, 2 * num_features)
    sharers = num_sharers(num_tiles, num_inputs, processors)
    parts, counts = _meeting_place(x_TK.device) if sharers > 1 else (None, None)
    launcher(_gated_product_kernel, (min(num_tiles, processors),))(
        TensorDescriptor.from_tensor(x_TK, [BLOCK_M, BLOCK_K]),
        TensorDescriptor.from_tensor(weight_2FK, [BLOCK_N, BLOCK_K]),
        TensorDescriptor.from_tensor(y_TF, [BLOCK_M, BLOCK_N // 2]),
        y_TF,
        parts,
        counts,
        num_tokens,
        num_features,
        num_inputs,
        _group_m(num_tokens),
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        NUM_PROCESSORS=processors,
        NUM_SHARERS=sharers,
        num_warps=NUM_WARPS,
        num_stages=4 if num_tokens <= FEW_TOKENS else 3,
    )
    return y_TF


def num_sharers(num_tiles: int, num_inputs: int, processors: int) -> int:
    """How many programs share each tile of the last round, a power of two; 1 where none is worth sharing."""
    num_left = num_tiles % processors
    if not processors <= num_tiles < MAX_ROUNDS * processors or num_inputs < MIN_SHARED_INPUTS or not num_left:
        return 1
    return max(sharers for sharers in (1, 2, 4, 8) if sharers * num_left <= processors)


def share_in_use(num_tokens: int, num_rows: int, num_inputs: int, device: torch.device) -> float:
    """Of all multiprocessors, over the time that the tiles of so many tokens and rows of weights take them."""
    num_tiles, processors = _num_tiles(num_tokens, num_rows), num_processors(device)
    num_rounds, num_left = divmod(num_tiles, processors)
    last_round = 1 / num_sharers(num_tiles, num_inputs, processors) if num_left else 0
    return num_tiles / (processors * (num_rounds + last_round))


def _group_m(num_tokens: int) -> int:
    """Groups of equal height: in one of a single row of tiles no weights are read twice out of the cache."""
    num_m = triton.cdiv(num_tokens, BLOCK_M)
    return triton.cdiv(num_m, triton.cdiv(num_m, MAX_GROUP_M))


def _num_tiles(num_tokens: int, num_rows: int) -> int:
    return triton.cdiv(num_tokens, BLOCK_M) * triton.cdiv(num_rows, BLOCK_N)


@cache
def _meeting_place(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where programs leave their parts for each other, and two counts for each tile that is shared, zero at rest."""
    processors = num_processors(device)
    parts = torch.empty(processors, BLOCK_M, BLOCK_N, dtype=torch.float32, device=device)
    return parts, torch.zeros(processors, 2, dtype=torch.int32, device=device)
