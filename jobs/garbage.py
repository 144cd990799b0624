"""Python's garbage collection in processes that somebody waits for.

A full collection looks at all that there is, modules and tokenizers among it: a pause of 0.1 to 0.2 s in which no
thread goes on. Knows nothing of what a process is for.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """A process is ready, once: what it holds by now stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
