"""What every model file shares: the protocol the runner drives, a step's tensors, and attention over the KV pages.

Knows nothing of any one architecture. T tokens of one step, S rows of it, R rows of the engine, F features of a
fused projection, H query heads, G kv heads, D head size, P pages, B tokens a page, N pages a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.paged_attention import Prefills, SharedPrefixes, paged_attention
from ...kernels.rotate_and_write import rotate_and_write
from ..linear import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """Where one step's tokens stand."""

    positions: Tensor  # [T]
    slots: Tensor  # [T] page · B + offset, -1 for a token that is nobody's
    page_table: Tensor  # [R, N]
    rows: Tensor  # [S] lines of the page table
    query_starts: Tensor  # [S + 1]
    context_lens: Tensor  # [S]
    last: Tensor  # [S] each row's last token
    max_query_len: int | None  # of any row; None: it may be any
    shared: SharedPrefixes | None
    prefills: Prefills | None = None  # of these query_starts; None: not looked for
    # Called with a layer's number before it is computed, but for the first.
    before_layer: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPages:
    """Each layer's key and value pages, [P, G, B, head size]."""

    keys: list[Tensor]
    values: list[Tensor]


class Model(Protocol):
    """A model's weights on a device. Load into `slots`, call `finish` once, then run steps."""

    num_kv_heads: int

    def slots(self) -> Iterator[Slot]: ...

    def is_ignorable(self, name: str) -> bool: ...

    def finish(self) -> None: ...

    def forward(self, token_ids_T: Tensor, step: StepTensors, kv: KVPages) -> Tensor: ...

    def logits(self, hidden_SE: Tensor, out: Tensor | None = None) -> Tensor: ...

    def new_logits(self, num_rows: int) -> Tensor: ...


def attend(
    qkv_TF: Tensor,
    step: StepTensors,
    kv: KVPages,
    layer: int,
    *,
    num_heads: int,
    cos_MR: Tensor,
    sin_MR: Tensor,
    window: int | None,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Norm (if weights are given) and rotate heads, write keys and values into the layer's pages, attend over them.

    Returns out_THD. The tables hold M positions, and here R is the number of rotated pairs of a head.
    """
    k_pages, v_pages = kv.keys[layer], kv.values[layer]
    q_THD = rotate_and_write(
        qkv_TF,
        step.positions,
        step.slots,
        cos_MR,
        sin_MR,
        k_pages,
        v_pages,
        num_heads=num_heads,
        q_norm_D=q_norm_D,
        k_norm_D=k_norm_D,
        eps=eps,
    )
    return paged_attention(
        q_THD,
        k_pages,
        v_pages,
        step.page_table,
        step.query_starts,
        step.context_lens,
        scale=q_THD.shape[-1] ** -0.5,
        window=window,
        max_query_len=step.max_query_len,
        rows_S=step.rows,
        shared=step.shared,
        prefills=step.prefills,
    )
