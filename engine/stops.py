"""Stop strings, looked for in the text that the newest token completes.

Only a window of the last tokens is decoded: a string of b bytes spans at most b tokens that have text, and a few more
are decoded before them, because the first tokens of a window may decode differently than in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Decode = Callable[[list[int]], str]

MARGIN = 8


def find_stop(stops: Sequence[str], tokens: npt.NDArray[np.int32], decode: Decode) -> str | None:
    """The stop string that the last token completes; the one that begins first if there are several."""
    window = tokens[-(max(len(stop.encode()) for stop in stops) + MARGIN) :].tolist()
    text = decode(window)
    if not any(stop in text for stop in stops):
        return None
    # What was there before the last token has been looked at before, and was not to count (min_tokens).
    known = len(decode(window[:-1]))
    found = {stop: text.find(stop, max(0, known - len(stop) + 1)) for stop in stops}
    return min((stop for stop in stops if found[stop] >= 0), key=found.__getitem__, default=None)
