"""A stand-in for an engine on a GPU that is full: as many rows, steps as long, and urgent requests between their parts.

It computes nothing: tokens are drawn at random. While it waits for the device that it does not have, it looks for who
is urgent as often as the engine does. For measurements of the service beside a batch, without a GPU.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from pressrun.engine.interludes import LOOK_S
from pressrun.engine.request import URGENT, Attend, Lifetime, Load, ModelInfo, Output, Request

NUM_PARTS = 4
PAGE_SIZE = 16
LONGEST_ANSWER = 8192
STRIDE = 1543  # A prime number, between the answers of two requests.


@dataclass(slots=True, kw_only=True)
class Row:
    """A request in the engine, with the number of its tokens so far, and of those told."""

    request: Request
    arrived_at: float
    offset: int  # Where its answer begins among the tokens that were drawn.
    first_token_at: float | None = None
    num_tokens: int = 0
    num_told: int = 0


class StandIn:
    """A step takes `base_s`, and `full_s` more where all of `num_rows` are taken; an urgent prompt `prompt_s`."""

    def __init__(
        self,
        *,
        num_rows: int = 1024,
        num_pages: int = 27_000,
        vocab_size: int = 49_152,
        base_s: float = 0.0065,
        full_s: float = 0.023,
        prompt_s: float = 0.01,
    ) -> None:
        self.info = ModelInfo(max_model_len=8192, vocab_size=vocab_size)
        self._num_rows, self._num_pages = num_rows, num_pages
        self._base_s, self._full_s, self._prompt_s = base_s, full_s, prompt_s
        draw = random.Random(0)
        self._tokens = [draw.randrange(100, vocab_size) for _ in range(2 * LONGEST_ANSWER)]
        self._arrivals = count()
        self._waiting: list[tuple[int, int, Row]] = []
        self._rows: dict[str, Row] = {}
        self._num_generated = 0

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            number = next(self._arrivals)
            row = Row(request=request, arrived_at=time.monotonic(), offset=STRIDE * number % LONGEST_ANSWER)
            heapq.heappush(self._waiting, (request.priority, number, row))

    def abort(self, ids: Iterable[str]) -> None:
        gone = set(ids)
        for id in gone:
            self._rows.pop(id, None)
        self._waiting = [entry for entry in self._waiting if entry[2].request.id not in gone]
        heapq.heapify(self._waiting)

    def has_work(self) -> bool:
        return bool(self._waiting or self._rows)

    def step(self, attend: Attend | None = None) -> list[Output]:
        self._admit()
        rows = list(self._rows.values())
        part_s = (self._base_s + self._full_s * len(rows) / self._num_rows) / NUM_PARTS
        for _ in range(NUM_PARTS):
            self._wait(part_s, attend)
            if attend is not None:
                attend(self._urgent())
        return [output for row in rows if row.request.id in self._rows for output in self._advance(row)]

    def load(self) -> Load:
        return Load(
            num_rows=self._num_rows,
            num_running=len(self._rows),
            num_waiting=len(self._waiting),
            num_free_pages=self._num_pages,
            num_pages=self._num_pages,
            page_size=PAGE_SIZE,
            num_preemptions=0,
            num_prompt_tokens=0,
            num_cached_tokens=0,
            num_generated_tokens=self._num_generated,
        )

    def _wait(self, seconds: float, attend: Attend | None) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if attend is not None:
                attend([])
            time.sleep(LOOK_S)

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < self._num_rows:
            _, _, row = heapq.heappop(self._waiting)
            self._rows[row.request.id] = row

    def _urgent(self) -> list[Output]:
        """The first tokens of those who came in the last part: their prompts are computed now, together."""
        fresh: list[Row] = []
        while self._waiting and self._waiting[0][0] < URGENT:
            _, _, row = heapq.heappop(self._waiting)
            self._rows[row.request.id] = row
            fresh.append(row)
        if fresh:
            time.sleep(self._prompt_s)
        return [output for row in fresh for output in self._advance(row)]

    def _advance(self, row: Row) -> list[Output]:
        """One more token, and what is to be told of it."""
        row.num_tokens += 1
        self._num_generated += 1
        if row.first_token_at is None:
            row.first_token_at = time.monotonic()
        ended = row.num_tokens >= row.request.params.max_tokens
        if not ended and not row.request.stream:
            return []
        start, row.num_told = row.num_told, row.num_tokens
        lifetime = self._ended(row) if ended else None
        tokens = self._tokens[row.offset + start : row.offset + row.num_tokens]
        finish = "length" if ended else None
        return [Output(id=row.request.id, token_ids=tokens, finish_reason=finish, lifetime=lifetime)]  # type: ignore[arg-type]

    def _ended(self, row: Row) -> Lifetime:
        del self._rows[row.request.id]
        return Lifetime(
            arrived_at=row.arrived_at,
            admitted_at=row.arrived_at,
            first_token_at=row.first_token_at,
            ended_at=time.monotonic(),
            num_prompt_tokens=len(row.request.prompt),
            num_generated_tokens=row.num_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInFactory:
    """Builds one in the engine's process."""

    vocab_size: int

    def __call__(self) -> StandIn:
        return StandIn(vocab_size=self.vocab_size)
