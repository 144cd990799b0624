"""What launches need of a device: how wide it is, and a second stream. Knows no kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors, each of which runs some programs at once; 1 where Triton's interpreter stands in for a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@contextmanager
def beside(device: torch.device, launch: Callable[[], None]) -> Iterator[None]:
    """Launch behind all that this stream was given so far, and beside what it is given inside the block.

    What follows the block waits for both. May be captured in a CUDA graph.
    """
    if device.type != "cuda":
        launch()
        yield
        return
    stream, other = torch.cuda.current_stream(device), _second_stream(device)
    other.wait_stream(stream)
    try:
        with torch.cuda.stream(other):
            launch()
        yield
    finally:  # Or memory that the one stream frees might be written to by the other.
        stream.wait_stream(other)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
