"""From a ticket to lines that are ready to run, in a few threads: claim the shard, read it, make prompts.

Nothing here waits for the engine, and the engine waits for nothing here. A shard that came to nothing several times is
taken in small portions, and one such at a time: it may be what kills the workers. Knows nothing of RQ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock

from ..jobs.backend import Backend
from ..jobs.ids import owner_id
from ..jobs.lines import requests_of
from ..jobs.records import Claim, Line, LineResult
from ..jobs.suspects import is_suspect, portion
from .patience import Patiently
from .prompts import Prepared, Prompts
from .shard import Ticket
from .waker import Waker

MOST_THREADS = 8


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

    def close(self) -> None:
        """Wait for what is under way; `ready` gives it."""
        self._pool.shutdown(cancel_futures=False)

    def _run(self, ticket: Ticket) -> None:
        try:
            taken = self._take(ticket)
        except Exception as error:
            # The edge of a thread: whatever it was, the main loop hears of it and fails the ticket.
            taken = Taken(ticket=ticket, claim=self._claims.get(ticket), error=error)
        self._done.put(taken)
        self._waker.wake()

    def _take(self, ticket: Ticket) -> Taken:
        batch_id, shard = ticket.key
        settings = self._backend.settings
        if not self._may_take(ticket):
            return Taken(ticket=ticket)  # It is found missing from RQ, and queued again.
        claim = self._patiently(lambda: self._backend.shards.claim(batch_id, shard, owner_id(), settings.lease_s))
        if claim is None:
            return Taken(ticket=ticket)
        self._claims[ticket] = claim
        lines = self._patiently(lambda: self._missing(claim))
        wanted = lines[: portion(len(lines), claim.attempts, settings.max_attempts)]
        return Taken(ticket=ticket, claim=claim, lines=tuple(self._prompts.prepare(wanted)))

    def _may_take(self, ticket: Ticket) -> bool:
        """Whether the shard is no suspect, or the only one in this worker's hands from now on."""
        attempts = self._patiently(lambda: self._backend.shards.attempts_of(*ticket.key))
        if not is_suspect(attempts, self._backend.settings.max_attempts):
            return True
        with self._suspect_lock:
            free = self._suspect is None
            self._suspect = ticket if free else self._suspect
        return free

    def _missing(self, claim: Claim) -> list[Line]:
        lines = requests_of(self._backend.blobs_of(claim.batch), claim.batch, claim.shard)
        return [line for line in lines if line.index not in claim.done]
