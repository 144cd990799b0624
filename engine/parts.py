"""A step in parts, so that what is urgent can be launched between two of them instead of behind them all.

Of a step so launched the device has at most one part ahead of what it computes. Knows nothing of what a part computes
or of what is urgent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

# Of a captured step. Shorter parts let the urgent in sooner, and leave the host less time to launch the next one.
NUM_PARTS = 4


class Mark:
    """A place in what has been launched: here, when it was made. Without a GPU everything launched is done."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_reached(self) -> bool:
        """Whether the device has come so far."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]


# Called between two parts; to return once the device has begun the one before, which begins at the mark.
Between = Callable[[Mark], None]


class Pauses:
    """Make one where a step begins, and call it at the end of each part."""

    def __init__(self, between: Between) -> None:
        self._between, self._begin = between, Mark()

    def __call__(self) -> None:
        begin, self._begin = self._begin, Mark()
        self._between(begin)


def before_layers(between: Between | None) -> Callable[[int], None] | None:
    """What makes a pause before each layer of a step that begins now."""
    if between is None:
        return None
    pauses = Pauses(between)
    return lambda layer: pauses()


class Captured:
    """The graphs of one step, in order."""

    def __init__(self, graphs: Sequence[torch.cuda.CUDAGraph]) -> None:
        self._graphs = graphs

    def replay(self, between: Between | None = None) -> None:
        """Launch them all; with `between`, each when the device has begun the one before it."""
        first, *others = self._graphs
        pauses = None if between is None else Pauses(between)
        first.replay()
        for graph in others:
            if pauses is not None:
                pauses()
            graph.replay()
