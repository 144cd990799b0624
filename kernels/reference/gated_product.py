"""Both products of a gated feed-forward layer in plain torch: what `kernels/gated_product.py` means. Legend there."""

import torch
from torch import Tensor

from .silu_mul import silu_mul


def gated_product(x_TK: Tensor, weight_2FK: Tensor) -> Tensor:
    """Return silu(x · gateᵀ) · (x · upᵀ), with both products rounded to their dtype before the activation.

    Source: Shazeer 2020 (SwiGLU), https://arxiv.org/abs/2002.05202.
    """
    return silu_mul(torch.nn.functional.linear(x_TK, weight_2FK))
