"""What this machine can do at most: bytes copied a second, and operations a second of a large matrix product.

On a GPU both are medians of CUDA graph replays with the L2 cache flushed before each, in bfloat16; on a CPU the best of
a few runs in float32, only to give the same report something to hold against.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What a hand-written attention forward reaches on Hopper; no product of two large matrices stands for it.
ATTENTION_TFLOPS = 450.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """`copy_gbps` counts bytes read plus bytes written. `attention_tflops` is stated, not measured."""

    device: str
    device_name: str
    copy_gbps: float
    product_tflops: float
    attention_tflops: float
    memory_bytes: float


def measure_ceilings(device: str, attention_tflops: float | None = None) -> Ceilings:
    """`device` is auto, cpu or cuda. The attention's own ceiling never exceeds the product's unless it is asked for."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    product = matmul_tflops() if on_gpu else _cpu_product_tflops()
    return Ceilings(
        device=device,
        device_name=torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads",
        copy_gbps=copy_gbps() if on_gpu else _cpu_copy_gbps(),
        product_tflops=product,
        attention_tflops=attention_tflops or min(ATTENTION_TFLOPS, product),
        memory_bytes=float(torch.cuda.get_device_properties(0).total_memory if on_gpu else _cpu_memory()),
    )


def graph_milliseconds(run: Callable[[], Any]) -> float:
    """Time one run, captured in a graph so that the host's launches are not what is measured."""
    import torch
    from triton.testing import do_bench

    run()  # compiles, which a capture does not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return float(do_bench(graph.replay, warmup=10, rep=60, return_mode="median"))


def copy_gbps() -> float:
    """A copy done by the processors: a graph would leave `copy_` to the copy engine, which is slower."""
    import torch

    source, target = _randn(1 << 30), _randn(1 << 30)
    return float(2 * source.nbytes / graph_milliseconds(lambda: torch.neg(source, out=target)) / 1e6)


def matmul_tflops() -> float:
    a, b = _randn(8192, 8192), _randn(8192, 8192)
    return 2 * 8192**3 / graph_milliseconds(lambda: a @ b) / 1e9


def _randn(*shape: int) -> Any:
    import torch

    return torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()


def _cpu_copy_gbps() -> float:
    import torch

    source, target = torch.zeros(1 << 25), torch.empty(1 << 25)
    return 2 * source.nbytes / _best_seconds(lambda: torch.neg(source, out=target)) / 1e9


def _cpu_product_tflops() -> float:
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / _best_seconds(lambda: a @ b) / 1e12


def _best_seconds(run: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _cpu_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
