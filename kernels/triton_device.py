"""What launches need to know of a device. Knows no kernel."""

from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors, each of which runs some programs at once; 1 where Triton's interpreter stands in for a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
