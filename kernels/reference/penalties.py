"""Penalties in plain torch: what `kernels/penalties.py` means, and what serves on a CPU.

Nothing is computed for tokens that no sequence holds. S draws, V vocabulary, R rows, M words of marks, n marked tokens
of all draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..penalties import TOKENS_A_WORD

if TYPE_CHECKING:
    from ..penalties import PenaltyRows

TOKENS_A_BYTE = 4


def penalised(logits_SV: Tensor, rows_S: Tensor, penalties: PenaltyRows) -> Tensor:
    """A float32 copy of the logits, less what the rows' penalties ask."""
    result_SV = logits_SV.to(torch.float32, copy=True)
    strengths_S3 = penalties.strengths_R3[rows_S]
    asking_A = (strengths_S3 != strengths_S3.new_tensor([0, 0, 1])).any(1).nonzero()[:, 0]
    marks_AV = _unpacked(penalties.marks_RM[rows_S[asking_A]])[:, : logits_SV.shape[1]]
    places_n, ids_n = marks_AV.nonzero(as_tuple=True)
    lines_n = asking_A[places_n]
    presence_n, frequency_n, repetition_n = strengths_S3[lines_n].unbind(1)
    x_n = result_SV[lines_n, ids_n]
    x_n = torch.where(x_n > 0, x_n / repetition_n, x_n * repetition_n)
    counts_n = _counts(penalties, rows_S[lines_n], ids_n)
    # One rounding of product and sum, as a GPU's fused instruction has it.
    x_n = (x_n.double() - frequency_n.double() * counts_n).float()
    x_n -= presence_n * (marks_AV[places_n, ids_n] > 1)
    result_SV[lines_n, ids_n] = x_n
    return result_SV


def note(tokens_S: Tensor, rows_S: Tensor, penalties: PenaltyRows) -> None:
    """Mark and count a token that was drawn of each row."""
    words_S, places_S = tokens_S // TOKENS_A_WORD, (tokens_S % TOKENS_A_WORD).int()
    penalties.marks_RM[rows_S, words_S] |= torch.full_like(places_S, 3) << 2 * places_S
    slots_S = penalties.slots_R[rows_S]
    counted = slots_S >= 0
    penalties.counts_CV[slots_S[counted], tokens_S[counted]] += 1


def _unpacked(marks_SM: Tensor) -> Tensor:
    """Two bits a token as a number a token, uint8."""
    shifts_4 = 2 * torch.arange(TOKENS_A_BYTE, dtype=torch.uint8, device=marks_SM.device)
    return ((marks_SM.view(torch.uint8).unsqueeze(-1) >> shifts_4) & 3).flatten(1)


def _counts(penalties: PenaltyRows, rows_n: Tensor, ids_n: Tensor) -> Tensor:
    """How often tokens were generated; 0 where that is not counted."""
    slots_n = penalties.slots_R[rows_n]
    counts_n = torch.zeros_like(ids_n, dtype=torch.float64)
    counted = slots_n >= 0
    counts_n[counted] = penalties.counts_CV[slots_n[counted], ids_n[counted]].double()
    return counts_n
