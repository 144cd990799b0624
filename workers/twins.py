"""Lines that are bound to get the same answer: how they are known, and a bounded memory of what they were answered.

Only lines of one batch are twins, and only where nothing is left to chance: at temperature 0, or with a seed.
Knows nothing of engines or of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass

from ..engine.request import Output
from ..jobs.embeddings import EmbeddingRequest
from ..jobs.labels import LABELS
from ..jobs.requests import ChatCompletionRequest, CompletionRequest

MOST_ANSWERS = 4096
MOST_TOKENS = 2**18  # Of all answers together; a reported alternative to a token counts as one.

Twin = tuple[str, str, bytes]  # The batch, the copy of its lines that is run, and the digest of a request.


def digest_of(
    url: str, body: ChatCompletionRequest | CompletionRequest | EmbeddingRequest, *, shown: object = None
) -> bytes | None:
    """The same for requests that mean the same, however they are written; None where chance has a say.

    `shown` is what the answer repeats of the request as it was written.
    """
    if not isinstance(body, EmbeddingRequest) and body.temperature > 0 and body.seed is None:
        return None
    # By pydantic, for a third of what Python's own JSON costs. No line of it holds a newline.
    canonical = "\n".join((url, body.model_dump_json(exclude=LABELS), json.dumps(shown)))
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a run ended: whole outputs in the order of its requests, or the code of the error that it is given up for."""

    outputs: tuple[Output, ...] = ()
    error: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the same would be answered again: the engine's own refusals may pass."""
        return all(output.finish_reason in ("stop", "length") for output in self.outputs)

    @property
    def num_tokens(self) -> int:
        """Its size, with all that is reported of each token; each number of an embedding is as large as a token."""
        return sum(
            len(output.token_ids)
            + len(output.embedding or b"") // 4
            + sum(1 + len(entry.top) for entry in [*(output.logprobs or ()), *(output.prompt_logprobs or ())])
            for output in self.outputs
        )


class Answers:
    """The answers of late, by twin; those that nobody asked for the longest go first."""

    def __init__(self, *, most: int = MOST_ANSWERS, most_tokens: int = MOST_TOKENS) -> None:
        self._most, self._most_tokens = most, most_tokens
        self._answers: OrderedDict[Twin, Answer] = OrderedDict()
        self._num_tokens = 0

    def find(self, twin: Twin | None) -> Answer | None:
        answer = None if twin is None else self._answers.get(twin)
        if twin is not None and answer is not None:
            self._answers.move_to_end(twin)
        return answer

    def keep(self, twin: Twin, answer: Answer) -> None:
        """Remember an answer that none was remembered for."""
        assert twin not in self._answers
        if not answer.is_final:
            return
        self._answers[twin] = answer
        self._num_tokens += answer.num_tokens
        while len(self._answers) > self._most or self._num_tokens > self._most_tokens:
            _, oldest = self._answers.popitem(last=False)
            self._num_tokens -= oldest.num_tokens
