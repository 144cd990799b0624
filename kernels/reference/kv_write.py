"""Writing keys and values into their pages in plain torch, a piece of `rotate_and_write.py`.

Knows nothing of which request owns which page. T tokens, G kv heads, D head size, P pages, B tokens a page.
"""

import torch
from torch import Tensor


def kv_write(k_TGD: Tensor, v_TGD: Tensor, k_pages_PGBD: Tensor, v_pages_PGBD: Tensor, slots_T: Tensor) -> None:
    """Write token t's key and value to slot slots_T[t] = page · B + offset; a token with slot < 0 is skipped.

    Slots are distinct; the pages may have another dtype than k and v, and the values are then rounded to it. Beyond
    the range of float8_e4m3fn they saturate, as the GPU's own conversion does (torch's gives NaN).
    """
    page_size = k_pages_PGBD.shape[2]
    kept = slots_T >= 0
    if not bool(kept.all()):
        k_TGD, v_TGD, slots_T = k_TGD[kept], v_TGD[kept], slots_T[kept]
    pages_T, offsets_T = slots_T // page_size, slots_T % page_size
    k_pages_PGBD[pages_T, :, offsets_T] = _rounded(k_TGD, k_pages_PGBD.dtype)
    v_pages_PGBD[pages_T, :, offsets_T] = _rounded(v_TGD, v_pages_PGBD.dtype)


def _rounded(x_TGD: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float8_e4m3fn:
        largest = torch.finfo(dtype).max
        x_TGD = x_TGD.clamp(-largest, largest)
    return x_TGD.to(dtype)
