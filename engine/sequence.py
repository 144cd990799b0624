"""One request's life in the engine: what must be remembered beside the arrays of its row.

A Sequence is touched when something happens to it (arrival, admission, preemption, a full page, the end), not in
every step; what changes in every step lies in `rows.py`. Knows nothing of pages' owners or of tensors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .request import URGENT, PromptLogprob, Request, TokenLogprob

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request.

    `tokens` is the prompt, after a preemption with the tokens generated until then behind it; while the sequence
    has a row, the row's token ids are the truth. `page_hashes` names its full pages in order. `seed` is the
    request's, or the engine's choice for it. `place` is where it stands among those of its priority, once known. When
    it came, and how far it got when, is noted by `lifetimes.py`. One that `avoids_cache` computes all of its tokens;
    `pooled` is what its hidden states have come to, if it asks for an embedding. `matcher` follows its grammar, if it
    has one, and has read what is known of the generated tokens.
    """

    request: Request
    seed: int
    tokens: npt.NDArray[np.int32]
    arrived_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    first_token_at: float | None = None
    avoids_cache: bool = False
    pooled: npt.NDArray[np.float32] | None = None
    row: int | None = None
    place: int = -1
    page_hashes: list[bytes] = field(default_factory=list)
    num_cached_tokens: int | None = None
    num_reported: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    matcher: LLMatcher | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: lower priority numbers, then lower places."""
        return (self.request.priority, self.place)

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before what is usual."""
        return self.request.priority < URGENT

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def limit(self) -> int:
        """The most tokens it can have, prompt included; one that only reads ends with a draw all the same."""
        return self.num_prompt + max(1, self.request.params.max_tokens)

    @property
    def most_cached(self) -> int:
        """How many of its tokens need not be computed, if their keys and values are there.

        One must be, or there would be nothing to draw the next from; and those that are still to be scored.
        """
        most = len(self.tokens) - 1
        asks = self.request.params.prompt_logprobs is not None
        return min(most, len(self.prompt_logprobs)) if asks else most

    @property
    def may_end_early(self) -> bool:
        """Whether it may end before its limit."""
        params = self.request.params
        return bool(not params.ignore_eos or params.stop or params.stop_token_ids)

    @property
    def embeds(self) -> bool:
        """Whether it asks for an embedding, not for tokens."""
        return self.request.embedding is not None

    @property
    def only_reads(self) -> bool:
        """Whether its prompt is all that is wanted: nobody is told of what is drawn after it."""
        return self.embeds or self.request.params.max_tokens == 0

    @property
    def watched(self) -> bool:
        """Whether each of its tokens must be looked at on its own, not only with all others in an array."""
        params = self.request.params
        asks = params.stop or params.stop_token_ids or params.logprobs is not None
        return bool(asks) or self.request.stream or self.only_reads
