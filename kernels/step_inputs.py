"""From a plan to the tensors that a step's kernels read, made where they are needed: on the device.

S rows that take part, T tokens of the step; P ≥ T and Q ≥ S are the sizes that a captured step was made for. R engine
rows, N pages a row in the table.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .reference import step_inputs as reference


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Filled by `step_inputs`; all int32. A token beyond T has slot -1, a row beyond S no queries and no context."""

    token_ids_P: Tensor
    positions_P: Tensor
    slots_P: Tensor  # page · page size + offset
    rows_Q: Tensor  # the engine row, which is the line of the page table; beyond S the last, which is nobody's
    query_starts_Q1: Tensor
    context_lens_Q: Tensor
    last_Q: Tensor  # which token is the row's last

    @classmethod
    def empty(cls, num_tokens: int, num_rows: int, device: torch.device) -> StepInputs:
        """Memory for P tokens and Q rows."""

        def make(size: int) -> Tensor:
            return torch.empty(size, dtype=torch.int32, device=device)

        return cls(
            token_ids_P=make(num_tokens),
            positions_P=make(num_tokens),
            slots_P=make(num_tokens),
            rows_Q=make(num_rows),
            query_starts_Q1=make(num_rows + 1),
            context_lens_Q=make(num_rows),
            last_Q=make(num_rows),
        )

    def clear(self) -> None:
        """Make all of it zero."""
        for field in fields(self):
            getattr(self, field.name).zero_()

    def narrowed(self, num_tokens: int, num_rows: int) -> StepInputs:
        """Views of the beginning of each tensor."""
        return StepInputs(
            token_ids_P=self.token_ids_P[:num_tokens],
            positions_P=self.positions_P[:num_tokens],
            slots_P=self.slots_P[:num_tokens],
            rows_Q=self.rows_Q[:num_rows],
            query_starts_Q1=self.query_starts_Q1[: num_rows + 1],
            context_lens_Q=self.context_lens_Q[:num_rows],
            last_Q=self.last_Q[:num_rows],
        )


def step_inputs(
    rows_S: Tensor,
    starts_S: Tensor,
    query_starts_S1: Tensor,
    given_ids_T: Tensor,
    page_table_RN: Tensor,
    drawn_R: Tensor,
    page_size: int,
    out: StepInputs,
) -> None:
    """Fill `out`, padding included.

    Row s of the step is engine row rows_S[s]; its tokens query_starts_S1[s] ≤ t < query_starts_S1[s + 1] stand at
    positions starts_S[s] and on. given_ids_T[t] is a token id, or -1 for the token that the row drew last, drawn_R.
    The last of the engine's rows is nobody's: what padding draws goes there. All int32.
    """
    if rows_S.is_cuda:
        from . import triton_step_inputs

        fill = triton_step_inputs.step_inputs
    else:
        fill = reference.step_inputs
    fill(rows_S, starts_S, query_starts_S1, given_ids_T, page_table_RN, drawn_R, page_size, out)
