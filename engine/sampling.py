"""Drawing the next token of every row from its logits, each row with its own parameters.

The draw itself is `kernels/sample.py`, for all lines of a step at once and part of its graph. Rows that ask for more
are drawn behind it: with penalties or grammars from the logits as they are, with constraints or masks from a changed
copy of them, in float32. The host knows who asks for what. Nothing here waits for the device. Knows nothing of how
logits come about or of what ends a sequence.

S lines of logits, D of them whose rows draw, n of those that need some work, V vocabulary, K candidates, R all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.noise import split_seed
from ..kernels.penalties import PenaltyRows
from ..kernels.reference.sample import masked
from ..kernels.sample import SamplingRows, sample
from .allowed import Allowed, Strict
from .constraints import Constraints
from .pages import IntArray
from .penalties import Penalties
from .request import TokenLogprob
from .sequence import Sequence
from .transfer import upload

# Below this a temperature only asks for trouble: greedy, as in vLLM.
MIN_TEMPERATURE = 1e-5
# Of rows whose every token is drawn behind the step: as a temperature it draws none.
NOT_YET = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a step leaves on the device: a line of logits and a token drawn from it for each of its rows."""

    logits_SV: Tensor
    tokens_S: Tensor  # int64

    def narrowed(self, num_rows: int) -> Drawn:
        """Views of the first rows."""
        return Drawn(logits_SV=self.logits_SV[:num_rows], tokens_S=self.tokens_S[:num_rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Which lines of a step are drawn from in earnest, for which rows, and at which positions."""

    lines_D: IntArray
    rows_D: IntArray
    positions_D: IntArray


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


class Sampler:
    """Sampling parameters by row, and what each drew last, `drawn_R`.

    `open` when a sequence gets a row; then each step a `draw` for all of its lines, and `amend`.
    """

    def __init__(
        self, num_rows: int, vocab_size: int, max_len: int, eos_token_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._vocab_size, self._eos_token_ids, self._device = vocab_size, eos_token_ids, device
        self._constraints = Constraints(num_rows, device)
        self._penalties = Penalties(num_rows, vocab_size, max_len, device)
        self._num_logprobs_R = np.full(num_rows, -1, np.int64)
        # Up to which position (the prompt's length plus min_tokens) tokens that end the sequence are masked.
        self._masked_until_R = np.zeros(num_rows, np.int64)
        self._masked_ids: dict[int, list[int]] = {}
        # On the device a row more, which is nobody's.
        num_rows += 1
        self.drawn_R = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._params = SamplingRows(
            temperature_R=torch.zeros(num_rows, device=device),
            top_p_R=torch.ones(num_rows, device=device),
            min_p_R=torch.zeros(num_rows, device=device),
            top_k_R=torch.zeros(num_rows, dtype=torch.int32, device=device),
            seed_R2=torch.zeros(num_rows, 2, dtype=torch.int32, device=device),
        )
        # A step by itself draws nothing for rows that are always drawn behind it.
        self._first_params = replace(self._params, temperature_R=torch.zeros(num_rows, device=device))

    def open(self, sequences: list[Sequence]) -> None:
        """Take over the parameters of sequences that are new in their rows."""
        if not sequences:
            return
        for sequence in sequences:
            self._open_on_host(sequence)
        params = [s.request.params for s in sequences]
        temperatures = [p.temperature if p.temperature >= MIN_TEMPERATURE else 0 for p in params]
        firsts = [NOT_YET if self._draws_later(s) else t for s, t in zip(sequences, temperatures, strict=True)]
        floats_4n = np.array([temperatures, firsts, [p.top_p for p in params], [p.min_p for p in params]], np.float32)
        seeds = [split_seed(s.seed) for s in sequences]
        ints_4n = np.array(
            [[s.row, p.top_k, *seed] for s, p, seed in zip(sequences, params, seeds, strict=True)], np.int32
        ).T
        words_8n = upload(np.concatenate([floats_4n.view(np.int32), ints_4n]), self._device)
        temperature, first, top_p, min_p = words_8n[:4].view(torch.float32)
        rows, top_k, *seed_words = words_8n[4:]
        by_row = self._params
        self._first_params.temperature_R[rows] = first
        by_row.temperature_R[rows], by_row.top_p_R[rows], by_row.min_p_R[rows] = temperature, top_p, min_p
        by_row.top_k_R[rows] = top_k
        by_row.seed_R2[rows] = torch.stack(seed_words, 1)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what `amend` draws with: from logits of steps of this type, and from changed ones in float32."""
        nobody, nowhere = len(self.drawn_R) - 1, 0
        rows_1, positions_1 = (upload(np.array([x], np.int32), self._device) for x in (nobody, nowhere))
        changed_1V = torch.zeros(1, self._vocab_size, device=self._device)
        logits_1V, lines_1, penalties = changed_1V.to(dtype), torch.zeros_like(rows_1), self._penalties.rows
        words_1W = torch.full((1, -(-self._vocab_size // 32)), -1, dtype=torch.int32, device=self._device)
        for words in (None, words_1W):
            self._draw_again(changed_1V, rows_1, positions_1, penalties, allowed_SW=words)
            self._draw_again(logits_1V, rows_1, positions_1, penalties, lines_S=lines_1, allowed_SW=words)
        self._draw_again(logits_1V, rows_1, positions_1, lines_S=lines_1, allowed_SW=words_1W)

    def draw(self, logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, out_S: Tensor | None = None) -> Tensor:
        """Draw a token from each line as if no row asked for more than the draw's own parameters.

        Needs nothing of the host, so that it can be part of a captured step. The tokens are the rows' `drawn_R` too.
        """
        return sample(logits_SV, rows_S, positions_S, self._first_params, out_S=out_S, drawn_R=self.drawn_R)

    def amend(self, drawn: Drawn, drawing: Drawing, allowed: Allowed | None = None) -> AskedLogprobs | None:
        """Draw for the rows that ask for more; log-probabilities of those that ask for them."""
        rows_D, positions_D = drawing.rows_D, drawing.positions_D
        changes_D = self._constraints.asks_R[rows_D] | (positions_D < self._masked_until_R[rows_D])
        penalised_D = self._penalties.asks_R[rows_D]
        strict = Strict(allowed, len(rows_D))
        for strict_D in (~strict.is_D, strict.is_D):
            self._draw_changed(drawn, drawing, np.flatnonzero(changes_D & strict_D), strict)
            penalised = np.flatnonzero(penalised_D & ~changes_D & strict_D)
            self._draw_as_is(drawn, drawing, penalised, strict, self._penalties.rows)
        self._draw_as_is(drawn, drawing, np.flatnonzero(strict.is_D & ~changes_D & ~penalised_D), strict)
        # Of what the model said, before penalties and temperature.
        asking = np.flatnonzero(self._num_logprobs_R[rows_D] >= 0)
        return self._logprobs(drawn, drawing, asking, strict) if len(asking) else None

    def _draw_changed(self, drawn: Drawn, drawing: Drawing, some: IntArray, strict: Strict) -> None:
        """From changed logits; either all or none of the rows follow grammars."""
        if not len(some):
            return
        rows, positions = drawing.rows_D[some], drawing.positions_D[some]
        lines_n = self._index(drawing.lines_D[some])
        logits_nV = self._changed(drawn.logits_SV[lines_n].float(), rows, positions)
        rows_n, positions_n = (upload(x.astype(np.int32), self._device) for x in (rows, positions))
        words_nW = strict.words(some)
        tokens_n = self._draw_again(logits_nV, rows_n, positions_n, self._penalties.rows, allowed_SW=words_nW)
        drawn.tokens_S[lines_n] = tokens_n
        constrained = np.flatnonzero(self._constraints.asks_R[rows])
        if len(constrained):
            self._constraints.count(tokens_n[self._index(constrained)], rows[constrained])

    def _draw_as_is(
        self, drawn: Drawn, drawing: Drawing, some: IntArray, strict: Strict, penalties: PenaltyRows | None = None
    ) -> None:
        """From the logits as they are, which takes no memory, for rows that ask for no more than a draw can do."""
        if not len(some):
            return
        sent = (drawing.lines_D, drawing.rows_D, drawing.positions_D)
        lines_n, rows_n, positions_n = (upload(x[some].astype(np.int32), self._device) for x in sent)
        drawn.tokens_S[lines_n] = self._draw_again(
            drawn.logits_SV, rows_n, positions_n, penalties, lines_S=lines_n, allowed_SW=strict.words(some)
        )

    def _draw_again(
        self,
        logits_LV: Tensor,
        rows_S: Tensor,
        positions_S: Tensor,
        penalties: PenaltyRows | None = None,
        **some: Tensor | None,
    ) -> Tensor:
        """In earnest; from some lines, of which some tokens, as in `kernels/sample.py`."""
        return sample(logits_LV, rows_S, positions_S, self._params, penalties=penalties, drawn_R=self.drawn_R, **some)

    def _draws_later(self, sequence: Sequence) -> bool:
        """Whether all of its tokens are."""
        row = sequence.row
        return bool(self._constraints.asks_R[row] | self._penalties.asks_R[row] | (sequence.matcher is not None))

    def _changed(self, logits_nV: Tensor, rows_n: IntArray, positions_n: IntArray) -> Tensor:
        """Logits in float32, ours to change, with constraints and masks; the draw goes on with penalties.

        In vLLM's order: allowed ids, bad words, min_tokens, biases, penalties, where only masks may change places
        (https://docs.vllm.ai/en/v0.22.1/api/vllm/v1/sample/sampler/).
        """
        constrained = np.flatnonzero(self._constraints.asks_R[rows_n])
        if len(constrained):
            where = self._index(constrained)
            constrained_nV = logits_nV[where]
            self._constraints.apply(constrained_nV, rows_n[constrained])
            logits_nV[where] = constrained_nV
        # Rows that have not reached their min_tokens must not end.
        young = np.flatnonzero(positions_n < self._masked_until_R[rows_n])
        ids = [self._masked_ids[row] for row in rows_n[young].tolist()]
        lines = np.repeat(young, [len(some) for some in ids])
        if len(lines):
            columns = np.array([id for some in ids for id in some], np.int64)
            logits_nV[self._index(lines), self._index(columns)] = float("-inf")
        return logits_nV

    def _open_on_host(self, sequence: Sequence) -> None:
        row, params = sequence.row, sequence.request.params
        assert row is not None
        self._num_logprobs_R[row] = -1 if params.logprobs is None else params.logprobs
        self._masked_until_R[row] = sequence.num_prompt + params.min_tokens
        self._masked_ids[row] = sorted(params.ending_ids(self._eos_token_ids)) if params.min_tokens else []
        self._constraints.open(sequence, row)
        self._penalties.open(sequence, row)

    def _logprobs(self, drawn: Drawn, drawing: Drawing, asking: IntArray, strict: Strict) -> AskedLogprobs:
        counts = self._num_logprobs_R[drawing.rows_D[asking]].tolist()
        lines = self._index(drawing.lines_D[asking])
        logits_nV = drawn.logits_SV[lines].float()
        masked_n = np.flatnonzero(strict.is_D[asking])
        if (words_nW := strict.words(asking[masked_n])) is not None:
            where = self._index(masked_n)
            logits_nV[where] = masked(logits_nV[where], words_nW)
        logprobs_nV = logits_nV.log_softmax(-1)
        chosen_n = logprobs_nV.gather(1, drawn.tokens_S[lines].unsqueeze(1))[:, 0]
        values_nK, ids_nK = logprobs_nV.topk(min(max(counts), logprobs_nV.shape[1]))
        return AskedLogprobs(indices=asking, counts=counts, tensors=[chosen_n, values_nK, ids_nK])

    def _index(self, values: IntArray) -> Tensor:
        return upload(values, self._device)
