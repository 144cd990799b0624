"""The gated activation in plain torch: what `kernels/silu_mul.py` means, and what serves on a CPU.

T tokens, F features of the gate and of the value beside it.
"""

import torch
from torch import Tensor


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """Return silu(gate) · up, where gate is the first half of the last dimension and up the second.

    The arithmetic is float32 (float64 for float64 input) with one rounding at the end. Source: Shazeer 2020 (SwiGLU),
    https://arxiv.org/abs/2002.05202.
    """
    wide = torch.promote_types(gate_up_T2F.dtype, torch.float32)
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_TF.to(wide)).mul_(up_TF.to(wide)).to(gate_up_T2F.dtype)
