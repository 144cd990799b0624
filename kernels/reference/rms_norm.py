"""Root-mean-square normalisation in plain torch: what `kernels/rms_norm.py` means, and what serves on a CPU.

Knows nothing of where its input comes from. T tokens, E elements that are normalised together.
"""

import torch
from torch import Tensor


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension, in x's dtype.

    The arithmetic is float32 (float64 for float64 input) with one rounding at the end. Any number of leading
    dimensions may stand for T. Source: Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    wide = torch.promote_types(x_TE.dtype, torch.float32)
    x = x_TE.to(wide)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * inverse).mul_(weight_E.to(wide)).to(x_TE.dtype)
