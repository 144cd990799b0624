# mypy: ignore-errors
"""The Triton kernel behind `kernels/gated_product.py`: as many programs as multiprocessors, each of which takes tiles.

Sums stay in registers until the activation: what the product leaves is never written and read again. Because gate and
up alternate, both sums of a feature lie beside each other in the same thread. Two products for a tile, one with each
part of the weight, were measured to take 1.25 times as long. Tiles come and go through the tensor memory accelerator
(TMA), the next tile's first while the last one's sums are worked off; tiles that share weights follow each other, so
that these are read out of the L2 cache.

T tokens, F features, K inputs; M tokens, N rows of the weight of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .triton_device import num_processors

BLOCK_M, BLOCK_N, BLOCK_K, NUM_WARPS = 128, 256, 64, 8
# Of a column of tiles so many rows are taken before the next column's.
GROUP_M = 8
# Up to so many tokens four tiles are on their way at once, beyond that three: each was measured to be the faster.
FEW_TOKENS = 768
_MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit(do_not_specialize=["num_tokens"])
def _gated_product_kernel(
    x_desc,
    weight_desc,
    y_desc,
    num_tokens,
    num_features,
    num_inputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_PROCESSORS: tl.constexpr,
):
    num_m, num_n = tl.cdiv(num_tokens, BLOCK_M), tl.cdiv(2 * num_features, BLOCK_N)
    for tile in tl.range(tl.program_id(0), num_m * num_n, NUM_PROCESSORS, flatten=True):
        first_m = tile // (GROUP_M * num_n) * GROUP_M
        height = min(num_m - first_m, GROUP_M)
        m = (first_m + tile % height) * BLOCK_M
        n = tile % (GROUP_M * num_n) // height * BLOCK_N
        sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, num_inputs, BLOCK_K):
            sum_MN = tl.dot(x_desc.load([m, k]), weight_desc.load([n, k]).T, sum_MN)
        gate, up = tl.split(tl.reshape(sum_MN, (BLOCK_M, BLOCK_N // 2, 2)))
        y = gate * up / (1 + tl.exp2(gate * _MINUS_LOG2_E))
        y_desc.store([m, n // 2], y.to(y_desc.dtype))


def gated_product(x_TK: Tensor, weight_2FK: Tensor) -> Tensor:
    """Launch the kernel; `kernels/gated_product.py` says what it computes, and of which shapes."""
    (num_tokens, num_inputs), num_features = x_TK.shape, len(weight_2FK) // 2
    assert x_TK.dtype == weight_2FK.dtype
    assert x_TK.dtype in (torch.bfloat16, torch.float16)
    y_TF = x_TK.new_empty(num_tokens, num_features)
    processors = num_processors(x_TK.device)
    _gated_product_kernel[(min(_num_tiles(num_tokens, 2 * num_features), processors),)](
        TensorDescriptor.from_tensor(x_TK, [BLOCK_M, BLOCK_K]),
        TensorDescriptor.from_tensor(weight_2FK, [BLOCK_N, BLOCK_K]),
        TensorDescriptor.from_tensor(y_TF, [BLOCK_M, BLOCK_N // 2]),
        num_tokens,
        num_features,
        num_inputs,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        GROUP_M=GROUP_M,
        NUM_PROCESSORS=processors,
        num_warps=NUM_WARPS,
        num_stages=4 if num_tokens <= FEW_TOKENS else 3,
    )
    return y_TF


def share_in_use(num_tokens: int, num_rows: int, device: torch.device) -> float:
    """Of all multiprocessors, over the time that the tiles of so many tokens and rows of weights take them."""
    num_tiles, processors = _num_tiles(num_tokens, num_rows), num_processors(device)
    return num_tiles / (triton.cdiv(num_tiles, processors) * processors)


def _num_tiles(num_tokens: int, num_rows: int) -> int:
    return triton.cdiv(num_tokens, BLOCK_M) * triton.cdiv(num_rows, BLOCK_N)
