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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pressrun.bench.ceilings import copy_gbps, graph_milliseconds, matmul_tflops
from pressrun.kernels import checks, gated_product, paged_attention, rms_norm, rotate_and_write, sample, silu_mul
from pressrun.kernels.paged_attention import SharedLevel, SharedPrefixes
from pressrun.kernels.penalties import PenaltyRows, marks_of
from pressrun.kernels.reference import gated_product as reference_gated_product
from pressrun.kernels.reference import paged_attention as reference_paged_attention
from pressrun.kernels.reference import rms_norm as reference_rms_norm
from pressrun.kernels.reference import rotate_and_write as reference_rotate_and_write
from pressrun.kernels.reference import sample as reference_sample
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
# Of which only attention is timed.
WIDE = Model(name="Llama-3.1-70B", num_heads=64, num_kv_heads=8, head_size=128, hidden=8192, intermediate=28672)
DECODES = ((8, 4096), (64, 2048), (256, 512), (256, 2048), (256, 4096), (1024, 512), (1024, 2048), (2048, 512))
PREFILLS = (2048, 4096, 8192)


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
        self.copy_gbps = copy_gbps()
        self.matmul_tflops = matmul_tflops()

    def bytes_moved(self, kernel: str, shape: str, num_bytes: int, run: Callable[[], Any]) -> None:
        self._report(kernel, shape, run, num_bytes / 1e6, "GB/s", self.copy_gbps)

    def operations(self, kernel: str, shape: str, num_operations: int, run: Callable[[], Any]) -> None:
        self._report(kernel, shape, run, num_operations / 1e9, "TFLOP/s", self.matmul_tflops)

    def _report(self, kernel: str, shape: str, run: Callable[[], Any], work: float, unit: str, ceiling: float) -> None:
        milliseconds = graph_milliseconds(run)
        rate = work / milliseconds
        self.results.append(Result(kernel, shape, milliseconds * 1e3, rate, unit, rate / ceiling))
        print(f"{kernel:16} {shape:44} {milliseconds * 1e3:10.1f} µs {rate:8.0f} {unit:8} {rate / ceiling:6.1%}")


def _check(name: str, run: Callable[[], Any], reference: Callable[[], Any], dtype: torch.dtype = DTYPE) -> None:
    """Compare all results; both sides round to the dtype, so twice its tolerance is allowed."""
    with checks.poisoned_memory():
        actual = run()
    expected = reference()
    pairs = zip(actual, expected, strict=True) if isinstance(actual, tuple) else [(actual, expected)]
    for one, other in pairs:
        error = max(checks.vector_error(x, y) for x, y in zip(one.split(1024), other.split(1024), strict=True))
        assert error <= 2 * checks.TOLERANCES[dtype], f"{name}: relative error {error:.2e}"


def _randn(*shape: int) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=DTYPE).normal_()


def bench_elementwise(bench: Bench, model: Model, num_tokens: int) -> None:
    """The kernels beside attention, on the tokens of one step."""
    x, weight = _randn(num_tokens, model.hidden), _randn(model.hidden)
    gate_up = _randn(num_tokens, 2 * model.intermediate)
    name = f"{model.name}, {num_tokens} tokens"

    norm = (x, weight, 1e-5)
    _check("rms_norm", lambda: rms_norm.rms_norm(*norm), lambda: reference_rms_norm.rms_norm(*norm))
    bench.bytes_moved("rms_norm", name, 2 * x.nbytes, lambda: rms_norm.rms_norm(*norm))
    _check("silu_mul", lambda: silu_mul.silu_mul(gate_up), lambda: reference_silu_mul.silu_mul(gate_up))
    bench.bytes_moved("silu_mul", name, gate_up.nbytes * 3 // 2, lambda: silu_mul.silu_mul(gate_up))
    bench_gated_product(bench, model, num_tokens)
    for normed, pages_dtype in ((False, DTYPE), (True, DTYPE), (True, torch.float8_e4m3fn)):
        bench_rotate_and_write(bench, model, num_tokens, normed, pages_dtype)


def bench_gated_product(bench: Bench, model: Model, num_tokens: int) -> None:
    """A feed-forward layer's first products with its activation, and beside it cuBLAS with the activation apart."""
    x = _randn(num_tokens, model.hidden)
    weight = _randn(2 * model.intermediate, model.hidden).mul_(model.hidden**-0.5)
    name = f"{model.name}, {num_tokens} tokens"
    num_operations = 2 * num_tokens * weight.numel()
    _check(
        "gated_product",
        lambda: gated_product.gated_product(x, weight),
        lambda: reference_gated_product.gated_product(x, weight),
    )
    bench.operations("gated_product", name, num_operations, lambda: gated_product.gated_product(x, weight))
    bench.operations("in two", name, num_operations, lambda: silu_mul.silu_mul(torch.nn.functional.linear(x, weight)))


def bench_rotate_and_write(bench: Bench, model: Model, num_tokens: int, normed: bool, pages_dtype: torch.dtype) -> None:
    """The tokens of one step, all kept; the projection is read once, queries, keys and values are written once."""
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_size
    qkv = _randn(num_tokens, (heads + 2 * kv_heads) * size)
    angles = torch.rand(8192, size // 2, device="cuda")
    positions = torch.randint(0, 8192, (num_tokens,), device="cuda", dtype=torch.int32)
    pages = [_randn(num_tokens // 16 + 64, kv_heads, 16, size).to(pages_dtype) for _ in range(4)]
    pages[2].copy_(pages[0])
    pages[3].copy_(pages[1])
    slots = torch.randperm(pages[0].shape[0] * 16, device="cuda", dtype=torch.int32)[:num_tokens]
    arguments = (qkv, positions, slots, angles.cos(), angles.sin())
    norms = {"q_norm_D": _randn(size), "k_norm_D": _randn(size)} if normed else {}
    ours, theirs = rotate_and_write.rotate_and_write, reference_rotate_and_write.rotate_and_write

    def run() -> tuple[Tensor, ...]:
        q = ours(*arguments, *pages[:2], num_heads=heads, eps=1e-6, **norms)
        return q, pages[0].to(DTYPE), pages[1].to(DTYPE)

    def reference() -> tuple[Tensor, ...]:
        q = theirs(*arguments, *pages[2:], num_heads=heads, eps=1e-6, **norms)
        return q, pages[2].to(DTYPE), pages[3].to(DTYPE)

    _check("rotate_and_write", run, reference, pages_dtype)
    written = num_tokens * size * (heads * DTYPE.itemsize + 2 * kv_heads * pages_dtype.itemsize)
    kind = ", normed" * normed + ", float8 pages" * (pages_dtype != DTYPE)
    bench.bytes_moved(
        "rotate_and_write",
        f"{model.name}, {num_tokens} tokens{kind}",
        qkv.nbytes + written,
        lambda: ours(*arguments, *pages[:2], num_heads=heads, eps=1e-6, **norms),
    )


def bench_sample(bench: Bench, num_rows: int, vocab_size: int) -> None:
    """Drawing one token of each row; bytes are those of one pass over the logits, however many there are.

    Probabilities fall with the rank's power of -1.4, as those of words in a text do, with tokens in any order. Each
    kind is also drawn with penalties, by repetition alone and by all three.
    """
    ranks = torch.stack([torch.randperm(vocab_size, device="cuda") for _ in range(num_rows)]).float() + 1
    logits = (20 - 1.4 * ranks.log()).to(DTYPE) + 0.3 * _randn(num_rows, vocab_size)
    rows = torch.arange(num_rows, device="cuda")
    for kind, temperature, top_k, top_p in (
        ("greedy", 0.0, 0, 1.0),
        ("unfiltered", 1.0, 0, 1.0),
        ("top_k 50", 1.0, 50, 1.0),
        ("top_p 0.95", 0.7, 0, 0.95),
    ):
        params = sample.SamplingRows(
            temperature_R=torch.full((num_rows,), temperature, device="cuda"),
            top_p_R=torch.full((num_rows,), top_p, device="cuda"),
            min_p_R=torch.zeros(num_rows, device="cuda"),
            top_k_R=torch.full((num_rows,), top_k, dtype=torch.int32, device="cuda"),
            seed_R2=torch.randint(0, 2**31 - 1, (num_rows, 2), dtype=torch.int32, device="cuda"),
        )
        for name, strengths in (
            (kind, None),
            (f"{kind}, penalised", (0.0, 0.0, 1.1)),
            (f"{kind}, penalised thrice", (0.4, 0.2, 1.1)),
        ):
            # Each notes what it draws, so the reference has its own.
            penalties, its_own = (
                None if strengths is None else _penalties(num_rows, vocab_size, strengths) for _ in range(2)
            )
            expected = reference_sample.sample(logits, rows, rows, params, penalties=its_own)
            run = partial(sample.sample, logits, rows, rows, params, penalties=penalties)
            same = float((run() == expected).float().mean())
            # Only rounding sets the two apart, where two tokens or a limit and a token are as good as equal.
            assert same > 0.98, f"sample, {name}: {1 - same:.1%} of the tokens are others"
            bench.bytes_moved("sample", f"{num_rows} × {vocab_size}, {name}", logits.nbytes, run)


def _penalties(num_rows: int, vocab_size: int, strengths: tuple[float, float, float]) -> PenaltyRows:
    """Of rows with prompts of 500 tokens that have generated 250, always the same."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, vocab_size, (num_rows, 750), dtype=np.int32)
    marks = np.stack([marks_of(row[:500], row[500:], vocab_size) for row in tokens])
    generated = torch.from_numpy(tokens[:, 500:].astype(np.int64)).cuda()
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device="cuda")
    return PenaltyRows(
        strengths_R3=torch.tensor(strengths, device="cuda").repeat(num_rows, 1),
        marks_RM=torch.from_numpy(marks).cuda(),
        slots_R=torch.arange(num_rows, dtype=torch.int32, device="cuda"),
        counts_CV=counts.scatter_add_(1, generated, torch.ones_like(generated, dtype=torch.int32)),
    )


def bench_attention(
    bench: Bench,
    model: Model,
    rows: list[tuple[int, int]],
    shape: str,
    *,
    page_size: int = 64,
    prefix: int = 0,
    pages_dtype: torch.dtype = DTYPE,
) -> None:
    """Rows of (query tokens, context tokens): decodes are held against the copy, prefills against the product.

    All rows share a `prefix` of that many tokens, which counts as read once.
    """
    widths = [-(-context // page_size) for _, context in rows]
    k_pages, v_pages = (
        _randn(sum(widths), model.num_kv_heads, page_size, model.head_size).to(pages_dtype) for _ in range(2)
    )
    table = torch.zeros(len(rows), max(widths), dtype=torch.int32, device="cuda")
    shuffled = torch.split(torch.randperm(sum(widths), device="cuda", dtype=torch.int32), widths)
    for row, pages in enumerate(shuffled):
        table[row, : len(pages)] = pages
    table[:, : prefix // page_size] = table[0, : prefix // page_size]
    queries = torch.tensor([num_queries for num_queries, _ in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), queries.cumsum(0)]).int().cuda()
    contexts = torch.tensor([context for _, context in rows], dtype=torch.int32, device="cuda")
    q = _randn(int(queries.sum()), model.num_heads, model.head_size)
    arguments, scale = (q, k_pages, v_pages, table, starts, contexts), model.head_size**-0.5
    longest, shared = int(queries.max()), _shared_prefix(len(rows), prefix) if prefix else None

    def run() -> Tensor:
        return paged_attention.paged_attention(*arguments, scale=scale, max_query_len=longest, shared=shared)

    _check(shape, run, lambda: reference_paged_attention.paged_attention(*arguments, scale=scale))
    name = f"{model.name}, {shape}, {'8-bit ' if pages_dtype.itemsize == 1 else ''}pages of {page_size}"
    if min(num_queries for num_queries, _ in rows) > 1:
        seen = sum(n * context - n * (n - 1) // 2 for n, context in rows)
        bench.operations("paged_attention", name, 4 * model.num_heads * model.head_size * seen, run)
    else:
        num_keys = sum(context - prefix for _, context in rows) + prefix
        read = 2 * num_keys * model.num_kv_heads * model.head_size * pages_dtype.itemsize
        bench.bytes_moved("paged_attention", name, read + 2 * q.nbytes, run)


def _shared_prefix(num_rows: int, prefix: int) -> SharedPrefixes:
    """One group of all rows."""
    starts, first_keys, end_keys = (torch.tensor(x, dtype=torch.int32).cuda() for x in ([0, num_rows], [0], [prefix]))
    level = SharedLevel(group_starts=starts, first_keys=first_keys, end_keys=end_keys)
    return SharedPrefixes(levels=(level,), own_first_keys=end_keys.repeat(num_rows))


def main() -> int:
    if not torch.cuda.is_available():
        print("bench/kernels.py: no CUDA device; on a CPU the references serve, see bench/engine.py", file=sys.stderr)
        return 2
    bench = Bench()
    print(f"{torch.cuda.get_device_name()}: copy {bench.copy_gbps:.0f} GB/s, product {bench.matmul_tflops:.0f} TFLOP/s")
    for model in MODELS:
        for num_tokens in (256, 1024, 8192):
            bench_elementwise(bench, model, num_tokens)
        for page_size in (16, 32):
            bench_attention(bench, model, [(1, 2048)] * 256, "256 × 2048", page_size=page_size)
            bench_attention(bench, model, [(2048, 2048)] * 8, "8 prefills of 2048", page_size=page_size)
        bench_attention(bench, model, [(1, 1024)] * 1024, "1024 × 1024", pages_dtype=torch.float8_e4m3fn)
        for num_rows in (256, 1024):
            shape = f"{num_rows} × (1024 shared + 192)"
            bench_attention(bench, model, [(1, 1216)] * num_rows, shape, prefix=1024)
        bench_attention(bench, model, [(1, 64 + 8 * row) for row in range(256)], "256 × 64…2104")
        bench_attention(bench, model, [(1, 1024)] * 256 + [(1024, 1024)], "256 × 1024 + prefill 1024")
        bench_attention(bench, model, [(2048, 2048)] * 8, "8 prefills of 2048")
    for model in (*MODELS, WIDE):
        for num_rows, context in DECODES:
            bench_attention(bench, model, [(1, context)] * num_rows, f"{num_rows} × {context}")
        for num_tokens in PREFILLS:
            bench_attention(bench, model, [(num_tokens, num_tokens)], f"prefill {num_tokens}")
    for num_rows in (64, 256, 1024):
        bench_sample(bench, num_rows, 128256)
    summary = {
        "device": torch.cuda.get_device_name(),
        "copy_gbps": bench.copy_gbps,
        "matmul_tflops": bench.matmul_tflops,
    }
    print(json.dumps({**summary, "results": [asdict(result) for result in bench.results]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
