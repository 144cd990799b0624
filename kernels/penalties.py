"""What a draw with penalties goes by: how strong they are in each row, and what its sequence holds.

Two bits a token say whether it is there at all and whether it was generated, so that most draws read one word beside
sixteen logits. How often each token was generated takes a number for each, and only frequency asks for it: such rows
have a line of counts. R rows, V vocabulary, M words of marks, C lines of counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

TOKENS_A_WORD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyRows:
    """Penalties by row, contiguous on the logits' device. Who draws with them marks and counts its tokens there.

    Of a token that the row's sequence holds, first the logit is divided by repetition if it is positive, and multiplied
    by it otherwise; then, if the token was generated, frequency for each time and presence are taken from it.
    """

    strengths_R3: Tensor  # float32: presence, frequency, repetition; (0, 0, 1) changes nothing
    marks_RM: Tensor  # int32; token t's at bit 2 (t % 16) of word t // 16: it is in the sequence; the next: generated
    slots_R: Tensor  # int32; the row's line of counts; without frequency there need not be one, and it is -1
    counts_CV: Tensor  # int16 or int32; how often each token was generated


def num_mark_words(vocab_size: int) -> int:
    """M."""
    return -(-vocab_size // TOKENS_A_WORD)


def marks_of(prompt: npt.NDArray[np.int32], generated: npt.NDArray[np.int32], vocab_size: int) -> npt.NDArray[np.int32]:
    """The marks of one row whose sequence holds these tokens."""
    marks_M = np.zeros(num_mark_words(vocab_size), np.uint32)
    for tokens, bits in ((prompt, 1), (generated, 3)):
        words, places = np.divmod(tokens, TOKENS_A_WORD)
        np.bitwise_or.at(marks_M, words, np.uint32(bits) << (2 * places).astype(np.uint32))
    return marks_M.view(np.int32)
