"""What every model file shares: the protocol the runner drives, a step's tensors, and attention over the KV pages.

Knows nothing of any one architecture. T tokens of one step, S rows, D drawing rows, H query heads, G kv heads, P pages,
B tokens a page, N pages a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.kv_write import kv_write
from ...kernels.paged_attention import paged_attention
from ..linear import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """Where one step's tokens stand."""

    positions: Tensor  # [T]
    slots: Tensor  # [T] page · B + offset
    page_table: Tensor  # [S, N]
    query_starts: Tensor  # [S + 1]
    context_lens: Tensor  # [S]
    drawing: Tensor  # [D] indices into T of the tokens that a next one follows
    max_query_len: int
    max_context_len: int


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

    def logits(self, hidden_DE: Tensor) -> Tensor: ...


def attend(
    q_THS: Tensor,
    k_TGS: Tensor,
    v_TGS: Tensor,
    step: StepTensors,
    kv: KVPages,
    layer: int,
    window: int | None,
) -> Tensor:
    """Write the step's keys and values into the layer's pages and attend over them; returns out_THS."""
    k_pages, v_pages = kv.keys[layer], kv.values[layer]
    kv_write(k_TGS, v_TGS, k_pages, v_pages, step.slots)
    return paged_attention(
        q_THS,
        k_pages,
        v_pages,
        step.page_table,
        step.query_starts,
        step.context_lens,
        scale=q_THS.shape[-1] ** -0.5,
        window=window,
        max_query_len=step.max_query_len,
        max_context_len=step.max_context_len,
    )
