"""How far batches have got, in shards, lines and tokens, and what of them is still to come.

Tokens of lines that have not finished are estimates: those of validation at first, and more and more the mean of the
batch's own finished lines. Knows nothing of other batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .fields import as_text
from .records import DEFAULT_TENANT, BatchStatus, Closing
from .redis_keys import batch_key
from .store import Store
from .trips import Trip

TRUST_LINES = 16  # So many finished lines say as much about a batch's tokens as validation does.
DEFAULT_LINE_TOKENS = 512.0  # Where a batch was validated before there were estimates.


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A batch as it stands. `waiting`, `queued` and `leased` count shards, `running` lines in workers' hands.

    Its model is that of its lines, and known once they are validated.
    """

    id: str
    status: BatchStatus = "validating"
    closing: Closing | None = None
    paused: bool = False
    model: str = ""
    tenant: str = DEFAULT_TENANT
    priority: int = 0
    created_at: int = 0
    expires_at: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    unrun: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_tokens: int = 0
    earlier_tokens: int = 0
    num_shards: int = 0
    lines_per_shard: float = 0.0
    waiting: int = 0
    queued: int = 0
    leased: int = 0
    running: int = 0

    @property
    def used_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def lines_left(self) -> int:
        return max(0, self.total - self.completed - self.failed - self.unrun)

    @property
    def tokens_per_line(self) -> float:
        """What a line of this batch takes, as far as is known."""
        guess = self.estimated_tokens / self.total if self.estimated_tokens and self.total else DEFAULT_LINE_TOKENS
        return (TRUST_LINES * guess + self.used_tokens) / (TRUST_LINES + self.completed)

    @property
    def shard_tokens(self) -> float:
        lines = self.lines_per_shard or self.total / max(1, self.num_shards)
        return max(1.0, lines * self.tokens_per_line)

    @property
    def tokens_left(self) -> float:
        return self.lines_left * self.tokens_per_line

    @property
    def tokens_out(self) -> float:
        """Tokens of lines that have been fed and have not finished."""
        return max(0.0, self.tokens_left - self.waiting * self.shard_tokens) if self.queued + self.leased else 0.0

    @property
    def tokens_owed(self) -> float:
        """What the tenant is to be charged by now: tokens used since the batch was opened, and those out."""
        return max(0, self.used_tokens - self.earlier_tokens) + self.tokens_out

    @property
    def in_line(self) -> bool:
        return self.status == "in_progress" and not self.paused and self.waiting > 0


_COUNTED = {"id", "waiting", "queued", "leased", "running"}
_FIELDS = {one.name: one.type for one in fields(Progress) if one.name not in _COUNTED}


def progress_of(store: Store, batch_ids: Sequence[str], *, count_running: bool = False) -> list[Progress]:
    """How these batches stand, in one round trip; those that are gone are left out."""
    trip = Trip(store.redis)
    for batch_id in batch_ids:
        base = batch_key(batch_id)
        keys = [base, *(f"{base}:{part}" for part in ("shards", "waiting", "queued", "leased"))]
        args: list[Any] = [f"{base}:spool:", int(count_running), *_FIELDS]
        trip.add(store.scripts["progress"], keys=keys, args=args)
    replies = zip(batch_ids, trip.go(), strict=True)
    return [_progress(batch_id, *reply) for batch_id, reply in replies if reply[0][0] is not None]


def _progress(batch_id: str, raw: Sequence[Any], waiting: int, queued: int, leased: int, running: int) -> Progress:
    values = {name: _value(kind, value) for (name, kind), value in zip(_FIELDS.items(), raw, strict=True) if value}
    return Progress(id=batch_id, waiting=waiting, queued=queued, leased=leased, running=running, **values)


def _value(kind: Any, raw: Any) -> Any:
    text = as_text(raw)
    return int(text) if kind == "int" else float(text) if kind == "float" else text == "1" if kind == "bool" else text
