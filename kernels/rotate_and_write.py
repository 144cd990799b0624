"""From the fused projection to attention: norms of the heads, rotary embedding, and the write into the pages, in one.

T tokens, F features of the fused projection, H query heads, G kv heads, D head size, M positions in the tables,
R rotated pairs a head, P pages, B tokens a page.
"""

from collections.abc import Callable

from torch import Tensor

from .reference import rotate_and_write as reference


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
    """Return q_THD, normed and rotated; write each token's key, treated alike, and its value into their pages.

    A line of qkv_TF holds H query heads, G key heads and G value heads (last dimension contiguous). With q_norm_D and
    k_norm_D each query and key head is first normed over D (root mean square, `eps`, these weights). Then pairs
    (i, i + R) turn by the token's position, half-split; dimensions from 2R on pass. Token t's key and value go to slot
    slots_T[t] = page · B + offset; where slots_T[t] < 0 nothing is written. Other slots are distinct.

    The pages may be float8_e4m3fn; beyond ±448 values saturate. q is contiguous and in qkv's dtype. On a GPU nothing
    is read back to the host, so the launch can be captured in a CUDA graph.
    """
    if qkv_TF.is_cuda:
        from . import triton_rotate_and_write

        serve: Callable[..., Tensor] = triton_rotate_and_write.rotate_and_write
    else:
        serve = reference.rotate_and_write
    return serve(
        qkv_TF,
        positions_T,
        slots_T,
        cos_MR,
        sin_MR,
        k_pages_PGBD,
        v_pages_PGBD,
        num_heads=num_heads,
        q_norm_D=q_norm_D,
        k_norm_D=k_norm_D,
        eps=eps,
    )
