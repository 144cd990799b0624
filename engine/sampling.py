"""Drawing the next token of every row from its logits, each row with its own parameters.

Penalties, masks and log-probabilities are for the rows that ask, which the host knows; the draw itself is
`kernels/sample.py`. Nothing here waits for the device. Knows nothing of how logits come about or of what ends a
sequence.

S lines of logits, D of them whose rows draw, n of those that need some work, V vocabulary, K candidates, R all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.noise import split_seed
from ..kernels.sample import SamplingRows, sample
from .pages import IntArray
from .penalties import Penalties
from .request import SamplingParams, TokenLogprob
from .sequence import Sequence
from .transfer import upload

# Below this a temperature only asks for trouble: greedy, as in vLLM.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Which lines of a step's logits are drawn from, for which rows, and at which positions: here and on the device."""

    lines_D: Tensor
    rows_D: Tensor
    positions_D: Tensor
    host_lines_D: IntArray
    host_rows_D: IntArray
    host_positions_D: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedLogprobs:
    """Log-probabilities for those of the drawing rows that asked, still on the device."""

    indices: IntArray  # [n] into the drawing rows
    counts: list[int]  # alternatives that each wants
    tensors: list[Tensor]  # of the drawn tokens [n]; of the likeliest tokens [n, K], and their ids

    def read(self, tokens_D: IntArray, values: list[npt.NDArray[Any]]) -> dict[int, TokenLogprob]:
        """By index into the drawing rows; `values` are the tensors, once they are here."""
        chosen_n, values_nK, ids_nK = (array.tolist() for array in values)
        rows = zip(self.indices.tolist(), self.counts, chosen_n, ids_nK, values_nK, strict=True)
        return {
            i: TokenLogprob(
                token_id=int(tokens_D[i]), logprob=chosen, top=tuple(zip(ids[:count], tops[:count], strict=True))
            )
            for i, count, chosen, ids, tops in rows
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One token for each drawing row, on the device, and log-probabilities if any row asked."""

    tokens: Tensor  # [D]
    logprobs: AskedLogprobs | None


class Sampler:
    """Sampling parameters by row. `open` when a sequence gets a row, then `draw` each step."""

    def __init__(self, num_rows: int, vocab_size: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size, self._eos_token_ids, self._device = vocab_size, eos_token_ids, device
        self._penalties = Penalties(num_rows, vocab_size, device)
        self._num_logprobs_R = np.full(num_rows, -1, np.int64)
        # Up to which position (the prompt's length plus min_tokens) tokens that end the sequence are masked.
        self._masked_until_R = np.zeros(num_rows, np.int64)
        self._masked_ids: dict[int, list[int]] = {}
        self._params = SamplingRows(
            temperature_R=torch.zeros(num_rows, device=device),
            top_p_R=torch.ones(num_rows, device=device),
            min_p_R=torch.zeros(num_rows, device=device),
            top_k_R=torch.zeros(num_rows, dtype=torch.int32, device=device),
            seed_R2=torch.zeros(num_rows, 2, dtype=torch.int32, device=device),
        )

    def open(self, sequences: list[Sequence]) -> None:
        """Take over the parameters of sequences that are new in their rows."""
        if not sequences:
            return
        for sequence in sequences:
            self._open_on_host(sequence)
        params = [s.request.params for s in sequences]
        floats_3n = np.array(
            [[p.temperature if p.temperature >= MIN_TEMPERATURE else 0, p.top_p, p.min_p] for p in params], np.float32
        ).T
        seeds = [split_seed(s.seed) for s in sequences]
        ints_4n = np.array(
            [[s.row, p.top_k, *seed] for s, p, seed in zip(sequences, params, seeds, strict=True)], np.int32
        ).T
        words_7n = upload(np.concatenate([floats_3n.view(np.int32), ints_4n]), self._device)
        temperature, top_p, min_p = words_7n[:3].view(torch.float32)
        rows, top_k, *seed_words = words_7n[3:]
        by_row = self._params
        by_row.temperature_R[rows], by_row.top_p_R[rows], by_row.min_p_R[rows] = temperature, top_p, min_p
        by_row.top_k_R[rows] = top_k
        by_row.seed_R2[rows] = torch.stack(seed_words, 1)

    def draw(self, logits_SV: Tensor, drawing: Drawing) -> Drawn:
        """Draw the next token of each drawing row. May overwrite the logits."""
        rows_D, lines_D = drawing.host_rows_D, drawing.host_lines_D
        asking = np.flatnonzero(self._num_logprobs_R[rows_D] >= 0)
        # Of what the model said, before penalties and temperature.
        logprobs_nV = logits_SV[self._index(lines_D[asking])].float().log_softmax(-1) if len(asking) else None
        penalised = np.flatnonzero(self._penalties.asks_R[rows_D])
        if len(penalised):
            lines_n = self._index(lines_D[penalised])
            penalised_nV = self._penalties.apply(logits_SV[lines_n], rows_D[penalised])
            logits_SV[lines_n] = penalised_nV.to(logits_SV.dtype)
        self._mask_endings(logits_SV, drawing)
        tokens_D = sample(logits_SV, drawing.lines_D, drawing.rows_D, drawing.positions_D, self._params)
        if len(penalised):
            self._penalties.count(tokens_D[self._index(penalised)], rows_D[penalised])
        asked = None if logprobs_nV is None else self._logprobs(logprobs_nV, tokens_D, asking, rows_D)
        return Drawn(tokens=tokens_D, logprobs=asked)

    def _open_on_host(self, sequence: Sequence) -> None:
        row, params = sequence.row, sequence.request.params
        assert row is not None
        self._num_logprobs_R[row] = -1 if params.logprobs is None else params.logprobs
        self._masked_until_R[row] = sequence.num_prompt + params.min_tokens
        self._masked_ids[row] = self._ending_ids(params) if params.min_tokens else []
        self._penalties.open(sequence, row)

    def _ending_ids(self, params: SamplingParams) -> list[int]:
        eos = () if params.ignore_eos else self._eos_token_ids
        return sorted({*eos, *params.stop_token_ids})

    def _mask_endings(self, logits_SV: Tensor, drawing: Drawing) -> None:
        """Forbid rows that have not reached their min_tokens to end."""
        young = np.flatnonzero(drawing.host_positions_D < self._masked_until_R[drawing.host_rows_D])
        ids = [self._masked_ids[row] for row in drawing.host_rows_D[young].tolist()]
        lines = np.repeat(drawing.host_lines_D[young], [len(some) for some in ids])
        if len(lines):
            columns = np.array([id for some in ids for id in some], np.int64)
            logits_SV[self._index(lines), self._index(columns)] = float("-inf")

    def _logprobs(self, logprobs_nV: Tensor, tokens_D: Tensor, asking: IntArray, rows_D: IntArray) -> AskedLogprobs:
        counts = self._num_logprobs_R[rows_D[asking]].tolist()
        chosen_n = logprobs_nV.gather(1, tokens_D[self._index(asking)].unsqueeze(1))[:, 0]
        values_nK, ids_nK = logprobs_nV.topk(min(max(counts), logprobs_nV.shape[1]))
        return AskedLogprobs(indices=asking, counts=counts, tensors=[chosen_n, values_nK, ids_nK])

    def _index(self, values: IntArray) -> Tensor:
        return upload(values, self._device)
