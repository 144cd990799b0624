# mypy: ignore-errors
"""Launches Triton kernels, or only compiles them, many at once, as `kernels/compiling.py` says. Knows no kernel."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import triton

_only_compiles: ContextVar[bool] = ContextVar("only_compiles", default=False)


def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:
    """What launches the kernel, or, inside of `compiling`, only has it compiled for such arguments."""
    return partial(kernel.warmup, grid=grid) if _only_compiles.get() else kernel[grid]


@contextmanager
def compiling() -> Iterator[None]:
    """Make this thread's launches compile in other threads, and wait for them at the end."""
    token = _only_compiles.set(True)
    try:
        with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor):
            yield
    finally:
        _only_compiles.reset(token)
