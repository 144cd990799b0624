"""The gated activation in plain torch: what `kernels/silu_mul.py` means, and what serves on a CPU.

T tokens, F features of the gate and of the value beside it.
"""

import torch
from torch import Tensor


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """Return silu(gate) · up, where the last dimension holds gate and up of feature 0, then of feature 1, ….

    The arithmetic is float32 (float64 for float64 input) with one rounding at the end. Source: Shazeer 2020 (SwiGLU),
    https://arxiv.org/abs/2002.05202.
    """
    return gated(gate_up_T2F[..., 0::2], gate_up_T2F[..., 1::2])


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """The same of two tensors."""
    wide = torch.promote_types(gate_TF.dtype, torch.float32)
    return torch.nn.functional.silu(gate_TF.to(wide)).mul_(up_TF.to(wide)).to(gate_TF.dtype)
