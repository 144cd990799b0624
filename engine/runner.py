"""Runs planned steps on a device, whose rows hold what is known of each running sequence.

Token ids, page tables and sampling parameters stay on the device by row; a step applies what has changed, gathers its
tokens by row and position, and scatters what it drew back into the rows, where the next step finds it. Knows nothing
of why a step is as it is.

R rows, L tokens a row can hold, N pages a row can hold; S rows of a step, T tokens, D of the rows draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .models.base import KVPages, Model, StepTensors
from .pages import IntArray
from .request import TokenLogprob
from .sampling import Sampler
from .scheduler import Plan
from .sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The tokens that a plan's drawing rows drew, in their order, and what was asked of their log-probabilities."""

    tokens: IntArray
    logprobs: dict[int, TokenLogprob]


class Runner:
    """Owns the device side of the rows; `run` executes one plan."""

    def __init__(
        self,
        *,
        model: Model,
        kv: KVPages,
        sampler: Sampler,
        num_rows: int,
        max_len: int,
        page_size: int,
        device: torch.device,
    ) -> None:
        self._model, self._kv, self._sampler = model, kv, sampler
        self._page_size, self._device = page_size, device
        self._token_ids_RL = torch.zeros(num_rows, max_len, dtype=torch.int32, device=device)
        num_columns = -(-max_len // page_size)
        self._page_table_RN = torch.zeros(num_rows, num_columns, dtype=torch.int32, device=device)

    @torch.inference_mode()
    def run(self, plan: Plan) -> Results:
        """Compute the planned tokens; draw the next token of the rows that reach their end."""
        self._apply(plan)
        step, token_ids_T = self._gather(plan)
        hidden_DE = self._model.forward(token_ids_T, step, self._kv)
        rows_D, positions_D = plan.rows[plan.draws], (plan.starts + plan.lengths)[plan.draws]
        if not len(rows_D):
            return Results(tokens=np.zeros(0, np.int64), logprobs={})
        drawn = self._sampler.draw(self._model.logits(hidden_DE), rows_D, positions_D)
        self._token_ids_RL[self._index(rows_D), self._index(positions_D)] = drawn.tokens.to(torch.int32)
        return Results(tokens=drawn.tokens.cpu().numpy(), logprobs=drawn.logprobs)

    def _apply(self, plan: Plan) -> None:
        """Bring the device rows up to date with what was decided since the last step."""
        self._sampler.open(plan.admitted)
        self._write_tokens(plan.admitted)
        if len(plan.table_rows):
            pages = self._index(plan.table_pages).to(torch.int32)
            self._page_table_RN[self._index(plan.table_rows), self._index(plan.table_columns)] = pages

    def _write_tokens(self, admitted: list[Sequence]) -> None:
        if not admitted:
            return
        lengths = np.array([len(sequence.tokens) for sequence in admitted])
        rows = np.repeat([sequence.row for sequence in admitted], lengths).astype(np.int64)
        tokens = torch.from_numpy(np.concatenate([sequence.tokens for sequence in admitted]))
        self._token_ids_RL[self._index(rows), self._index(_counted(lengths))] = tokens.to(self._device)

    def _gather(self, plan: Plan) -> tuple[StepTensors, Tensor]:
        """The step's tensors, and its token ids."""
        context_lens = plan.starts + plan.lengths
        query_starts = np.concatenate([[0], np.cumsum(plan.lengths)])
        rows_T = self._index(np.repeat(plan.rows, plan.lengths))
        positions_T = self._index(_counted(plan.lengths) + np.repeat(plan.starts, plan.lengths))
        pages_T = self._page_table_RN[rows_T, positions_T // self._page_size]
        num_columns = -(-int(context_lens.max()) // self._page_size)
        step = StepTensors(
            positions=positions_T,
            slots=pages_T.long() * self._page_size + positions_T % self._page_size,
            page_table=self._page_table_RN[self._index(plan.rows), :num_columns],
            query_starts=self._index(query_starts),
            context_lens=self._index(context_lens),
            drawing=self._index(query_starts[1:][plan.draws] - 1),
            max_query_len=int(plan.lengths.max()),
            max_context_len=int(context_lens.max()),
        )
        return step, self._token_ids_RL[rows_T, positions_T]

    def _index(self, values: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _counted(lengths: IntArray) -> IntArray:
    """0, 1, … length - 1 for each length, one after another."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
