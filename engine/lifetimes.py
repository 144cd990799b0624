"""When requests come, get a row, draw their first token and end. Nothing is kept by step: only what happens once.

Finding the rows that drew a first token is one comparison of arrays a step. Times are of the host's monotonic clock, as
this process learns of things: with asynchronous scheduling that is a step after the device has done them. Knows nothing
of what becomes of the times.

D rows that have drawn a token.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from .pages import IntArray
from .request import Lifetime
from .rows import Rows
from .sequence import Sequence


def note_admitted(sequences: Iterable[Sequence]) -> None:
    """These sequences are new in their rows; one that was preempted before keeps its first time."""
    for sequence in sequences:
        if sequence.admitted_at is None:
            sequence.admitted_at = time.monotonic()


def note_first_tokens(rows: Rows, rows_D: IntArray) -> None:
    """Each of these rows has just got a token, which may be its sequence's first."""
    first_D = rows.num_known_R[rows_D] == rows.num_prompt_R[rows_D] + 1
    if first_D.any():
        now = time.monotonic()
        for row in rows_D[first_D].tolist():
            rows.sequence(row).first_token_at = now


def lifetime(sequence: Sequence, num_generated: int) -> Lifetime:
    """The life of a sequence that ends now."""
    return Lifetime(
        arrived_at=sequence.arrived_at,
        admitted_at=sequence.admitted_at,
        first_token_at=sequence.first_token_at,
        ended_at=time.monotonic(),
        num_prompt_tokens=sequence.num_prompt,
        num_generated_tokens=num_generated,
    )
