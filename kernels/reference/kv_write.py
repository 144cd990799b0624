"""Writing keys and values into their pages in plain torch: what `kernels/kv_write.py` means.

Knows nothing of which request owns which page. T tokens, G kv heads, D head size, P pages, B tokens a page.
"""

from torch import Tensor


def kv_write(k_TGD: Tensor, v_TGD: Tensor, k_pages_PGBD: Tensor, v_pages_PGBD: Tensor, slots_T: Tensor) -> None:
    """Write token t's key and value to slot slots_T[t] = page · B + offset; a token with slot < 0 is skipped.

    Slots are distinct; the pages may have another dtype than k and v, and the values are then rounded to it.
    """
    page_size = k_pages_PGBD.shape[2]
    kept = slots_T >= 0
    if not bool(kept.all()):
        k_TGD, v_TGD, slots_T = k_TGD[kept], v_TGD[kept], slots_T[kept]
    pages_T, offsets_T = slots_T // page_size, slots_T % page_size
    k_pages_PGBD[pages_T, :, offsets_T] = k_TGD.to(k_pages_PGBD.dtype)
    v_pages_PGBD[pages_T, :, offsets_T] = v_TGD.to(v_pages_PGBD.dtype)
