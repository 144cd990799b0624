"""Both products of a gated feed-forward layer and its activation, in one. T tokens, F features, K inputs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .reference import gated_product as reference
from .silu_mul import silu_mul

# With fewer tokens a product is bound by reading its weights, and cuBLAS has tiles that read them faster.
MIN_TOKENS = 128
# The kernel's tiles are large. Where they leave more of the multiprocessors idle, cuBLAS has smaller ones that do not.
MIN_SHARE_IN_USE = 0.7


def gated_product(x_TK: Tensor, weight_2FK: Tensor) -> Tensor:
    """Return silu(x · gateᵀ) · (x · upᵀ), a new tensor y_TF; the weight's rows are gate's and up's in turn.

    With the fused kernel sums stay in float32 up to the end; elsewhere both products are rounded to their dtype first.
    """
    if not x_TK.is_cuda:
        return reference.gated_product(x_TK, weight_2FK)
    if not _is_fused(x_TK, weight_2FK):
        return silu_mul(torch.nn.functional.linear(x_TK, weight_2FK))
    from . import triton_gated_product

    return triton_gated_product.gated_product(x_TK, weight_2FK)


def _is_fused(x_TK: Tensor, weight_2FK: Tensor) -> bool:
    """Whether the kernel serves: its loads want rows of whole 16 bytes; products in float32 are better left alone."""
    (num_tokens, num_inputs), num_rows = x_TK.shape, len(weight_2FK)
    aligned = num_inputs % 8 == 0 and num_rows % 16 == 0
    plain = x_TK.is_contiguous() and weight_2FK.is_contiguous()
    if num_tokens < MIN_TOKENS or not (aligned and plain) or x_TK.dtype.itemsize != 2 or not _has_tma(x_TK.device):
        return False
    from . import triton_gated_product

    return triton_gated_product.share_in_use(num_tokens, num_rows, num_inputs, x_TK.device) >= MIN_SHARE_IN_USE


@cache
def _has_tma(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
