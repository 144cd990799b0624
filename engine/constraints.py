"""Which tokens a row may draw: allowed ids, bad words and biases, for the rows that ask for them.

What a row asks is sent to the device when its sequence gets the row. So are the tokens it has generated last, and its
draws are added there: with asynchronous scheduling the host learns of a draw too late to forbid what would complete a
bad word. Knows nothing of text, of penalties or of drawing; `refusals.py` says what is asked of parameters before.

n rows that ask, R all rows, V vocabulary, A allowed ids, B biased ids, W bad words, K tokens before a word's last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .pages import IntArray
from .refusals import MAX_BAD_WORD_TOKENS
from .request import SamplingParams
from .sequence import Sequence
from .transfer import upload

NUM_BEFORE = MAX_BAD_WORD_TOKENS - 1  # K
NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One row's constraints, on the device; empty where it asks for none. Words are padded in front with NO_TOKEN."""

    allowed_A: Tensor
    biased_B: Tensor
    biases_B: Tensor
    before_WK: Tensor
    last_W: Tensor


class Constraints:
    """Constraints by row. `open` when a sequence gets a row, then `apply` and `count` each step."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.asks_R: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self._device = device
        self._asked: dict[int, _Asked] = {}
        self._generated_RK = torch.full((num_rows, NUM_BEFORE), NO_TOKEN, dtype=torch.int32, device=device)

    def open(self, sequence: Sequence, row: int) -> None:
        """Take over what the row's new sequence asks for, if it does."""
        params = sequence.request.params
        self._asked.pop(row, None)
        self.asks_R[row] = params.is_constrained
        if params.is_constrained:
            self._asked[row] = self._sent(params)
            generated = sequence.tokens[sequence.num_prompt :]
            self._generated_RK[row] = self._upload(_padded(generated[-NUM_BEFORE:], NUM_BEFORE))

    def apply(self, logits_nV: Tensor, rows_n: IntArray) -> None:
        """Change float32 logits. Order as in vLLM: allowed ids, then bad words, then biases."""
        asked_n = [self._asked[row] for row in rows_n.tolist()]
        self._allow(logits_nV, asked_n)
        self._forbid_words(logits_nV, asked_n, rows_n)
        biases = torch.cat([one.biases_B for one in asked_n])
        logits_nV.index_put_(self._at([one.biased_B for one in asked_n]), biases, accumulate=True)

    def count(self, tokens_n: Tensor, rows_n: IntArray) -> None:
        """Note one newly drawn token of each row."""
        rows = self._upload(rows_n)
        drawn_n1 = tokens_n.to(torch.int32).unsqueeze(1)
        self._generated_RK[rows] = torch.cat([self._generated_RK[rows, 1:], drawn_n1], 1)

    def _allow(self, logits_nV: Tensor, asked_n: list[_Asked]) -> None:
        """Forbid all tokens but the allowed ones, in the lines that name any."""
        lines = np.flatnonzero([len(one.allowed_A) > 0 for one in asked_n])
        at = self._at([one.allowed_A for one in asked_n])
        kept = logits_nV[at]
        logits_nV.index_fill_(0, self._upload(lines), float("-inf"))
        logits_nV[at] = kept

    def _forbid_words(self, logits_nV: Tensor, asked_n: list[_Asked], rows_n: IntArray) -> None:
        """Forbid the last token of every word of which all the others were generated just now."""
        lines, last = self._at([one.last_W for one in asked_n])
        before = torch.cat([one.before_WK for one in asked_n])
        generated = self._generated_RK[self._upload(rows_n)][lines]
        completes = ((before == NO_TOKEN) | (before == generated)).all(1)
        # Added and not stored, because words may end alike while only one of them is about to be completed.
        logits_nV.index_put_((lines, last), torch.where(completes, float("-inf"), 0.0), accumulate=True)

    def _at(self, ids_n: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The places of some token ids of each line: line numbers and ids, flat."""
        lines = np.repeat(np.arange(len(ids_n)), [len(ids) for ids in ids_n])
        return self._upload(lines), torch.cat(ids_n)

    def _sent(self, params: SamplingParams) -> _Asked:
        words = [np.array(word, np.int32) for word in params.bad_words_token_ids]
        before = [_padded(word[:-1], NUM_BEFORE) for word in words]
        return _Asked(
            allowed_A=self._upload(np.array(params.allowed_token_ids, np.int64)),
            biased_B=self._upload(np.array([token for token, _ in params.logit_bias], np.int64)),
            biases_B=self._upload(np.array([bias for _, bias in params.logit_bias], np.float32)),
            before_WK=self._upload(np.array(before, np.int32).reshape(-1, NUM_BEFORE)),
            last_W=self._upload(np.array([word[-1] for word in words], np.int64)),
        )

    def _upload(self, values: npt.NDArray[np.int64] | npt.NDArray[np.int32] | npt.NDArray[np.float32]) -> Tensor:
        return upload(values, self._device)


def _padded(tokens: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """The tokens at the end of an array of this size, NO_TOKEN before them."""
    padded = np.full(size, NO_TOKEN, np.int32)
    padded[size - len(tokens) :] = tokens
    return padded
