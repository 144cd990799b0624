"""Presence, frequency and repetition penalties, for the rows that ask for them.

Counts of tokens take V numbers a row, so they are kept only for such rows, in slots that are handed out as needed.
Knows nothing of temperature or of drawing. n rows that ask, V vocabulary, C slots.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .pages import IntArray
from .sequence import Sequence
from .transfer import upload


class Penalties:
    """Token counts and penalties by row. `open` when a sequence gets a row, then `apply` and `count` each step."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.asks_R: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self._slot_R = np.zeros(num_rows, np.int64)
        self._free: list[int] = []
        self._device = device
        self._in_prompt_CV = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._generated_CV = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        # Presence, frequency, repetition.
        self._strengths_R3 = torch.zeros(num_rows, 3, device=device)

    def open(self, sequence: Sequence, row: int) -> None:
        """Start counting for the row's new sequence, if it asks; its tokens so far are counted at once."""
        if self.asks_R[row]:
            self._free.append(int(self._slot_R[row]))
            self.asks_R[row] = False
        params = sequence.request.params
        strengths = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        if strengths == (0.0, 0.0, 1.0):
            return
        # There may be no memory for one: only a row that has a slot asks, and gives it back.
        slot = self._slot_R[row] = self._free_slot()
        self.asks_R[row] = True
        self._strengths_R3[row] = upload(np.array(strengths, np.float32), self._device)
        tokens = upload(sequence.tokens.astype(np.int64), self._device)
        prompt, generated = tokens[: sequence.num_prompt], tokens[sequence.num_prompt :]
        self._in_prompt_CV[slot].zero_()[prompt] = True
        ones = torch.ones_like(generated, dtype=torch.int32)
        self._generated_CV[slot].zero_().scatter_add_(0, generated, ones)

    def apply(self, logits_nV: Tensor, rows_n: IntArray) -> Tensor:
        """Return penalised logits, float32. Order as in vLLM: repetition, then frequency, then presence."""
        slots_n = upload(self._slot_R[rows_n], self._device)
        strengths_n3 = self._strengths_R3[upload(rows_n, self._device)]
        presence_n1, frequency_n1, repetition_n1 = strengths_n3.unsqueeze(2).unbind(1)
        generated_nV = self._generated_CV[slots_n]
        seen_nV = self._in_prompt_CV[slots_n] | (generated_nV > 0)
        logits_nV = logits_nV.float()
        repeated_nV = torch.where(logits_nV > 0, logits_nV / repetition_n1, logits_nV * repetition_n1)
        logits_nV = torch.where(seen_nV, repeated_nV, logits_nV)
        return logits_nV - frequency_n1 * generated_nV - presence_n1 * (generated_nV > 0)

    def count(self, tokens_n: Tensor, rows_n: IntArray) -> None:
        """Note one newly drawn token of each row."""
        slots_n = upload(self._slot_R[rows_n], self._device)
        self._generated_CV[slots_n, tokens_n] += 1

    def _free_slot(self) -> int:
        if not self._free:
            old = len(self._in_prompt_CV)
            more = max(4, old)
            in_prompt_CV = torch.cat([self._in_prompt_CV, self._in_prompt_CV.new_zeros(more, *self._width)])
            generated_CV = torch.cat([self._generated_CV, self._generated_CV.new_zeros(more, *self._width)])
            self._in_prompt_CV, self._generated_CV = in_prompt_CV, generated_CV
            self._free = list(range(old, old + more))
        return self._free.pop()

    @property
    def _width(self) -> tuple[int, ...]:
        return tuple(self._in_prompt_CV.shape[1:])
