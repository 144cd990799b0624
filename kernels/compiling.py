"""Compiling kernels ahead of their launch, many at once. Knows no kernel.

One after another, as their first launches came, those of a large model's steps took half a minute.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def compiling(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU this thread's launches inside compute nothing, and what they would have launched is compiled at its end.

    Tensors that they would have written keep what they hold. Raises the first error of a compilation. Elsewhere
    there is nothing to compile, and kernels compute as always.
    """
    if device.type != "cuda":
        return nullcontext()
    from . import triton_compiling

    return triton_compiling.compiling()
