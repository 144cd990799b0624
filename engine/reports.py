"""What the newest tokens mean for their requests: which have ended and why, and what to tell their owners.

Length and end of sequence are tested for all rows at once; only rows that are watched (stop strings or ids, streams,
log-probabilities) are looked at one by one. Knows nothing of pages or of the order of work.

D rows that have drawn a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .lifetimes import lifetime
from .pages import IntArray
from .pooling import Pooling
from .request import FinishReason, Output
from .rows import Rows
from .runner import Results
from .sequence import Sequence
from .stops import Decode, find_stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a sequence ends; `reason` is the stop string or token id, None for end of sequence."""

    finish: FinishReason
    reason: int | str | None = None
    error: str | None = None


class Reporter:
    """Reads the scheduler's rows after each step; it changes nothing in them."""

    def __init__(
        self, rows: Rows, eos_token_ids: tuple[int, ...], decode: Decode | None, pooling: Pooling | None = None
    ) -> None:
        self._rows, self._decode, self._pooling = rows, decode, pooling
        self._eos_token_ids = np.array(eos_token_ids, np.int64)

    def report(
        self, rows_D: IntArray, live_D: npt.NDArray[np.bool_], results: Results, faults: Mapping[int, str]
    ) -> tuple[list[Output], list[Sequence]]:
        """Return the outputs due after a step, and the sequences that have ended. Rows not live are others'.

        `faults` says of rows why they cannot go on.
        """
        endings = self._common_endings(rows_D[live_D], results.tokens[live_D])
        endings |= {row: Ending(finish="error", error=fault) for row, fault in faults.items()}
        outputs: list[Output] = []
        for i in np.flatnonzero(self._rows.watched_R[rows_D] & live_D).tolist():
            row = int(rows_D[i])
            sequence = self._rows.sequence(row)
            if i in results.logprobs:
                sequence.logprobs.append(results.logprobs[i])
            sequence.pooled = results.pooled.get(i)
            ending = self._own_ending(sequence, row, endings.get(row))
            if ending is not None:
                endings[row] = ending
            elif sequence.request.stream:
                outputs.append(self.output(sequence, None))
        ended = [self._rows.sequence(row) for row in endings]
        outputs += [self.output(self._rows.sequence(row), ending) for row, ending in endings.items()]
        return outputs, ended

    def output(self, sequence: Sequence, ending: Ending | None) -> Output:
        """What is new of a sequence since its last output."""
        tokens = sequence.tokens if sequence.row is None else self._rows.tokens(sequence.row)
        generated = tokens[sequence.num_prompt :]
        if sequence.only_reads:
            generated = generated[:0]
        start, sequence.num_reported = sequence.num_reported, len(generated)
        asks = sequence.request.params.logprobs is not None
        scores = sequence.request.params.prompt_logprobs is not None
        return Output(
            id=sequence.request.id,
            token_ids=generated[start:].tolist(),
            finish_reason=ending.finish if ending else None,
            stop_reason=ending.reason if ending else None,
            error=ending.error if ending else None,
            logprobs=sequence.logprobs[start : len(generated)] if asks else None,
            prompt_logprobs=sequence.prompt_logprobs if ending and scores else None,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            embedding=self._embedding(sequence),
            lifetime=lifetime(sequence, len(generated)) if ending else None,
        )

    def _embedding(self, sequence: Sequence) -> bytes | None:
        if self._pooling is None or sequence.pooled is None or sequence.request.embedding is None:
            return None
        return self._pooling.embedding(sequence.pooled, sequence.num_prompt, sequence.request.embedding)

    def _common_endings(self, rows_D: IntArray, tokens_D: IntArray) -> dict[int, Ending]:
        is_eos_D = np.isin(tokens_D, self._eos_token_ids) & self._rows.heeds_eos_R[rows_D]
        is_full_D = self._rows.num_known_R[rows_D] >= self._rows.limit_R[rows_D]
        endings = dict.fromkeys(rows_D[is_full_D].tolist(), Ending(finish="length"))
        return endings | dict.fromkeys(rows_D[is_eos_D].tolist(), Ending(finish="stop"))

    def _own_ending(self, sequence: Sequence, row: int, common: Ending | None) -> Ending | None:
        """The ending by the request's own stops, if they say so, else the common one."""
        params = sequence.request.params
        generated = self._rows.tokens(row)[sequence.num_prompt :]
        if sequence.only_reads:
            return Ending(finish="stop" if sequence.embeds else "length")
        if common is not None and common.finish != "length":
            return common
        token = int(generated[-1])
        if token in params.stop_token_ids:
            return Ending(finish="stop", reason=token)
        if params.stop and len(generated) > params.min_tokens:
            assert self._decode is not None, "requests with stop strings are refused without a decode function"
            stop = find_stop(params.stop, generated, self._decode)
            if stop is not None:
                return Ending(finish="stop", reason=stop)
        return common
