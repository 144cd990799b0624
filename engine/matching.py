"""What rows that follow a grammar may draw next, and what they have read: all of a step's rows at once.

A row's matcher stays with its sequence and has read what is known of the sequence's text; so masks of a step can be
made only when the step before has ended, while this one's layers are computed already. Knows nothing of how grammars
are compiled or of how tokens are drawn.

D rows of a step that draw, n of those that follow a grammar, W words of 32 bits.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from .allowed import Allowed
from .grammars import Grammars, fault_of
from .pages import IntArray
from .plan import Plan
from .rows import Rows
from .transfer import pinned

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

WORD_BITS = 32


class Matching:
    """`concerns` a plan or not; what is `allowed`, once all before it is known; `advance` by what it drew."""

    def __init__(self, grammars: Grammars, rows: Rows, device: torch.device) -> None:
        self._grammars, self._rows, self._device = grammars, rows, device

    def concerns(self, plan: Plan) -> bool:
        """Whether any of its drawing rows follows a grammar."""
        return bool(self._rows.has_grammar_R[plan.rows[plan.draws]].any())

    def allowed(self, plan: Plan) -> Allowed | None:
        """For those drawing rows that still belong to who was to draw; None if there are none."""
        rows_D = plan.rows[plan.draws]
        live_D = self._rows.tenancy_R[rows_D] == plan.tenancies[plan.draws]
        indices_n, matchers = self._matchers(rows_D, live_D)
        if not matchers:
            return None
        words_nW = pinned((len(matchers), -(-self._grammars.vocab_size // WORD_BITS)), self._device)
        self._fill(matchers, words_nW.numpy())
        return Allowed(indices_n=indices_n, words_nW=words_nW.to(self._device, non_blocking=True))

    def advance(self, plan: Plan, live_D: npt.NDArray[np.bool_], tokens_D: IntArray) -> dict[int, str]:
        """Read what the live rows drew. Returns why rows cannot go on, by row."""
        rows_D = plan.rows[plan.draws]
        indices_n, matchers = self._matchers(rows_D, live_D)
        if not matchers:
            return {}
        gave_up = [matcher.is_error() for matcher in matchers]
        pairs = list(zip(matchers, tokens_D[indices_n].tolist(), strict=True))
        follows = self._executor.consume_token_par(pairs)
        return {
            int(rows_D[index]): _fault(matcher, before)
            for index, matcher, before, fine in zip(indices_n, matchers, gave_up, follows, strict=True)
            if before or not fine  # One that has given up accepts the end of the text all the same.
        }

    def _matchers(self, rows_D: IntArray, live_D: npt.NDArray[np.bool_]) -> tuple[IntArray, list[LLMatcher]]:
        indices_n = np.flatnonzero(self._rows.has_grammar_R[rows_D] & live_D)
        found = [self._rows.sequence(row).matcher for row in rows_D[indices_n].tolist()]
        return indices_n, [matcher for matcher in found if matcher is not None]

    def _fill(self, matchers: list[LLMatcher], words_nW: npt.NDArray[Any]) -> None:
        """Without the interpreter's lock, by as many threads as there are CPUs."""
        num_bytes = words_nW.shape[1] * words_nW.itemsize
        pairs = [(matcher, line) for line, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(pairs, words_nW.ctypes.data, num_bytes, len(words_nW))

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()


def _fault(matcher: LLMatcher, gave_up: bool) -> str:
    if gave_up:
        return f"grammar: it became too complex to follow: {fault_of(matcher)}"
    return f"grammar: of what it allows here, the other parameters leave no token to draw: {fault_of(matcher)}"
