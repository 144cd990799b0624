"""Rotary position embedding of queries and keys.

T tokens, H query heads, G key heads, D head size, M positions in the tables, R rotated pairs a head.
"""

from torch import Tensor

from .reference import rotary as reference


def rotary(q_THD: Tensor, k_TGD: Tensor, positions_T: Tensor, cos_MR: Tensor, sin_MR: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q, k) rotated by position: pairs (i, i + R), half-split; dimensions from 2R on pass unchanged.

    q and k may be slices of one fused projection (last dimension contiguous); the results are new tensors.
    """
    if q_THD.is_cuda:
        from . import triton_rotary

        return triton_rotary.rotary(q_THD, k_TGD, positions_T, cos_MR, sin_MR)
    return reference.rotary(q_THD, k_TGD, positions_T, cos_MR, sin_MR)
