"""Drawing tokens in plain torch: what `kernels/sample.py` means, and what serves on a CPU.

No line pays for what another asks: greedy ones take the largest logit and nothing else, and only filtered ones are
sorted, as far as needed. S draws, L lines of logits, V vocabulary, R rows, n lines that need the same work, K
candidates, W words of 32 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..noise import gumbel_noise
from .penalties import note, penalised

if TYPE_CHECKING:
    from ..penalties import PenaltyRows
    from ..sample import SamplingRows

# Filters look at this many of the likeliest tokens first, and at all only where those are not enough.
NUM_CANDIDATES = 1024
# Draws whose logits are widened, and whose noise over the whole vocabulary is made, at once.
GROUP = 64


def sample(
    logits_LV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    params: SamplingRows,
    *,
    lines_S: Tensor | None = None,
    allowed_SW: Tensor | None = None,
    penalties: PenaltyRows | None = None,
    out_S: Tensor | None = None,
    drawn_R: Tensor | None = None,
) -> Tensor:
    """Return tokens_S (int64); `kernels/sample.py` says how."""
    logits_SV = logits_LV if lines_S is None else logits_LV[lines_S]
    if penalties is not None:
        logits_SV = penalised(logits_SV, rows_S, penalties)
    if allowed_SW is not None:
        logits_SV = masked(logits_SV, allowed_SW)
    tokens_S = _sample(logits_SV, rows_S, positions_S, params)
    if penalties is not None:
        drawn_S = params.temperature_R[rows_S] >= 0
        note(tokens_S[drawn_S], rows_S[drawn_S], penalties)
    if drawn_R is not None:
        drawn_R[rows_S] = tokens_S.to(drawn_R.dtype)
    return tokens_S if out_S is None else out_S.copy_(tokens_S)


def masked(logits_SV: Tensor, allowed_SW: Tensor) -> Tensor:
    """A copy with -inf for the tokens whose bit is 0 (`kernels/sample.py`), and for those that have none."""
    bits_8 = torch.arange(8, dtype=torch.uint8, device=logits_SV.device)
    kept_SV = ((allowed_SW.view(torch.uint8).unsqueeze(-1) >> bits_8) & 1).flatten(1)[:, : logits_SV.shape[1]]
    result_SV = torch.full_like(logits_SV, float("-inf"))
    num_bits = kept_SV.shape[1]
    result_SV[:, :num_bits] = logits_SV[:, :num_bits].masked_fill(kept_SV == 0, float("-inf"))
    return result_SV


def _sample(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, params: SamplingRows) -> Tensor:
    temperature_S = params.temperature_R[rows_S]
    draws_S, greedy_S = temperature_S > 0, temperature_S == 0
    if bool(greedy_S.all()):
        return logits_SV.argmax(-1)
    filters_S = (params.top_p_R[rows_S] < 1) | (params.top_k_R[rows_S] > 0) | (params.min_p_R[rows_S] > 0)
    tokens_S = torch.zeros(len(rows_S), dtype=torch.int64, device=logits_SV.device)
    greedy_n = greedy_S.nonzero()[:, 0]
    if len(greedy_n):
        tokens_S[greedy_n] = logits_SV[greedy_n].argmax(-1)
    for chosen_S, pick in ((draws_S & ~filters_S, _pick_from_all), (draws_S & filters_S, _pick_filtered)):
        for group_n in torch.split(chosen_S.nonzero()[:, 0], GROUP):
            rows_n = rows_S[group_n]
            temperature_n1 = params.temperature_R[rows_n].unsqueeze(1)
            scaled_nV = logits_SV[group_n].float().div_(temperature_n1)
            tokens_S[group_n] = pick(scaled_nV, rows_n, positions_S[group_n], params)
    return tokens_S


def _pick_from_all(scaled_nV: Tensor, rows_n: Tensor, positions_n: Tensor, params: SamplingRows) -> Tensor:
    token_ids_V = torch.arange(scaled_nV.shape[1], dtype=torch.int32, device=scaled_nV.device)
    return gumbel_noise(params.seed_R2[rows_n], positions_n, token_ids_V).add_(scaled_nV).argmax(-1)


def _pick_filtered(
    scaled_nV: Tensor, rows_n: Tensor, positions_n: Tensor, params: SamplingRows, num_candidates: int | None = None
) -> Tensor:
    candidates_nK, ids_nK = scaled_nV.topk(min(num_candidates or NUM_CANDIDATES, scaled_nV.shape[1]))
    filters = params.top_k_R[rows_n], params.top_p_R[rows_n], params.min_p_R[rows_n]
    kept_nK, enough_n = kept_candidates(candidates_nK, scaled_nV.logsumexp(-1), *filters)
    noise_nK = gumbel_noise(params.seed_R2[rows_n], positions_n, ids_nK)
    picked_n1 = noise_nK.add_(candidates_nK).masked_fill_(~kept_nK, float("-inf")).argmax(-1, keepdim=True)
    tokens_n = ids_nK.gather(1, picked_n1).squeeze(1)
    if candidates_nK.shape[1] < scaled_nV.shape[1] and not bool(enough_n.all()):
        short = ~enough_n
        tokens_n[short] = _pick_filtered(
            scaled_nV[short], rows_n[short], positions_n[short], params, scaled_nV.shape[1]
        )
    return tokens_n


def kept_candidates(
    candidates_nK: Tensor, total_n: Tensor, top_k_n: Tensor, top_p_n: Tensor, min_p_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of the K largest scaled logits (descending) pass top_k, then top_p of what is left, and min_p.

    `total_n` is the log of the summed exponentials of all logits. Equal candidates pass or fail together. Also says
    for which rows no token beyond the K could have passed.
    """
    num_candidates = candidates_nK.shape[1]
    limits_k = (top_k_n > 0) & (top_k_n <= num_candidates)
    last_n1 = (torch.where(limits_k, top_k_n, num_candidates) - 1).unsqueeze(1).long()
    kept_nK = candidates_nK >= candidates_nK.gather(1, last_n1)
    left_n = candidates_nK.masked_fill(~kept_nK, float("-inf")).logsumexp(-1)
    log_total_n = torch.where(limits_k, left_n, total_n)
    probs_nK = (candidates_nK - log_total_n.unsqueeze(1)).exp_()
    # The probability of strictly larger candidates: what lies before the first of its equals.
    above_nK = torch.zeros_like(probs_nK)
    above_nK[:, 1:] = probs_nK.cumsum(-1)[:, :-1]
    above_nK[:, 1:].masked_fill_(candidates_nK[:, 1:] == candidates_nK[:, :-1], 0)
    above_nK = above_nK.cummax(-1).values
    kept_nK &= (above_nK < top_p_n.unsqueeze(1)) | (top_p_n >= 1).unsqueeze(1)
    largest_n1 = candidates_nK[:, :1]
    kept_nK &= candidates_nK - largest_n1 >= min_p_n.log().unsqueeze(1)
    kept_nK |= candidates_nK == largest_n1
    return kept_nK, ~kept_nK[:, -1] & (limits_k | (top_k_n <= 0))
