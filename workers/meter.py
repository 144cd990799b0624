"""How many tokens a second a worker does while it is busy, over the last minute of work. Knows nothing of clocks."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
LEAST_S = 0.5  # After less work than this a rate says nothing.


class Meter:
    """Tell it what has been done at which time, at least every few seconds; idle times do not count."""

    def __init__(self) -> None:
        self._turns: deque[tuple[float, int]] = deque()
        self._busy_s = 0.0
        self._tokens = 0
        self._now: float | None = None
        self.tokens_per_s = 0.0

    def note(self, now: float, *, busy: bool, tokens: int = 0) -> None:
        """Since the last note it was busy or not, and has finished lines of so many tokens."""
        spent = now - self._now if busy and self._now is not None else 0.0
        self._now = now
        if not spent and not tokens:
            return
        self._turns.append((spent, tokens))
        self._busy_s += spent
        self._tokens += tokens
        while self._busy_s - self._turns[0][0] > WINDOW_S:
            old_spent, old_tokens = self._turns.popleft()
            self._busy_s -= old_spent
            self._tokens -= old_tokens
        if self._busy_s >= LEAST_S and self._tokens:
            self.tokens_per_s = self._tokens / self._busy_s
