"""Python's garbage collection in processes that somebody waits for.

A full collection looks at all that there is, modules and tokenizers among it: a pause of 0.1 to 0.2 s in which no
thread goes on. Knows nothing of what a process is for.
"""

from __future__ import annotations

import gc

# Python begins to look after 700 objects, which are some twenty lines that all still live.
NEW_OBJECTS, ROUNDS = 20_000, 20


def settle() -> None:
    """A process is ready, once: what it holds by now stays and is not looked at again, and the rest seldom.

    What it makes from now on lives as long as a line or a request, and refers to itself only by mistake.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, ROUNDS, ROUNDS)
