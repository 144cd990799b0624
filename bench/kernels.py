"""Checks, then times every Triton kernel at the shapes of real models; needs a CUDA device.

    python bench/kernels.py

Each kernel is first compared with its reference on the very tensors that are then timed, with fresh memory filled
with NaN. Times are medians of CUDA graph replays with the L2 cache flushed before each. "share" is of the ceiling
measured in the same run: the rate of a large copy (bytes read plus bytes written) or of a large bfloat16 matrix
product. Prints a table, and one JSON line last.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pressrun.kernels import checks, kv_write, paged_attention, rms_norm, rotary, silu_mul
from pressrun.kernels.reference import kv_write as reference_kv_write
from pressrun.kernels.reference import paged_attention as reference_paged_attention
from pressrun.kernels.reference import rms_norm as reference_rms_norm
from pressrun.kernels.reference import rotary as reference_rotary
from pressrun.kernels.reference import silu_mul as reference_silu_mul

DTYPE = torch.bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    intermediate: int


MODELS = (
    Model(name="Llama-3.1-8B", num_heads=32, num_kv_heads=8, head_size=128, hidden=4096, intermediate=14336),
    Model(name="SmolLM2-135M", num_heads=9, num_kv_heads=3, head_size=64, hidden=576, intermediate=1536),
)


@dataclass(frozen=True, slots=True)
class Result:
    kernel: str
    shape: str
    microseconds: float
    rate: float  # GB/s of bytes moved, or TFLOP/s
    unit: str
    share: float  # of the measured ceiling


class Bench:
    """Measures the card's two ceilings, and then kernels against them."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.copy_gbps = _copy_gbps()
        self.matmul_tflops = _matmul_tflops()

    def bytes_moved(self, kernel: str, shape: str, num_bytes: int, run: Callable[[], Any]) -> None:
        self._report(kernel, shape, run, num_bytes / 1e6, "GB/s", self.copy_gbps)

    def operations(self, kernel: str, shape: str, num_operations: int, run: Callable[[], Any]) -> None:
        self._report(kernel, shape, run, num_operations / 1e9, "TFLOP/s", self.matmul_tflops)

    def _report(self, kernel: str, shape: str, run: Callable[[], Any], work: float, unit: str, ceiling: float) -> None:
        milliseconds = _milliseconds(run)
        rate = work / milliseconds
        self.results.append(Result(kernel, shape, milliseconds * 1e3, rate, unit, rate / ceiling))
        print(f"{kernel:16} {shape:44} {milliseconds * 1e3:10.1f} µs {rate:8.0f} {unit:8} {rate / ceiling:6.1%}")


def _milliseconds(run: Callable[[], Any]) -> float:
    """Time one run, captured in a graph so that the host's launches are not what is measured."""
    from triton.testing import do_bench

    run()  # compiles, which a capture does not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return float(do_bench(graph.replay, warmup=10, rep=60, return_mode="median"))


def _copy_gbps() -> float:
    """A copy done by the processors: a graph would leave `copy_` to the copy engine, which is slower."""
    source, target = _randn(1 << 30), _randn(1 << 30)
    return 2 * source.nbytes / _milliseconds(lambda: torch.neg(source, out=target)) / 1e6


def _matmul_tflops() -> float:
    a, b = _randn(8192, 8192), _randn(8192, 8192)
    return 2 * 8192**3 / _milliseconds(lambda: a @ b) / 1e9


def _check(name: str, run: Callable[[], Any], reference: Callable[[], Any]) -> None:
    """Compare all results; both sides round, so twice the tolerance of one is allowed."""
    with checks.poisoned_memory():
        actual = run()
    expected = reference()
    pairs = zip(actual, expected, strict=True) if isinstance(actual, tuple) else [(actual, expected)]
    for one, other in pairs:
        error = max(checks.vector_error(x, y) for x, y in zip(one.split(1024), other.split(1024), strict=True))
        assert error <= 2 * checks.TOLERANCES[DTYPE], f"{name}: relative error {error:.2e}"


def _randn(*shape: int) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=DTYPE).normal_()


def bench_elementwise(bench: Bench, model: Model, num_tokens: int) -> None:
    """The four kernels beside attention, on the tokens of one step."""
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_size
    x, residual = _randn(num_tokens, model.hidden), _randn(num_tokens, model.hidden)
    weight, gate_up = _randn(model.hidden), _randn(num_tokens, 2 * model.intermediate)
    qkv = _randn(num_tokens, heads + 2 * kv_heads, size)
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
    positions = torch.randint(0, 8192, (num_tokens,), device="cuda")
    angles = torch.rand(8192, size // 2, device="cuda")
    pages = [_randn(num_tokens // 16 + 64, kv_heads, 16, size) for _ in range(4)]
    slots = torch.randperm(pages[0].shape[0] * 16, device="cuda")[:num_tokens]
    norm, turn = (x, residual, weight, 1e-5), (q, k, positions, angles.cos(), angles.sin())
    name = f"{model.name}, {num_tokens} tokens"

    _check("add_rms_norm", lambda: rms_norm.add_rms_norm(*norm), lambda: reference_rms_norm.add_rms_norm(*norm))
    bench.bytes_moved("add_rms_norm", name, 4 * x.nbytes, lambda: rms_norm.add_rms_norm(*norm))
    _check("rotary", lambda: rotary.rotary(*turn), lambda: reference_rotary.rotary(*turn))
    bench.bytes_moved("rotary", name, 2 * (q.nbytes + k.nbytes), lambda: rotary.rotary(*turn))
    _check("silu_mul", lambda: silu_mul.silu_mul(gate_up), lambda: reference_silu_mul.silu_mul(gate_up))
    bench.bytes_moved("silu_mul", name, gate_up.nbytes * 3 // 2, lambda: silu_mul.silu_mul(gate_up))
    pages[2].copy_(pages[0])
    pages[3].copy_(pages[1])
    kv_write.kv_write(k, v, pages[0], pages[1], slots)
    reference_kv_write.kv_write(k, v, pages[2], pages[3], slots)
    assert all(torch.equal(pages[i], pages[i + 2]) for i in (0, 1)), "kv_write: wrong pages"
    bench.bytes_moved("kv_write", name, 4 * k.nbytes, lambda: kv_write.kv_write(k, v, pages[0], pages[1], slots))


def bench_attention(bench: Bench, model: Model, rows: list[tuple[int, int]], shape: str, page_size: int = 16) -> None:
    """Rows of (query tokens, context tokens): decodes are held against the copy, a lone prefill against the product."""
    widths = [-(-context // page_size) for _, context in rows]
    k_pages, v_pages = (_randn(sum(widths), model.num_kv_heads, page_size, model.head_size) for _ in range(2))
    table = torch.zeros(len(rows), max(widths), dtype=torch.int32, device="cuda")
    shuffled = torch.split(torch.randperm(sum(widths), device="cuda", dtype=torch.int32), widths)
    for row, pages in enumerate(shuffled):
        table[row, : len(pages)] = pages
    queries = torch.tensor([num_queries for num_queries, _ in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), queries.cumsum(0)]).int().cuda()
    contexts = torch.tensor([context for _, context in rows], dtype=torch.int32, device="cuda")
    q = _randn(int(queries.sum()), model.num_heads, model.head_size)
    arguments, scale = (q, k_pages, v_pages, table, starts, contexts), model.head_size**-0.5
    longest = int(queries.max())

    def run() -> Tensor:
        return paged_attention.paged_attention(*arguments, scale=scale, max_query_len=longest)

    _check(shape, run, lambda: reference_paged_attention.paged_attention(*arguments, scale=scale))
    name = f"{model.name}, {shape}, pages of {page_size}"
    if min(num_queries for num_queries, _ in rows) > 1:
        seen = sum(n * context - n * (n - 1) // 2 for n, context in rows)
        bench.operations("paged_attention", name, 4 * model.num_heads * model.head_size * seen, run)
    else:
        read = 2 * sum(context for _, context in rows) * model.num_kv_heads * model.head_size * DTYPE.itemsize
        bench.bytes_moved("paged_attention", name, read + 2 * q.nbytes, run)


def main() -> int:
    if not torch.cuda.is_available():
        print("bench/kernels.py: no CUDA device; on a CPU the references serve, see bench/engine.py", file=sys.stderr)
        return 2
    bench = Bench()
    print(f"{torch.cuda.get_device_name()}: copy {bench.copy_gbps:.0f} GB/s, product {bench.matmul_tflops:.0f} TFLOP/s")
    for model in MODELS:
        for num_tokens in (256, 8192):
            bench_elementwise(bench, model, num_tokens)
        for num_rows, context in ((8, 4096), (64, 2048), (256, 512), (256, 2048), (1024, 512), (1024, 2048)):
            bench_attention(bench, model, [(1, context)] * num_rows, f"{num_rows} × {context}")
        bench_attention(bench, model, [(1, 2048)] * 256, "256 × 2048", page_size=64)
        bench_attention(bench, model, [(1, 64 + 8 * row) for row in range(256)], "256 × 64…2104")
        bench_attention(bench, model, [(1, 1024)] * 256 + [(1024, 1024)], "256 × 1024 + prefill 1024")
        for num_tokens in (2048, 8192):
            bench_attention(bench, model, [(num_tokens, num_tokens)], f"prefill {num_tokens}")
    summary = {
        "device": torch.cuda.get_device_name(),
        "copy_gbps": bench.copy_gbps,
        "matmul_tflops": bench.matmul_tflops,
    }
    print(json.dumps({**summary, "results": [asdict(result) for result in bench.results]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
