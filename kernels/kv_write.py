"""Writing new keys and values into the paged cache.

T tokens, G kv heads, D head size, P pages, B tokens a page.
"""

from torch import Tensor

from .reference import kv_write as reference


def kv_write(k_TGD: Tensor, v_TGD: Tensor, k_pages_PGBD: Tensor, v_pages_PGBD: Tensor, slots_T: Tensor) -> None:
    """Write token t's key and value to slot slots_T[t] = page · B + offset; a token with slot < 0 is skipped.

    k and v may be slices of one fused projection (last dimension contiguous). Slots are distinct.
    """
    if k_TGD.is_cuda:
        from . import triton_kv_write

        triton_kv_write.kv_write(k_TGD, v_TGD, k_pages_PGBD, v_pages_PGBD, slots_T)
    else:
        reference.kv_write(k_TGD, v_TGD, k_pages_PGBD, v_pages_PGBD, slots_T)
