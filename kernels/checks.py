"""Checks of the kernels against plain formulas in float64, on any device, with any implementation.

The tests run them on the references and on the Triton kernels, interpreted and on a GPU; the benchmark runs them
before it times anything. A check raises AssertionError and otherwise returns nothing. Inputs are random and fresh
memory is filled with NaN while a kernel runs, so that an element that was not written, or was read and should not
have been, shows. A function under test is an argument: what is checked is never looked up here.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .paged_attention import SharedLevel, SharedPrefixes
from .step_inputs import StepInputs

Kernel = Callable[..., Any]

# The largest error of one vector of results relative to that vector's length. A result is rounded once to its dtype
# (by at most 2⁻⁸ of itself in bfloat16, 2⁻¹¹ in float16), and attention weights once before they meet the values:
# both together. float32 is bound by its sums of up to some thousands of terms and by exp of scores near 10, worth a
# few hundred roundings of 2⁻²⁴. float8_e4m3fn rounds by at most 2⁻⁴.
TOLERANCES = {
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float32: 2**-16,
    torch.float8_e4m3fn: 2**-4,
}


def vector_error(actual: Tensor, exact: Tensor) -> float:
    """Return the largest ‖actual − exact‖ / ‖exact‖ over the vectors of the last dimension; NaN stays NaN."""
    exact = exact.double()
    difference = torch.linalg.vector_norm(actual.double() - exact, dim=-1)
    length = torch.linalg.vector_norm(exact, dim=-1)
    # A vector far shorter than its fellows is measured by their length: rounding of its inputs decides it.
    return float((difference / length.clamp(min=1e-3 * float(length.mean()))).max())


def assert_close(actual: Tensor, exact: Tensor, what: str, *, allowance: float = 1.0) -> None:
    """Check shape, dtype and every vector of `actual` against the exact values."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(exact.shape)}"
    error, tolerance = vector_error(actual, exact), allowance * TOLERANCES[actual.dtype]
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.2e}"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty and its kin return with NaN inside the block (torch does so in deterministic mode)."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check_rms_norm(rms_norm: Kernel, num_tokens: int, size: int, dtype: torch.dtype, device: str) -> None:
    """Check the norm on [num_tokens, size], with rows that lie apart in memory."""
    x_TE = torch.randn(num_tokens, size + 16, device=device).to(dtype)[:, :size]
    weight_E = (1 + 0.5 * torch.randn(size, device=device)).to(dtype)
    with poisoned_memory():
        y_TE = rms_norm(x_TE, weight_E, 1e-5)
    assert_close(y_TE, _exact_rms_norm(x_TE, weight_E, 1e-5), "rms_norm")


def _exact_rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    x = x_TE.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight_E.double()


def check_silu_mul(silu_mul: Kernel, num_tokens: int, size: int, dtype: torch.dtype, device: str) -> None:
    """Check the activation on [num_tokens, 2 · size]."""
    gate_up_T2F = 3 * torch.randn(num_tokens, 2 * size, device=device).to(dtype)
    with poisoned_memory():
        y_TF = silu_mul(gate_up_T2F)
    gate, up = gate_up_T2F.double()[:, 0::2], gate_up_T2F.double()[:, 1::2]
    assert_close(y_TF, gate / (1 + torch.exp(-gate)) * up, "silu_mul")


def check_gated_product(
    gated_product: Kernel, num_tokens: int, num_features: int, num_inputs: int, dtype: torch.dtype, device: str
) -> None:
    """Check the layer on [num_tokens, num_inputs]; a row's sums are of size one, and may be rounded once more."""
    x_TK = torch.randn(num_tokens, num_inputs, device=device).to(dtype)
    weight_2FK = (torch.randn(2 * num_features, num_inputs, device=device) * num_inputs**-0.5).to(dtype)
    with poisoned_memory():
        y_TF = gated_product(x_TK, weight_2FK)
    gate, up = (x_TK.double() @ weight_2FK[part::2].double().T for part in range(2))
    assert_close(y_TF, gate / (1 + torch.exp(-gate)) * up, "gated_product", allowance=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class RotateCase:
    """A call of rotate_and_write: the model's shape, whether heads are normed, and the dtype of the pages."""

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    num_pairs: int
    page_size: int = 16
    normed: bool = False
    pages_dtype: torch.dtype | None = None


def check_rotate_and_write(rotate_and_write: Kernel, case: RotateCase, dtype: torch.dtype, device: str) -> None:
    """Check queries, keys and values, that slots below zero are skipped, and that nothing else in the pages changes.

    Rotation is checked as complex multiplication. Rows of the projection lie apart in memory; the first value is far
    beyond the range of float8_e4m3fn, where pages of that dtype saturate.
    """
    num_tokens, head_size, pages_dtype = case.num_tokens, case.head_size, case.pages_dtype or dtype
    num_parts = [case.num_heads, case.num_kv_heads, case.num_kv_heads]
    width = sum(num_parts) * head_size
    qkv_TF = torch.randn(num_tokens, width + 16, device=device).to(dtype)[:, :width]
    qkv_TF[:, -head_size] = 5000.0
    frequencies_R = 10000.0 ** -(torch.arange(case.num_pairs, device=device) / case.num_pairs)
    angles_MR = torch.arange(4096, device=device).unsqueeze(1) * frequencies_R
    cos_MR, sin_MR = angles_MR.cos(), angles_MR.sin()
    positions_T = torch.randint(0, 4096, (num_tokens,), dtype=torch.int32, device=device)
    norms = [(1 + 0.5 * torch.randn(head_size, device=device)).to(dtype) for _ in "qk"] if case.normed else [None, None]
    shape = (num_tokens // case.page_size + 3, case.num_kv_heads, case.page_size, head_size)
    before = [torch.randn(shape, device=device).to(pages_dtype) for _ in "kv"]
    pages = [x.clone() for x in before]
    slots_T = torch.randperm(shape[0] * case.page_size, dtype=torch.int32, device=device)[:num_tokens]
    slots_T[4::5] = -1
    with poisoned_memory():
        q_THD = rotate_and_write(
            *(qkv_TF, positions_T, slots_T, cos_MR, sin_MR, *pages),
            num_heads=case.num_heads,
            q_norm_D=norms[0],
            k_norm_D=norms[1],
            eps=1e-5,
        )
    assert q_THD.is_contiguous()
    parts = torch.split(qkv_TF.double().view(num_tokens, -1, head_size), num_parts, dim=1)
    turn_T1R = torch.complex(cos_MR.double(), sin_MR.double())[positions_T].unsqueeze(1)
    exact = [
        _exact_rotation(x if norm is None else _exact_rms_norm(x, norm, 1e-5), turn_T1R)
        for x, norm in zip(parts, norms, strict=False)
    ]
    assert_close(q_THD, exact[0], f"queries of {case}")
    kept_T, largest = slots_T >= 0, torch.finfo(pages_dtype).max
    for name, x, old, new in zip(("keys", "values"), (exact[1], parts[2]), before, pages, strict=True):
        old_slots, new_slots = (y.float().transpose(1, 2).flatten(0, 1) for y in (old, new))
        written = new_slots[slots_T[kept_T]].to(pages_dtype)
        assert_close(written, x[kept_T].clamp(-largest, largest), f"{name} of {case}")
        new_slots[slots_T[kept_T]] = old_slots[slots_T[kept_T]]
        assert torch.equal(new_slots, old_slots), f"{name} of {case}: written outside the slots"


def _exact_rotation(x_THD: Tensor, turn_T1R: Tensor) -> Tensor:
    num_pairs = turn_T1R.shape[-1]
    first, second, rest = torch.split(x_THD, [num_pairs, num_pairs, x_THD.shape[-1] - 2 * num_pairs], dim=-1)
    turned = torch.complex(first, second) * turn_T1R
    return torch.cat([turned.real, turned.imag, rest], dim=-1)


def check_step_inputs(step_inputs: Kernel, lengths: list[int], page_size: int, padding: int, device: str) -> None:
    """Check a step of rows with so many tokens each, in a captured step that is larger by `padding`."""
    num_rows, num_lines = len(lengths), len(lengths) + 3
    starts = [(7 * row) % 50 for row in range(num_rows)]

    def random_ints(*shape: int) -> Tensor:
        return torch.randint(0, 1000, shape, dtype=torch.int32, device=device)

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rows = torch.randperm(num_lines, device=device)[:num_rows].int()
    table = random_ints(num_lines, 1 + (50 + max(lengths)) // page_size)
    drawn, given = random_ints(num_lines), random_ints(sum(lengths))
    query_starts = ints([0, *torch.tensor(lengths).cumsum(0).tolist()])
    given[query_starts[1:].long() - 1] = -1
    out = StepInputs.empty(sum(lengths) + padding, num_rows + padding, torch.device(device))
    for field in fields(out):
        getattr(out, field.name).fill_(-77)
    step_inputs(rows, ints(starts), query_starts, given, table, drawn, page_size, out)
    tokens: list[tuple[int, int, int]] = []
    for row, start, length in zip(rows.tolist(), starts, lengths, strict=True):
        for position in range(start, start + length):
            token = int(given[len(tokens)])
            page = int(table[row, position // page_size])
            token_id = token if token >= 0 else int(drawn[row])
            tokens.append((token_id, position, page * page_size + position % page_size))
    expected = (*zip(*tokens, strict=True),)
    none, ends = [0] * padding, [start + length for start, length in zip(starts, lengths, strict=True)]
    for actual, values in (
        (out.token_ids_P, [*expected[0], *none]),
        (out.positions_P, [*expected[1], *none]),
        (out.slots_P, [*expected[2], *[-1] * padding]),
        (out.rows_Q, [*rows.tolist(), *[num_lines - 1] * padding]),
        (out.query_starts_Q1, [*query_starts.tolist(), *[sum(lengths)] * padding]),
        (out.context_lens_Q, [*ends, *none]),
        (out.last_Q, [*(query_starts[1:] - 1).tolist(), *none]),
    ):
        assert actual.tolist() == values


def check_prefills(find: Kernel, lengths: list[int], device: str) -> None:
    """Check which of the rows with so many queries are found to have more than one."""
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    with poisoned_memory():
        rows_S, starts_S1, count = find(starts)
    assert all(x.dtype == torch.int32 for x in (rows_S, starts_S1, count))
    rows = [row for row, length in enumerate(lengths) if length > 1]
    assert count.tolist() == [len(rows)]
    assert rows_S[: len(rows)].tolist() == rows
    assert starts_S1[: len(rows) + 1].tolist() == [sum(lengths[row] for row in rows[:n]) for n in range(len(rows) + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """A call of paged_attention: the model's shape, and each row's (query tokens, context tokens)."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    rows: tuple[tuple[int, int], ...]
    page_size: int = 16
    window: int | None = None
    # Of the pages; None: the queries'. Attention is then checked over the values as that dtype holds them, with the
    # tolerance of the queries' dtype: the way back is exact.
    pages_dtype: torch.dtype | None = None
    # For each level of shared prefixes its groups: first row, end row, first key, end key.
    levels: tuple[tuple[tuple[int, int, int, int], ...], ...] = ()
    # The page table has other lines between those of the rows, in another order; `rows_S` says which is whose.
    scattered: bool = False
    # Pages in the pool before the first one in use: enough of them and offsets no longer fit 32 bits.
    pages_before: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionInputs:
    """The tensors of a case, and each row's keys and values once more, not paged: [context, G, D]."""

    arguments: tuple[Tensor, ...]
    options: dict[str, Any]
    keys: list[Tensor]
    values: list[Tensor]


def attention_inputs(case: AttentionCase, dtype: torch.dtype, device: str) -> AttentionInputs:
    """Draw a case. What no query may see is poison: NaN in unused slots, page numbers far outside the pool."""
    page_size, shape = case.page_size, (case.num_kv_heads, case.head_size)
    queries, contexts = ([row[i] for row in case.rows] for i in (0, 1))
    widths = [-(-context // page_size) for context in contexts]
    num_pages = case.pages_before + sum(widths) + 2
    k_pages = torch.full((num_pages, shape[0], page_size, shape[1]), float("nan"), dtype=dtype, device=device)
    v_pages = k_pages.clone()
    lines = list(range(len(widths)))
    if case.scattered:
        lines = [3 * line + 1 for line in torch.randperm(len(widths)).tolist()]
    table_RN = torch.full((max(lines) + 2, max(widths) + 3), 2**30, dtype=torch.int32, device=device)
    shuffled = torch.split(case.pages_before + torch.randperm(sum(widths), device=device), widths)
    inputs = AttentionInputs(arguments=(), options={}, keys=[], values=[])
    for row, (pages_N, context, num_queries) in enumerate(zip(shuffled, contexts, queries, strict=True)):
        tokens = torch.arange(context, device=device)
        for pages, store in ((k_pages, inputs.keys), (v_pages, inputs.values)):
            x = torch.randn(context, *shape, device=device).to(case.pages_dtype or dtype).to(dtype)
            pages[pages_N[tokens // page_size], :, tokens % page_size] = x
            store.append(x)
        first = 0 if case.window is None else max(0, context - max(1, num_queries) - case.window + 1) // page_size
        table_RN[lines[row], first : len(pages_N)] = pages_N[first:].int()
        for first_row, end_row, first_key, end_key in (group for groups in case.levels for group in groups):
            if first_row < row < end_row:
                span = slice(first_key // page_size, end_key // page_size)
                table_RN[lines[row], span] = table_RN[lines[first_row], span]
                for store in (inputs.keys, inputs.values):
                    store[row][first_key:end_key] = store[first_row][first_key:end_key]
    width = (case.num_heads + 2 * case.num_kv_heads) * case.head_size
    fused = torch.randn(sum(queries), width, device=device).to(dtype)
    q_THD = fused[:, : case.num_heads * case.head_size].view(-1, case.num_heads, case.head_size)
    starts_S1 = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32, device=device)
    lens_S = torch.tensor(contexts, dtype=torch.int32, device=device)
    k_pages, v_pages = (x.to(case.pages_dtype or dtype) for x in (k_pages, v_pages))
    arguments = (q_THD, k_pages, v_pages, table_RN if case.scattered else table_RN[: len(lines)], starts_S1, lens_S)
    options: dict[str, Any] = {"shared": _shared_prefixes(case, device)} if case.levels else {}
    if case.scattered:
        options["rows_S"] = torch.tensor(lines, dtype=torch.int32, device=device)
    return AttentionInputs(arguments=arguments, options=options, keys=inputs.keys, values=inputs.values)


def _shared_prefixes(case: AttentionCase, device: str) -> SharedPrefixes:
    """The case's levels, with rows that share nothing in groups without keys, and groups without rows at the end."""
    own_first_keys, levels = [0] * len(case.rows), []
    for groups in case.levels:
        columns: dict[str, list[int]] = {"group_starts": [0], "first_keys": [], "end_keys": []}
        for first_row, end_row, first_key, end_key in groups:
            columns["group_starts"] += [first_row, end_row]
            columns["first_keys"] += [0, first_key]
            columns["end_keys"] += [0, end_key]
            own_first_keys[first_row:end_row] = [end_key] * (end_row - first_row)
        unused = {"group_starts": columns["group_starts"][-1], "first_keys": 0, "end_keys": 2**30}
        tensors = {
            name: torch.tensor(values + [unused[name]] * 3, dtype=torch.int32, device=device)
            for name, values in columns.items()
        }
        levels.append(SharedLevel(**tensors))
    own = torch.tensor(own_first_keys, dtype=torch.int32, device=device)
    return SharedPrefixes(levels=tuple(levels), own_first_keys=own)


def check_attention(attend: Kernel, case: AttentionCase, dtype: torch.dtype, device: str, **hints: int) -> None:
    """Check every row against dense attention with a mask in float64."""
    inputs = attention_inputs(case, dtype, device)
    scale = case.head_size**-0.5
    with poisoned_memory():
        out_THD = attend(*inputs.arguments, scale=scale, window=case.window, **inputs.options, **hints)
    q_THD, starts = inputs.arguments[0], inputs.arguments[4].tolist()
    for row, (k, v) in enumerate(zip(inputs.keys, inputs.values, strict=True)):
        start, end = starts[row], starts[row + 1]
        if end > start:
            exact = dense_attention(q_THD[start:end], k, v, scale, case.window)
            assert_close(out_THD[start:end], exact, f"row {row} of {case}")


def dense_attention(q_THD: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention of one row in float64, keys and values [context, G, D], the queries last in the context."""
    repeats = q_THD.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = torch.einsum("thd,khd->htk", q_THD.double(), keys) * scale
    distance = torch.arange(len(k) - len(q_THD), len(k), device=k.device)[:, None] - torch.arange(
        len(k), device=k.device
    )
    hidden = (distance < 0) | (distance >= (len(k) if window is None else window))
    return torch.einsum("htk,khd->thd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values)
