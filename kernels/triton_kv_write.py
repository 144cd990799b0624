# mypy: ignore-errors
"""The Triton kernel behind `kernels/kv_write.py`: one program writes one token's keys and values, all heads.

T tokens, G kv heads, D head size, P pages, B tokens a page.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kv_write_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    k_page_stride,
    k_page_head_stride,
    k_page_token_stride,
    v_page_stride,
    v_page_head_stride,
    v_page_token_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    page, offset = slot // PAGE_SIZE, slot % PAGE_SIZE
    heads_G1 = tl.arange(0, BLOCK_G)[:, None]
    dims_1D = tl.arange(0, BLOCK_D)[None, :]
    mask = (heads_G1 < NUM_KV_HEADS) & (dims_1D < HEAD_SIZE)
    k_GD = tl.load(k_ptr + token * k_token_stride + heads_G1 * k_head_stride + dims_1D, mask=mask)
    v_GD = tl.load(v_ptr + token * v_token_stride + heads_G1 * v_head_stride + dims_1D, mask=mask)
    k_start = k_pages_ptr + page * k_page_stride + offset * k_page_token_stride
    v_start = v_pages_ptr + page * v_page_stride + offset * v_page_token_stride
    k_rounded = k_GD.to(k_pages_ptr.dtype.element_ty)
    v_rounded = v_GD.to(v_pages_ptr.dtype.element_ty)
    tl.store(k_start + heads_G1 * k_page_head_stride + dims_1D, k_rounded, mask=mask)
    tl.store(v_start + heads_G1 * v_page_head_stride + dims_1D, v_rounded, mask=mask)


def kv_write(k_TGD: Tensor, v_TGD: Tensor, k_pages_PGBD: Tensor, v_pages_PGBD: Tensor, slots_T: Tensor) -> None:
    """Launch the kernel; `kernels/kv_write.py` says what it does."""
    (num_tokens, num_kv_heads, head_size), page_size = k_TGD.shape, k_pages_PGBD.shape[2]
    assert v_TGD.shape == k_TGD.shape
    assert slots_T.shape == (num_tokens,)
    assert k_pages_PGBD.shape == v_pages_PGBD.shape
    assert k_pages_PGBD.shape[1::2] == (num_kv_heads, head_size)
    assert all(x.stride(-1) == 1 for x in (k_TGD, v_TGD, k_pages_PGBD, v_pages_PGBD))
    if num_tokens == 0:
        return
    _kv_write_kernel[(num_tokens,)](
        k_TGD,
        v_TGD,
        k_pages_PGBD,
        v_pages_PGBD,
        slots_T.contiguous(),
        *k_TGD.stride()[:2],
        *v_TGD.stride()[:2],
        *k_pages_PGBD.stride()[:3],
        *v_pages_PGBD.stride()[:3],
        NUM_KV_HEADS=num_kv_heads,
        HEAD_SIZE=head_size,
        PAGE_SIZE=page_size,
        BLOCK_G=triton.next_power_of_2(num_kv_heads),
        BLOCK_D=triton.next_power_of_2(head_size),
    )
