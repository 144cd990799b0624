"""How many more lines a worker should take: enough that its engine never waits, few enough that others get some.

Lines are weighed in tokens of KV cache, learnt from the lines that have finished. Knows nothing of queues.
"""

from __future__ import annotations

from ..engine.request import Load
from .prompts import Prepared

LOADS = 2  # One in the engine, one behind it.
FIRST_GUESS = 256
MEMORY = 0.02  # The weight of the newest line in what has been learnt.


class Appetite:
    """Learns how long lines are, and says how many are wanted."""

    def __init__(self) -> None:
        self._prompt = self._output = float(FIRST_GUESS)

    def learn(self, num_prompt: int, num_output: int) -> None:
        """A sequence has finished."""
        self._prompt += MEMORY * (num_prompt - self._prompt)
        self._output += MEMORY * (num_output - self._output)

    def weight(self, prepared: Prepared) -> float:
        """The tokens of KV cache that a line will probably hold at its end."""
        pairs = zip(prepared.prompts, prepared.params, strict=True)
        return prepared.body.n * sum(len(prompt) + min(params.max_tokens, self._output) for prompt, params in pairs)

    def wanted(self, load: Load, num_lines: float, weight: float) -> int:
        """How many lines to take on beside `num_lines` in hand, which weigh `weight`."""
        by_rows = LOADS * load.num_rows - num_lines
        room = LOADS * load.num_pages * load.page_size - weight
        by_pages = room / (self._prompt + self._output)
        return max(0, int(min(by_rows, by_pages)), int(num_lines == 0))
