"""What can be said of batches beyond OpenAI's fields: how their lines stand, when they will end, where the time went.

Everything is read when it is asked for, also while a batch runs. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .backend import Backend
from .progress import Progress, progress_of
from .records import ENDED, Batch

MOST_ERRORS = 5
PHASES = ("validating", "queued", "running", "finalizing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The lines of a batch, each counted in one place. Lines of a batch that failed validation are errored."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    errored: int = 0
    cancelled: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a batch stands. `queue_place` 1 is fed next of its model; None where nothing of it waits, or it is paused.

    `eta` is in Unix seconds; it and `feasible` are None where they cannot be told: before validation, while the batch
    is paused, after its end, and until a live worker of its model has measured what it does. `seconds` are by phase.
    """

    queue_place: int | None
    eta: int | None
    feasible: bool | None
    standing: Standing
    estimated_tokens: int
    tokens_per_second: float
    seconds: dict[str, float]


def reports_of(backend: Backend, batches: Sequence[Batch]) -> list[Report]:
    """One report a batch, in a few round trips for all."""
    running = [batch.id for batch in batches if batch.status not in ENDED]
    progress = {one.id: one for one in progress_of(backend.store, running, count_running=True)}
    return [_report(backend, batch, progress.get(batch.id)) for batch in batches]


def _report(backend: Backend, batch: Batch, progress: Progress | None) -> Report:
    seconds = _seconds(batch, time.time())
    place, eta, feasible = _outlook(backend, batch, progress)
    tokens = batch.usage.input_tokens + batch.usage.output_tokens - batch.earlier_tokens
    return Report(
        queue_place=place,
        eta=eta,
        feasible=feasible,
        standing=standing_of(batch, progress.running if progress else 0),
        estimated_tokens=_estimate(batch, progress),
        tokens_per_second=round(tokens / max(1.0, seconds["running"]), 1),
        seconds=seconds,
    )


def standing_of(batch: Batch, num_running: int) -> Standing:
    """Where the lines of a batch are, of which at most `num_running` are in workers' hands."""
    counts = batch.counts
    left = max(0, counts.total - counts.done)
    ended = batch.status in ENDED
    running = 0 if ended else min(max(0, num_running), left)
    why = batch.closing or batch.closed_before
    return Standing(
        queued=0 if ended else left - running,
        running=running,
        succeeded=counts.completed,
        errored=counts.failed + (left if ended else 0),
        cancelled=counts.unrun if why == "cancelled" else 0,
        expired=counts.unrun if why != "cancelled" else 0,
    )


def _outlook(backend: Backend, batch: Batch, progress: Progress | None) -> tuple[int | None, int | None, bool | None]:
    if progress is None or progress.status != "in_progress" or progress.paused:
        return None, None, None
    if progress.waiting:
        foreseen = backend.lineups.of(progress.model).forecast().of(batch.id)
        if foreseen is None:
            return None, None, None  # It has come into line just now.
        ends_at = None if foreseen.ends_at is None else int(foreseen.ends_at)
        return foreseen.place, ends_at, foreseen.feasible
    rate = backend.lineups.of(progress.model).read().rate
    if not rate:
        return None, None, None
    eta = int(time.time() + progress.tokens_left / rate)
    return None, eta, eta <= progress.expires_at


def _estimate(batch: Batch, progress: Progress | None) -> int:
    """What all lines will have used: the finished ones what they did, the others what is expected of them."""
    if progress is None:
        return batch.usage.input_tokens + batch.usage.output_tokens
    return int(progress.used_tokens + progress.tokens_left)


def _seconds(batch: Batch, now: float) -> dict[str, float]:
    """What each phase took, or has taken so far; one that was left out took nothing."""
    at = batch.times.get
    winding_up = [mark for mark in (at("finalizing_at"), at("cancelling_at")) if mark is not None]
    ended_at = at(f"{batch.status}_at") if batch.status in ENDED else None
    marks = [
        at("reopened_at", batch.created_at),
        at("in_progress_at"),
        at("started_at"),
        min(winding_up, default=None),
    ]
    seconds = {}
    for place, phase in enumerate(PHASES):
        start = marks[place]
        later = [mark for mark in (*marks[place + 1 :], ended_at) if mark is not None]
        seconds[phase] = 0.0 if start is None else round(max(0.0, min(later, default=now) - start), 1)
    return seconds
