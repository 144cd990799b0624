"""The lines of all models: each waits for workers of its own, so that none can stand in another's way.

Knows nothing of RQ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from .lineup import Lineup, ready_key
from .progress import Progress
from .store import Store


class Lineups:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lineups: dict[str, Lineup] = {}

    def of(self, model: str) -> Lineup:
        """The line of a model."""
        return self._lineups.setdefault(model, Lineup(self._store, model))

    def lengths(self, models: Sequence[str]) -> list[int]:
        """How many batches wait for each model."""
        pipe = self._store.redis.pipeline(transaction=False)
        for model in models:
            pipe.hlen(ready_key(model))
        return list(map(int, pipe.execute()))

    def note(self, batches: Iterable[Progress]) -> None:
        """Put batches into their lines or take them out, as they stand, and charge what they owe."""
        by_model: dict[str, list[Progress]] = defaultdict(list)
        for batch in batches:
            if batch.model:  # Else it is not validated yet, and waits for no workers.
                by_model[batch.model].append(batch)
        for model, those in by_model.items():
            self.of(model).note(those)

    def settle(self, batch: Progress) -> None:
        """Charge an ended batch for what it has really used, and forget it."""
        self.of(batch.model).settle(batch)

    def forget(self, batch_id: str) -> None:
        """A batch that is gone, with what it said of its model, has no place in any line."""
        for model in self._store.served():
            self.of(model).forget(batch_id)
