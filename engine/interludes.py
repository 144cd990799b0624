"""Small steps of urgent sequences, launched in the middle of larger ones, so that their first token need not wait.

While urgent requests come, steps are launched in parts, each when the device has begun the one before it. Meanwhile
this looks for who is urgent, computes their prompts between two parts, and hands out what has ended. A step's rows and
pages are not touched by what is launched inside it, so that it goes on as if nothing had been. Knows nothing of
graphs or of how tokens are drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from .memory import URGENT_TOKENS
from .plan import Plan
from .request import URGENT, Output, Request
from .runner import URGENT_ROWS, Flight
from .scheduler import Scheduler

# After an urgent request others are expected for so long.
EXPECTED_S = 30.0
LOOK_S = 50e-6

UnderWay = tuple[Plan, Flight]


class Interludes:
    """`note` what arrives; while more is `expected`, `play` what is urgent at every pause; take what has `ended`."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        launch: Callable[[Plan], UnderWay | None],
        land: Callable[[Plan, Flight], list[Output]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler, self._launch, self._land, self._clock = scheduler, launch, land, clock
        self._under_way: list[UnderWay] = []
        self._last_urgent, self._expected_s = -math.inf, EXPECTED_S

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def expected(self) -> bool:
        return self._clock() - self._last_urgent < self._expected_s

    def forgo(self) -> None:
        """Expect no more."""
        self._expected_s = 0.0

    def note(self, requests: Iterable[Request]) -> None:
        if any(request.priority < URGENT for request in requests):
            self._last_urgent = self._clock()

    def play(self, steps: list[Plan]) -> bool:
        """Launch the first step of who is urgent beside these; False if nobody is, or nobody fits beside them."""
        plans = [*steps, *(plan for plan, _ in self._under_way)]
        plan = self._scheduler.schedule_urgent(plans, max_rows=URGENT_ROWS, max_tokens=URGENT_TOKENS)
        launched = None if plan is None else self._launch(plan)
        if launched is not None:
            self._under_way.append(launched)
        return launched is not None

    def ended(self) -> list[Output]:
        """Take in those that are done. Before a step is taken in that was planned after them: that is done later."""
        outputs: list[Output] = []
        while self._under_way and self._under_way[0][1].is_done:
            outputs += self._land(*self._under_way.pop(0))
        return outputs
