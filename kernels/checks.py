"""Checks of the kernels against plain formulas in float64, on any device, with any implementation.

The tests run them on the references and on the Triton kernels, interpreted and on a GPU; the benchmark runs them
before it times anything. A check raises AssertionError and otherwise returns nothing. Inputs are random and fresh
memory is filled with NaN while a kernel runs, so that an element that was not written, or was read and should not
have been, shows. A function under test is an argument: what is checked is never looked up here.

Legend: T tokens, S rows (sequences), H query heads, G kv heads, D head size, P pages, B tokens a page.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]

# The largest error of one vector of results relative to that vector's length. A result is rounded once to its dtype
# (by at most 2⁻⁸ of itself in bfloat16, 2⁻¹¹ in float16), and attention weights once before they meet the values:
# both together. float32 is bound by its sums of up to some thousands of terms and by exp of scores near 10, worth a
# few hundred roundings of 2⁻²⁴.
TOLERANCES = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-16}


def vector_error(actual: Tensor, exact: Tensor) -> float:
    """Return the largest ‖actual − exact‖ / ‖exact‖ over the vectors of the last dimension; NaN stays NaN."""
    exact = exact.double()
    difference = torch.linalg.vector_norm(actual.double() - exact, dim=-1)
    length = torch.linalg.vector_norm(exact, dim=-1)
    # A vector far shorter than its fellows is measured by their length: rounding of its inputs decides it.
    return float((difference / length.clamp(min=1e-3 * float(length.mean()))).max())


def assert_close(actual: Tensor, exact: Tensor, what: str) -> None:
    """Check shape, dtype and every vector of `actual` against the exact values."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(exact.shape)}"
    error, tolerance = vector_error(actual, exact), TOLERANCES[actual.dtype]
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


def check_rms_norm(
    rms_norm: Kernel, add_rms_norm: Kernel, num_tokens: int, size: int, dtype: torch.dtype, device: str
) -> None:
    """Check both norms on [num_tokens, size], one input with rows that lie apart in memory."""
    x_TE = torch.randn(num_tokens, size + 16, device=device).to(dtype)[:, :size]
    residual_TE = 4 * torch.randn(num_tokens, size, device=device).to(dtype)
    weight_E = (1 + 0.5 * torch.randn(size, device=device)).to(dtype)
    with poisoned_memory():
        y_TE = rms_norm(x_TE, weight_E, 1e-5)
        added_TE, sum_TE = add_rms_norm(x_TE, residual_TE, weight_E, 1e-5)
    assert_close(y_TE, _exact_rms_norm(x_TE, weight_E, 1e-5), "rms_norm")
    assert torch.equal(sum_TE, x_TE + residual_TE), "add_rms_norm: the sum is not x + residual rounded once"
    assert_close(added_TE, _exact_rms_norm(sum_TE, weight_E, 1e-5), "add_rms_norm")


def _exact_rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    x = x_TE.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight_E.double()


def check_silu_mul(silu_mul: Kernel, num_tokens: int, size: int, dtype: torch.dtype, device: str) -> None:
    """Check the activation on [num_tokens, 2 · size]."""
    gate_up_T2F = 3 * torch.randn(num_tokens, 2 * size, device=device).to(dtype)
    with poisoned_memory():
        y_TF = silu_mul(gate_up_T2F)
    gate, up = gate_up_T2F.double().chunk(2, dim=-1)
    assert_close(y_TF, gate / (1 + torch.exp(-gate)) * up, "silu_mul")


def check_rotary(
    rotary: Kernel,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    num_pairs: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Check rotation as complex multiplication; q and k are slices of one tensor, as a fused projection leaves them."""
    fused = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_size, device=device).to(dtype)
    q_THD, k_TGD, _ = (
        part.view(num_tokens, -1, head_size)
        for part in torch.split(fused, [n * head_size for n in (num_heads, num_kv_heads, num_kv_heads)], dim=1)
    )
    frequencies_R = 10000.0 ** -(torch.arange(num_pairs, device=device) / num_pairs)
    angles_MR = torch.arange(4096, device=device).unsqueeze(1) * frequencies_R
    cos_MR, sin_MR = angles_MR.cos(), angles_MR.sin()
    positions_T = torch.randint(0, 4096, (num_tokens,), device=device)
    with poisoned_memory():
        results = rotary(q_THD, k_TGD, positions_T, cos_MR, sin_MR)
    turn_T1R = torch.complex(cos_MR.double(), sin_MR.double())[positions_T].unsqueeze(1)
    for name, x, result in zip("qk", (q_THD, k_TGD), results, strict=True):
        first, second, rest = torch.split(x.double(), [num_pairs, num_pairs, head_size - 2 * num_pairs], dim=-1)
        turned = torch.complex(first, second) * turn_T1R
        assert_close(result, torch.cat([turned.real, turned.imag, rest], dim=-1), f"rotary of {name}")
        assert torch.equal(result[..., 2 * num_pairs :], x[..., 2 * num_pairs :]), "rotary changed what passes"


def check_kv_write(
    kv_write: Kernel,
    num_tokens: int,
    num_kv_heads: int,
    head_size: int,
    page_size: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Check that tokens land in their slots, that slots below zero are skipped, and that nothing else changes."""
    num_pages = num_tokens // page_size + 3
    fused = torch.randn(num_tokens, 3, num_kv_heads, head_size, device=device).to(dtype)
    k_TGD, v_TGD = fused[:, 1], fused[:, 2]
    k_pages = torch.randn(num_pages, num_kv_heads, page_size, head_size, device=device).to(dtype)
    v_pages = torch.randn_like(k_pages)
    slots_T = torch.randperm(num_pages * page_size, device=device)[:num_tokens]
    slots_T[::5] = -1
    expected = [(k_TGD, k_pages.clone()), (v_TGD, v_pages.clone())]
    kv_write(k_TGD, v_TGD, k_pages, v_pages, slots_T)
    for (x_TGD, pages), written in zip(expected, (k_pages, v_pages), strict=True):
        by_slot = pages.permute(0, 2, 1, 3).flatten(0, 1)
        for token, slot in enumerate(slots_T.tolist()):
            if slot >= 0:
                by_slot[slot] = x_TGD[token]
        assert torch.equal(written.permute(0, 2, 1, 3).flatten(0, 1), by_slot), "kv_write: wrong pages"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """A call of paged_attention: the model's shape, and each row's (query tokens, context tokens)."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    rows: tuple[tuple[int, int], ...]
    page_size: int = 16
    window: int | None = None
    # Pages in the pool before the first one in use: enough of them and offsets no longer fit 32 bits.
    pages_before: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionInputs:
    """The tensors of a case, and each row's keys and values once more, not paged: [context, G, D]."""

    arguments: tuple[Tensor, ...]
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
    table_SN = torch.full((len(widths), max(widths) + 3), 2**30, dtype=torch.int32, device=device)
    shuffled = torch.split(case.pages_before + torch.randperm(sum(widths), device=device), widths)
    inputs = AttentionInputs(arguments=(), keys=[], values=[])
    for row, (pages_N, context, num_queries) in enumerate(zip(shuffled, contexts, queries, strict=True)):
        tokens = torch.arange(context, device=device)
        for pages, store in ((k_pages, inputs.keys), (v_pages, inputs.values)):
            x = torch.randn(context, *shape, device=device).to(dtype)
            pages[pages_N[tokens // page_size], :, tokens % page_size] = x
            store.append(x)
        first = 0 if case.window is None else max(0, context - max(1, num_queries) - case.window + 1) // page_size
        table_SN[row, first : len(pages_N)] = pages_N[first:].int()
    width = (case.num_heads + 2 * case.num_kv_heads) * case.head_size
    fused = torch.randn(sum(queries), width, device=device).to(dtype)
    q_THD = fused[:, : case.num_heads * case.head_size].view(-1, case.num_heads, case.head_size)
    starts_S1 = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32, device=device)
    lens_S = torch.tensor(contexts, dtype=torch.int32, device=device)
    arguments = (q_THD, k_pages, v_pages, table_SN, starts_S1, lens_S)
    return AttentionInputs(arguments=arguments, keys=inputs.keys, values=inputs.values)


def check_attention(attend: Kernel, case: AttentionCase, dtype: torch.dtype, device: str, **hints: int) -> None:
    """Check every row against dense attention with a mask in float64."""
    inputs = attention_inputs(case, dtype, device)
    scale = case.head_size**-0.5
    with poisoned_memory():
        out_THD = attend(*inputs.arguments, scale=scale, window=case.window, **hints)
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
