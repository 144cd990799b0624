"""How a lease is divided, so that what was in dead hands is in others' before it is over.

A worker's claim holds for half of it; what is left is for finding out, and for whoever takes over. With C for a look at
every batch in hand and T for a tick of the housekeeper (`workers/housekeeping.py`), it is at most until others may have

    a shard that a dead worker held                        hold + C + T + feeding
    one that was taken from RQ, or drawn for it            missing + 2 sweep + T + feeding
    the validation or the end of a batch                   ending + C + T

where `feeding` counts only if who fed died with it. Seconds, all of them. Knows nothing of who keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_RENEWAL_S, LONGEST_SWEEP_S, LONGEST_FEEDING_S = 1.0, 5.0, 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The parts of a lease of `whole` seconds."""

    whole: float

    @property
    def hold(self) -> float:
        """How long a claim holds after its last renewal."""
        return self.whole / 2

    @property
    def renewal(self) -> float:
        """How often claims are renewed: some may fail."""
        return min(LONGEST_RENEWAL_S, self.hold / 5)

    @property
    def sweep(self) -> float:
        """How often shards are looked for that RQ has lost."""
        return min(LONGEST_SWEEP_S, self.whole / 10)

    @property
    def missing(self) -> float:
        """How long a shard may be neither in RQ nor claimed: longer than a worker takes to claim what it took."""
        return self.whole / 2

    @property
    def turn(self) -> float:
        """How long a suspect may wait for its turn in one worker."""
        return self.missing / 4

    @property
    def feeding(self) -> float:
        """How long who feeds may stall: much longer than a round takes."""
        return min(LONGEST_FEEDING_S, self.whole / 5)

    @property
    def ending(self) -> float:
        """How long who validates or ends a batch may stall between two renewals."""
        return 3 * self.whole / 4
