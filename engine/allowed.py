"""Which tokens those rows of a step may draw that follow grammars, as the sampler is told.

Knows nothing of grammars or of drawing. D rows that draw, n of those that follow a grammar, W words of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .pages import IntArray
from .transfer import upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Bit t % 32 of word t // 32 is token t's; what has none is not allowed."""

    indices_n: IntArray  # into the drawing rows, ascending
    words_nW: Tensor  # int32, on the device


class Strict:
    """The drawing rows told apart: `is_D` are those that follow a grammar."""

    def __init__(self, allowed: Allowed | None, num_drawing: int) -> None:
        self._allowed = allowed
        self.is_D: npt.NDArray[np.bool_] = np.zeros(num_drawing, np.bool_)
        if allowed is not None:
            self.is_D[allowed.indices_n] = True

    def words(self, indices: IntArray) -> Tensor | None:
        """What some drawing rows may draw; None unless there are any and all of them follow a grammar."""
        if self._allowed is None or not len(indices) or not self.is_D[indices].all():
            return None
        words_nW = self._allowed.words_nW
        if len(indices) == len(words_nW):
            return words_nW
        return words_nW[upload(np.searchsorted(self._allowed.indices_n, indices), words_nW.device)]
