"""Head norms, rotary embedding and the write into the pages in plain torch: what `kernels/rotate_and_write.py` means.

Knows nothing of requests. T tokens, F features of the fused projection, H query heads, G kv heads, D head size,
M positions in the tables, R rotated pairs a head, P pages, B tokens a page.
"""

import torch
from torch import Tensor

from .kv_write import kv_write
from .rms_norm import rms_norm
from .rotary import rotary


def rotate_and_write(
    qkv_TF: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
    cos_MR: Tensor,
    sin_MR: Tensor,
    k_pages_PGBD: Tensor,
    v_pages_PGBD: Tensor,
    *,
    num_heads: int,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Return q_THD and write keys and values, one piece after another; a norm's result is rounded to qkv's dtype."""
    _, num_kv_heads, _, head_size = k_pages_PGBD.shape
    heads = qkv_TF.view(len(qkv_TF), -1, head_size)
    q_THD, k_TGD, v_TGD = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm_D is not None:
        q_THD = rms_norm(q_THD, q_norm_D, eps)
    if k_norm_D is not None:
        k_TGD = rms_norm(k_TGD, k_norm_D, eps)
    q_THD, k_TGD = rotary(q_THD, k_TGD, positions_T, cos_MR, sin_MR)
    kv_write(k_TGD, v_TGD, k_pages_PGBD, v_pages_PGBD, slots_T)
    return q_THD
