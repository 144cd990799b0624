"""Rotary position embedding in plain torch, a piece of `rotate_and_write.py`.

Knows nothing of how the tables are made (base, scaling): they come in finished.
T tokens, H query heads, G key heads, D head size, M positions in the tables, R rotated pairs a head.
"""

import torch
from torch import Tensor


def rotary(q_THD: Tensor, k_TGD: Tensor, positions_T: Tensor, cos_MR: Tensor, sin_MR: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and k rotated by their positions, new tensors in their own dtypes.

    Pairs are (i, i + R), the half-split order of GPT-NeoX; dimensions from 2R on pass unchanged. The arithmetic is
    float32 (float64 for float64 input). Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    cos_T1R = cos_MR[positions_T].unsqueeze(1)
    sin_T1R = sin_MR[positions_T].unsqueeze(1)
    return _rotated(q_THD, cos_T1R, sin_T1R), _rotated(k_TGD, cos_T1R, sin_T1R)


def _rotated(x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    num_pairs = cos_T1R.shape[-1]
    wide = torch.promote_types(x_THD.dtype, torch.float32)
    cos, sin = cos_T1R.to(wide), sin_T1R.to(wide)
    first = x_THD[..., :num_pairs].to(wide)
    second = x_THD[..., num_pairs : 2 * num_pairs].to(wide)
    out_THD = x_THD.new_empty(x_THD.shape)
    out_THD[..., :num_pairs] = first * cos - second * sin
    out_THD[..., num_pairs : 2 * num_pairs] = second * cos + first * sin
    if 2 * num_pairs < x_THD.shape[-1]:
        out_THD[..., 2 * num_pairs :] = x_THD[..., 2 * num_pairs :]
    return out_THD
