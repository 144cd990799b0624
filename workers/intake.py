"""From a ticket to lines that are ready to run, in a few threads: claim the shard, read it, make prompts.

Nothing here waits for the engine, and the engine waits for nothing here. A shard that came to nothing several times is
taken in small portions, and one such at a time, the others after it: it may be what kills the workers. Knows nothing of
RQ.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock

from ..jobs.backend import Backend
from ..jobs.ids import owner_id
from ..jobs.lines import requests_of
from ..jobs.records import Claim, Line, LineResult
from ..jobs.suspects import portion, suspect_from
from .patience import Patiently
from .prompts import Prepared, Prompts
from .shard import Ticket
from .waker import Waker

MOST_THREADS = 4  # Of what they do only tokenizing goes on beside others; more would keep online requests waiting.


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a ticket: a claim with lines to run, no claim (nothing is to be run now), or an error.

    Beside an error, the claim that had been made by then.
    """

    ticket: Ticket
    claim: Claim | None = None
    lines: tuple[Prepared | LineResult, ...] = ()
    error: Exception | None = None


class Intake:
    """Hand tickets in with `submit`, and collect what became of them with `ready`, from one thread."""

    def __init__(self, backend: Backend, prompts: Prompts, waker: Waker, patiently: Patiently) -> None:
        self._backend = backend
        self._patiently = patiently
        self._prompts = prompts
        self._waker = waker
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="intake")
        self._done: SimpleQueue[Taken] = SimpleQueue()
        self._pending: set[Ticket] = set()
        self._claims: dict[Ticket, Claim] = {}
        self._suspect: Ticket | None = None
        self._suspects: deque[tuple[Ticket, float]] = deque()
        self._suspect_lock = Lock()

    @property
    def num_interactive(self) -> int:
        return sum(ticket.interactive for ticket in self._pending)

    @property
    def num_batch(self) -> int:
        return len(self._pending) - self.num_interactive

    def __len__(self) -> int:
        return len(self._pending)

    def claims(self) -> list[Claim]:
        """What has been claimed and waits for its lines; its lease is the main loop's to renew."""
        return list(self._claims.values())

    def submit(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._pending.add(ticket)
            self._pool.submit(self._run, ticket)

    def ready(self) -> list[Taken]:
        """What has become of tickets since the last call."""
        taken: list[Taken] = []
        try:
            while True:
                taken.append(self._done.get_nowait())
        except Empty:
            for one in taken:
                self._pending.discard(one.ticket)
                self._claims.pop(one.ticket, None)
            return taken

    def settle(self, in_hand: Iterable[Ticket]) -> None:
        """Let the next suspect be taken, once the one before is neither here nor among the doubtful `in_hand`."""
        suspect = self._suspect
        if suspect is not None and suspect not in self._pending and all(ticket is not suspect for ticket in in_hand):
            self._suspect = None
        if self._suspects:
            self._next_suspect()

    def _next_suspect(self) -> None:
        """Begin with the one that has waited for longest, and let go of those that have waited for too long."""
        too_long = time.monotonic() - self._backend.settings.lease.turn
        with self._suspect_lock:
            while self._suspects and self._suspects[0][1] < too_long:
                self._done.put(Taken(ticket=self._suspects.popleft()[0]))
            if self._suspects and self._suspect is None:
                self._pool.submit(self._run, self._suspects.popleft()[0])

    def close(self) -> None:
        """Wait for what is under way; `ready` gives it."""
        self._pool.shutdown(cancel_futures=False)
        for ticket, _ in self._suspects:
            self._done.put(Taken(ticket=ticket))

    def _run(self, ticket: Ticket) -> None:
        try:
            taken = self._take(ticket)
        except Exception as error:
            # The edge of a thread: whatever it was, the main loop hears of it and fails the ticket.
            taken = Taken(ticket=ticket, claim=self._claims.get(ticket), error=error)
        if taken is not None:
            self._done.put(taken)
            self._waker.wake()

    def _take(self, ticket: Ticket) -> Taken | None:
        """What becomes of a ticket; None: it waits for its turn."""
        shards, lease, owner = self._backend.shards, self._backend.settings.lease, owner_id()
        most = suspect_from(self._backend.settings.max_attempts)
        found = self._patiently(lambda: shards.claim_unless_suspect(*ticket.key, owner, lease.hold, most))
        if found != "suspect":
            claim = found
        elif self._is_its_turn(ticket):
            claim = self._patiently(lambda: shards.claim(*ticket.key, owner, lease.hold))
        else:
            return None
        return Taken(ticket=ticket) if claim is None else self._prepare(ticket, claim)

    def _is_its_turn(self, suspect: Ticket) -> bool:
        """Whether it is the only suspect in this worker's hands from now on; else it is kept for later."""
        with self._suspect_lock:
            if self._suspect is None:
                self._suspect = suspect
            elif self._suspect is not suspect:
                self._suspects.append((suspect, time.monotonic()))
            return self._suspect is suspect

    def _prepare(self, ticket: Ticket, claim: Claim) -> Taken:
        self._claims[ticket] = claim
        lines = self._patiently(lambda: self._missing(claim))
        wanted = lines[: portion(len(lines), claim.attempts, self._backend.settings.max_attempts)]
        return Taken(ticket=ticket, claim=claim, lines=tuple(self._prompts.prepare(wanted)))

    def _missing(self, claim: Claim) -> list[Line]:
        lines = requests_of(self._backend.blobs_of(claim.batch), claim.batch, claim.shard)
        return [line for line in lines if line.index not in claim.done]
