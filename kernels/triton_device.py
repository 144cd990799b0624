# mypy: ignore-errors
"""What launches need of a device: how wide it is, and a second stream. Knows no kernel."""

from collections.abc import Callable
from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors, each of which runs some programs at once; 1 where Triton's interpreter stands in for a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def aside(device: torch.device, launch: Callable[[], None]) -> Callable[[], None]:
    """Launch behind all that this stream was given so far, and beside what it is given from now on.

    Returns what makes the stream wait for it, to be called before anybody needs it. May be captured in a CUDA graph.
    """
    if device.type != "cuda":
        launch()
        return lambda: None
    stream, other = torch.cuda.current_stream(device), _second_stream(device)
    other.wait_stream(stream)
    with torch.cuda.stream(other):
        launch()
    return lambda: stream.wait_stream(other)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
