"""Arrays to the device and back without waiting for it: through pinned memory, in the order of the stream.

A plain `.to(device)` or `.cpu()` waits until all that was launched before is done, and an engine that waits cannot plan
ahead. On a CPU an upload is a view, and a download a copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def upload(array: Array, device: torch.device) -> Tensor:
    """The array on the device, for what is launched from now on; it may be changed after the call."""
    if device.type == "cpu" or not array.size:  # There is nothing of an empty one to pin or to wait for.
        return torch.from_numpy(array).to(device)
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)


def pinned(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Memory of the host for int32 that is to go to the device, which torch keeps while it is copied from."""
    return torch.empty(shape, dtype=torch.int32, pin_memory=device.type == "cuda")


class Download:
    """Tensors on their way to the host: `wait` gives them as arrays."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        on_gpu = bool(tensors) and tensors[0].is_cuda
        self._tensors = [torch.empty_like(tensor, device="cpu", pin_memory=on_gpu) for tensor in tensors]
        for here, tensor in zip(self._tensors, tensors, strict=True):
            here.copy_(tensor, non_blocking=True)
        if on_gpu:
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_there(self) -> bool:
        """Whether `wait` would return at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[Array]:
        """Block until all that was launched before this download is done."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
