"""Presence, frequency and repetition penalties by row: what a draw with them goes by (`kernels/penalties.py`).

Marks take a quarter of a byte for each row and token; there is room for all from the start, and the plan of memory
(`memory.py`) knows of it. Counts take eight times that, but only frequency needs them: they are in slots that are
handed out to the rows that ask for it, and made as they are needed. Where there is no memory for them the step fails,
as for any other lack of memory. What is drawn is noted on the device, by the draw. Knows nothing of temperature or of
drawing.

R rows, V vocabulary, M words of marks, C slots.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.penalties import PenaltyRows, marks_of, num_mark_words
from .request import SamplingParams
from .sequence import Sequence
from .transfer import upload

NO_SLOT, FEW_SLOTS = -1, 4
NOTHING = (0.0, 0.0, 1.0)


def mark_bytes(vocab_size: int) -> int:
    """Of one row's marks."""
    return num_mark_words(vocab_size) * torch.int32.itemsize


class Penalties:
    """`open` when a sequence gets a row; then draw with `rows`, which are its tokens' penalties from then on."""

    def __init__(self, num_rows: int, vocab_size: int, max_len: int, device: torch.device) -> None:
        self.asks_R: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self._slot_R = np.full(num_rows, NO_SLOT, np.int64)
        self._free: list[int] = []
        # Of rows with a slot, the sequence that it was for.
        self._holders: dict[int, Sequence] = {}
        self._vocab_size, self._device = vocab_size, device
        # As in the sampler, the last row is nobody's.
        num_rows += 1
        # Of a sequence of this length no token is counted more often than it says.
        counts = torch.int16 if max_len <= torch.iinfo(torch.int16).max else torch.int32
        self.rows = PenaltyRows(
            strengths_R3=torch.tensor(NOTHING, device=device).repeat(num_rows, 1),
            marks_RM=torch.zeros(num_rows, num_mark_words(vocab_size), dtype=torch.int32, device=device),
            slots_R=torch.full((num_rows,), NO_SLOT, dtype=torch.int32, device=device),
            counts_CV=torch.zeros(0, vocab_size, dtype=counts, device=device),
        )

    def open(self, sequence: Sequence, row: int) -> None:
        """Take over what the row's new sequence asks, if it does; its tokens so far are noted at once."""
        self._close(row)
        strengths = _strengths(sequence.request.params)
        if strengths == NOTHING:
            return
        prompt, generated = np.split(sequence.tokens, [sequence.num_prompt])
        self.rows.marks_RM[row] = upload(marks_of(prompt, generated, self._vocab_size), self._device)
        if sequence.request.params.frequency_penalty:
            self._count(row, sequence, generated)
        # Last, because there may be no memory for the others: only a row that has all of it asks.
        self.rows.strengths_R3[row] = upload(np.array(strengths, np.float32), self._device)
        self.asks_R[row] = True

    def _close(self, row: int) -> None:
        """Let the row ask for nothing, and give its slot back."""
        if self.asks_R[row]:
            self.rows.strengths_R3[row] = upload(np.array(NOTHING, np.float32), self._device)
            self.asks_R[row] = False
        if self._slot_R[row] != NO_SLOT:
            self.rows.slots_R[row].fill_(NO_SLOT)  # An assignment would wait for the device.
            self._free.append(int(self._slot_R[row]))
            self._slot_R[row] = NO_SLOT
            del self._holders[row]

    def _count(self, row: int, sequence: Sequence, generated: npt.NDArray[np.int32]) -> None:
        """Give the row a slot, and count these tokens there."""
        slot = self._slot_R[row] = self._free_slot()
        self._holders[row] = sequence
        self.rows.slots_R[row].fill_(int(slot))
        ids, times = (upload(x.astype(np.int64), self._device) for x in np.unique(generated, return_counts=True))
        counts_V = self.rows.counts_CV[slot].zero_()
        counts_V[ids] = times.to(counts_V.dtype)

    def _free_slot(self) -> int:
        """Of rows whose sequences have left them, before more are made; then as many again, or a few if they fit."""
        if not self._free:
            for row in [row for row, holder in self._holders.items() if holder.row != row]:
                self._close(row)
        if not self._free:
            try:
                self._grow(max(FEW_SLOTS, len(self.rows.counts_CV)))
            except torch.OutOfMemoryError:
                self._grow(FEW_SLOTS)
        return self._free.pop()

    def _grow(self, more: int) -> None:
        old_CV = self.rows.counts_CV
        old, more = len(old_CV), min(more, len(self.asks_R) - len(old_CV))
        counts_CV = torch.cat([old_CV, old_CV.new_zeros(more, self._vocab_size)])
        self.rows = replace(self.rows, counts_CV=counts_CV)
        self._free = list(range(old, old + more))


def _strengths(params: SamplingParams) -> tuple[float, float, float]:
    return (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
