"""The gated activation of the feed-forward layer. T tokens, F features of the gate and of the value beside it."""

from torch import Tensor

from .reference import silu_mul as reference


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """Return silu(gate) · up, a new tensor y_TF; the last dimension holds gate and up of feature 0, of feature 1, …."""
    if gate_up_T2F.is_cuda:
        from . import triton_silu_mul

        return triton_silu_mul.silu_mul(gate_up_T2F)
    return reference.silu_mul(gate_up_T2F)
