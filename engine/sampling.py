"""Drawing the next token of every row from its logits, each row with its own parameters.

Which rows need which work is known on the host, so no row pays for what another asks: greedy rows take the largest
logit and nothing else. Knows nothing of how logits come about or of what ends a sequence.

D rows that draw, n of them that need some work, V vocabulary, K candidates, R all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .noise import gumbel_noise, split_seed
from .pages import IntArray
from .penalties import Penalties
from .request import SamplingParams, TokenLogprob
from .sequence import Sequence

# Filters look at this many of the likeliest tokens first, and at all only where those are not enough.
NUM_CANDIDATES = 1024
# Rows whose noise over the whole vocabulary is made at once.
NOISE_ROWS = 64
# Below this a temperature only asks for trouble: greedy, as in vLLM.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One token for each drawing row, on the device; log-probabilities by index into them, for those that asked."""

    tokens: Tensor  # [D]
    logprobs: dict[int, TokenLogprob]


class Sampler:
    """Sampling parameters by row. `open` when a sequence gets a row, then `draw` each step."""

    def __init__(self, num_rows: int, vocab_size: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size, self._eos_token_ids, self._device = vocab_size, eos_token_ids, device
        self._penalties = Penalties(num_rows, vocab_size, device)
        self._draws_R: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self._filters_R: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self._num_logprobs_R = np.full(num_rows, -1, np.int64)
        # Up to which position (the prompt's length plus min_tokens) tokens that end the sequence are masked.
        self._masked_until_R = np.zeros(num_rows, np.int64)
        self._masked_ids: dict[int, list[int]] = {}
        self._temperature_R = torch.ones(num_rows, device=device)
        self._top_p_R = torch.ones(num_rows, device=device)
        self._min_p_R = torch.zeros(num_rows, device=device)
        self._top_k_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._seed_R2 = torch.zeros(num_rows, 2, dtype=torch.int32, device=device)

    def open(self, sequences: list[Sequence]) -> None:
        """Take over the parameters of sequences that are new in their rows."""
        if not sequences:
            return
        for sequence in sequences:
            self._open_on_host(sequence)
        rows = torch.tensor([s.row for s in sequences], device=self._device)
        params = [s.request.params for s in sequences]
        self._temperature_R[rows] = self._floats([max(p.temperature, MIN_TEMPERATURE) for p in params])
        self._top_p_R[rows] = self._floats([p.top_p for p in params])
        self._min_p_R[rows] = self._floats([p.min_p for p in params])
        self._top_k_R[rows] = torch.tensor([p.top_k for p in params], device=self._device)
        seeds = [split_seed(s.seed) for s in sequences]
        self._seed_R2[rows] = torch.tensor(seeds, dtype=torch.int32, device=self._device)

    def draw(self, logits_DV: Tensor, rows_D: IntArray, positions_D: IntArray) -> Drawn:
        """Draw the token at positions_D of each row. May overwrite the logits."""
        asking = np.flatnonzero(self._num_logprobs_R[rows_D] >= 0)
        # Of what the model said, before penalties and temperature.
        logprobs_nV = logits_DV[self._index(asking)].float().log_softmax(-1) if len(asking) else None
        penalised = np.flatnonzero(self._penalties.asks_R[rows_D])
        if len(penalised):
            index_n = self._index(penalised)
            logits_DV[index_n] = self._penalties.apply(logits_DV[index_n], rows_D[penalised]).to(logits_DV.dtype)
        self._mask_endings(logits_DV, rows_D, positions_D)
        tokens_D = self._pick(logits_DV, rows_D, positions_D)
        if len(penalised):
            self._penalties.count(tokens_D[self._index(penalised)], rows_D[penalised])
        logprobs = {} if logprobs_nV is None else self._logprobs(logprobs_nV, tokens_D, asking, rows_D)
        return Drawn(tokens=tokens_D, logprobs=logprobs)

    def _open_on_host(self, sequence: Sequence) -> None:
        row, params = sequence.row, sequence.request.params
        assert row is not None
        self._draws_R[row] = params.temperature >= MIN_TEMPERATURE
        self._filters_R[row] = params.top_p < 1 or params.top_k > 0 or params.min_p > 0
        self._num_logprobs_R[row] = -1 if params.logprobs is None else params.logprobs
        self._masked_until_R[row] = sequence.num_prompt + params.min_tokens
        self._masked_ids[row] = self._ending_ids(params) if params.min_tokens else []
        self._penalties.open(sequence, row)

    def _ending_ids(self, params: SamplingParams) -> list[int]:
        eos = () if params.ignore_eos else self._eos_token_ids
        return sorted({*eos, *params.stop_token_ids})

    def _mask_endings(self, logits_DV: Tensor, rows_D: IntArray, positions_D: IntArray) -> None:
        for i in np.flatnonzero(positions_D < self._masked_until_R[rows_D]).tolist():
            logits_DV[i, self._masked_ids[int(rows_D[i])]] = float("-inf")

    def _pick(self, logits_DV: Tensor, rows_D: IntArray, positions_D: IntArray) -> Tensor:
        draws_D, filters_D = self._draws_R[rows_D], self._filters_R[rows_D]
        if not draws_D.any():
            return logits_DV.argmax(-1)
        tokens_D = torch.empty(len(rows_D), dtype=torch.int64, device=self._device)
        greedy = self._index(np.flatnonzero(~draws_D))
        if len(greedy):
            tokens_D[greedy] = logits_DV[greedy].argmax(-1)
        for chosen, pick in (
            (draws_D & ~filters_D, self._pick_from_all),
            (draws_D & filters_D, self._pick_filtered),
        ):
            indices = np.flatnonzero(chosen)
            for start in range(0, len(indices), NOISE_ROWS):
                part = indices[start : start + NOISE_ROWS]
                index_n, rows_n = self._index(part), self._index(rows_D[part])
                scaled_nV = logits_DV[index_n].float().div_(self._temperature_R[rows_n].unsqueeze(1))
                tokens_D[index_n] = pick(scaled_nV, rows_n, self._index(positions_D[part]))
        return tokens_D

    def _pick_from_all(self, scaled_nV: Tensor, rows_n: Tensor, positions_n: Tensor) -> Tensor:
        token_ids_V = torch.arange(scaled_nV.shape[1], dtype=torch.int32, device=self._device)
        return (scaled_nV + gumbel_noise(self._seed_R2[rows_n], positions_n, token_ids_V)).argmax(-1)

    def _pick_filtered(
        self, scaled_nV: Tensor, rows_n: Tensor, positions_n: Tensor, num_candidates: int = NUM_CANDIDATES
    ) -> Tensor:
        candidates_nK, ids_nK = scaled_nV.topk(min(num_candidates, scaled_nV.shape[1]))
        filters = self._top_k_R[rows_n], self._top_p_R[rows_n], self._min_p_R[rows_n]
        kept_nK, enough_n = kept_candidates(candidates_nK, scaled_nV.logsumexp(-1), *filters)
        noise_nK = gumbel_noise(self._seed_R2[rows_n], positions_n, ids_nK)
        picked_n1 = (candidates_nK + noise_nK).masked_fill_(~kept_nK, float("-inf")).argmax(-1, keepdim=True)
        tokens_n = ids_nK.gather(1, picked_n1).squeeze(1)
        if candidates_nK.shape[1] < scaled_nV.shape[1] and not bool(enough_n.all()):
            short = ~enough_n
            tokens_n[short] = self._pick_filtered(
                scaled_nV[short], rows_n[short], positions_n[short], scaled_nV.shape[1]
            )
        return tokens_n

    def _logprobs(
        self, logprobs_nV: Tensor, tokens_D: Tensor, asking: IntArray, rows_D: IntArray
    ) -> dict[int, TokenLogprob]:
        tokens_n1 = tokens_D[self._index(asking)].unsqueeze(1)
        tokens = tokens_n1[:, 0].tolist()
        chosen = logprobs_nV.gather(1, tokens_n1)[:, 0].tolist()
        counts = self._num_logprobs_R[rows_D[asking]].tolist()
        values_nK, ids_nK = logprobs_nV.topk(min(max(counts), logprobs_nV.shape[1]))
        tops = zip(ids_nK.tolist(), values_nK.tolist(), strict=True)
        return {
            int(i): TokenLogprob(
                token_id=token, logprob=logprob, top=tuple(zip(ids[:count], values[:count], strict=True))
            )
            for i, token, logprob, count, (ids, values) in zip(asking, tokens, chosen, counts, tops, strict=True)
        }

    def _index(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _floats(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def kept_candidates(
    candidates_nK: Tensor, total_n: Tensor, top_k_n: Tensor, top_p_n: Tensor, min_p_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of the K largest scaled logits (descending) pass top_k, then top_p of what is left, and min_p.

    `total_n` is the log of the summed exponentials of all logits. Tokens that tie with the last one inside top_k
    pass with it. Also says for which rows no token beyond the K could have passed.
    """
    num_candidates = candidates_nK.shape[1]
    limits_k = (top_k_n > 0) & (top_k_n <= num_candidates)
    last_n1 = (torch.where(limits_k, top_k_n, num_candidates) - 1).unsqueeze(1)
    kept_nK = candidates_nK >= candidates_nK.gather(1, last_n1)
    left_n = candidates_nK.masked_fill(~kept_nK, float("-inf")).logsumexp(-1)
    log_total_n = torch.where(limits_k, left_n, total_n)
    probs_nK = (candidates_nK - log_total_n.unsqueeze(1)).exp().masked_fill_(~kept_nK, 0)
    sums_nK = probs_nK.cumsum(-1)
    kept_nK &= (sums_nK - probs_nK < top_p_n.unsqueeze(1)) | (top_p_n >= 1).unsqueeze(1)
    kept_nK &= probs_nK >= min_p_n.unsqueeze(1) * probs_nK[:, :1]
    kept_nK[:, 0] = True
    covered_p = (sums_nK[:, -1] >= top_p_n) & (top_p_n < 1)
    covered_min = (probs_nK[:, -1] < min_p_n * probs_nK[:, 0]) & (min_p_n > 0)
    return kept_nK, limits_k | covered_p | covered_min
