# mypy: ignore-errors
"""The Triton kernel behind `kernels/sample.py`: one program draws from one line of logits.

Filters are thresholds, found by search and not by sorting: logits become integers of the same order ("keys"), and each
pass over the line settles two bits of the smallest key that passes, by how many tokens (top_k), or how much probability
(top_p), lie above three candidates for it. So a filter costs 8 passes for 16-bit logits and 16 for float32, from the
second on out of the cache. A greedy draw costs one pass, and so does one without filters.
Where a line has allowed tokens, their bits are read beside the logits: an eighth of a byte to two or four.
V vocabulary, S draws, L lines of logits, R rows, W words of 32 bits; `_V` marks what a program holds of it at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sample import SamplingRows
from .triton_noise import draw_keys, gumbel_of, words_of

BLOCK_V = 8192
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _ordered_keys(x):
    """int32 of the order of the floats x, equal where those are equal: the magnitude's bits with the number's sign."""
    width: tl.constexpr = x.dtype.primitive_bitwidth
    bits = x.to(tl.int16 if width == 16 else tl.int32, bitcast=True).to(tl.int32)
    return tl.where(bits >= 0, bits, -(bits & ((1 << (width - 1)) - 1)))


@triton.jit
def _logits(x_ptr, allowed_ptr, num_words, ids_V, VOCAB_SIZE: tl.constexpr):
    """-inf beyond the vocabulary and for what is not allowed.

    That has no probability, is never drawn, and lies above no key that could pass.
    """
    counts_V = ids_V < VOCAB_SIZE
    if allowed_ptr is not None:
        words_V = tl.load(allowed_ptr + ids_V // 32, mask=counts_V & (ids_V // 32 < num_words), other=0)
        counts_V = counts_V & (((words_V >> (ids_V % 32)) & 1) != 0)
    return tl.load(x_ptr + ids_V, mask=counts_V, other=float("-inf"))


@triton.jit
def _best(best_V, ids_V, VOCAB_SIZE: tl.constexpr):
    """The largest value and its id, the lowest among equals."""
    best = tl.max(best_V, axis=0)
    return best, tl.min(tl.where(best_V == best, ids_V, VOCAB_SIZE - 1), axis=0)


@triton.jit
def _largest(x_ptr, allowed_ptr, num_words, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    best_V = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    best_ids_V = tl.zeros((BLOCK_V,), tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = _logits(x_ptr, allowed_ptr, num_words, ids_V, VOCAB_SIZE).to(tl.float32)
        best_ids_V = tl.where(x_V > best_V, ids_V, best_ids_V)
        best_V = tl.maximum(x_V, best_V)
    return _best(best_V, best_ids_V, VOCAB_SIZE)


@triton.jit
def _largest_with_noise(
    x_ptr,
    allowed_ptr,
    num_words,
    temperature,
    threshold,
    largest,
    least,
    key,
    late_key,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Of the tokens whose key reaches the threshold and whose scaled logit, less the largest, reaches the least."""
    scaled_largest = tl.div_rn(largest, temperature)
    best_V = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    best_ids_V = tl.zeros((BLOCK_V,), tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = _logits(x_ptr, allowed_ptr, num_words, ids_V, VOCAB_SIZE)
        scaled_V = tl.div_rn(x_V.to(tl.float32), temperature)
        score_V = scaled_V + gumbel_of(words_of(ids_V, key, late_key))
        better_V = (_ordered_keys(x_V) >= threshold) & (scaled_V - scaled_largest >= least) & (score_V > best_V)
        best_ids_V = tl.where(better_V, ids_V, best_ids_V)
        best_V = tl.where(better_V, score_V, best_V)
    return _best(best_V, best_ids_V, VOCAB_SIZE)


@triton.jit
def _mass(x_ptr, allowed_ptr, num_words, threshold, largest, rate, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    """The probability, relative to the likeliest token's, of the tokens whose key reaches the threshold."""
    mass_V = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        x_V = _logits(x_ptr, allowed_ptr, num_words, start + tl.arange(0, BLOCK_V), VOCAB_SIZE)
        weights_V = tl.exp2((x_V.to(tl.float32) - largest) * rate)
        mass_V += tl.where(_ordered_keys(x_V) >= threshold, weights_V, 0.0)
    return tl.sum(mass_V, axis=0)


@triton.jit
def _threshold(
    x_ptr,
    allowed_ptr,
    num_words,
    limit,
    largest,
    rate,
    BY_MASS: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The smallest key above which lies less than the limit: of the tokens' number, or of their relative probability.

    It is in low ≤ key < low + 4 · width, and each pass takes one quarter of that.
    """
    low = tl.full((), -(2 ** (KEY_BITS - 1)), tl.int32)
    width = tl.full((), 2 ** (KEY_BITS - 2), tl.int32)
    for _ in range(KEY_BITS // 2):
        first, second = low + (width - 1), low + (2 * width - 1)
        third = second + width
        above_first_V = tl.zeros((BLOCK_V,), tl.float32)
        above_second_V = tl.zeros((BLOCK_V,), tl.float32)
        above_third_V = tl.zeros((BLOCK_V,), tl.float32)
        for start in range(0, VOCAB_SIZE, BLOCK_V):
            x_V = _logits(x_ptr, allowed_ptr, num_words, start + tl.arange(0, BLOCK_V), VOCAB_SIZE)
            keys_V = _ordered_keys(x_V)
            weights_V = tl.full((BLOCK_V,), 1.0, tl.float32)
            if BY_MASS:
                weights_V = tl.exp2((x_V.to(tl.float32) - largest) * rate)
            above_first_V += tl.where(keys_V > first, weights_V, 0.0)
            above_second_V += tl.where(keys_V > second, weights_V, 0.0)
            above_third_V += tl.where(keys_V > third, weights_V, 0.0)
        passed = (tl.sum(above_first_V, axis=0) >= limit).to(tl.int32)
        passed += (tl.sum(above_second_V, axis=0) >= limit).to(tl.int32)
        passed += (tl.sum(above_third_V, axis=0) >= limit).to(tl.int32)
        low += passed * width
        width = width >> 2
    return low


@triton.jit
def _store(token_ptr, drawn_ptr, row, token):
    tl.store(token_ptr, token.to(tl.int64))
    if drawn_ptr is not None:
        tl.store(drawn_ptr + row, token)


@triton.jit
def _sample_kernel(
    logits_ptr,
    rows_ptr,
    positions_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    top_k_ptr,
    seed_ptr,
    lines_ptr,
    allowed_ptr,
    tokens_ptr,
    drawn_ptr,
    line_stride,
    num_words,
    KEY_BITS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    draw = tl.program_id(0)
    line = draw
    if lines_ptr is not None:
        line = tl.load(lines_ptr + draw)
    if allowed_ptr is not None:
        allowed_ptr += draw.to(tl.int64) * num_words
    row = tl.load(rows_ptr + draw).to(tl.int64)
    x_ptr = logits_ptr + line.to(tl.int64) * line_stride
    temperature = tl.load(temperature_ptr + row)
    if temperature <= 0:
        _, token = _largest(x_ptr, allowed_ptr, num_words, VOCAB_SIZE, BLOCK_V)
        _store(tokens_ptr + draw, drawn_ptr, row, token)
        return
    top_p, min_p, top_k = tl.load(top_p_ptr + row), tl.load(min_p_ptr + row), tl.load(top_k_ptr + row)
    limits_k = (top_k > 0) & (top_k < VOCAB_SIZE)
    threshold = tl.full((), -(2 ** (KEY_BITS - 1)), tl.int32)
    largest = tl.full((), 0.0, tl.float32)
    least = tl.full((), float("-inf"), tl.float32)
    if limits_k | (top_p < 1) | (min_p > 0):
        largest, _ = _largest(x_ptr, allowed_ptr, num_words, VOCAB_SIZE, BLOCK_V)
        rate = _LOG2_E / temperature
        if limits_k:
            limit = top_k.to(tl.float32)
            threshold = _threshold(
                x_ptr, allowed_ptr, num_words, limit, largest, rate, False, KEY_BITS, VOCAB_SIZE, BLOCK_V
            )
        if top_p < 1:
            limit = top_p * _mass(x_ptr, allowed_ptr, num_words, threshold, largest, rate, VOCAB_SIZE, BLOCK_V)
            of_mass = _threshold(
                x_ptr, allowed_ptr, num_words, limit, largest, rate, True, KEY_BITS, VOCAB_SIZE, BLOCK_V
            )
            threshold = tl.maximum(threshold, of_mass)
        threshold = tl.minimum(threshold, _ordered_keys(largest.to(logits_ptr.dtype.element_ty)))
        if min_p > 0:
            least = tl.minimum(tl.log(min_p), 0.0)
    key, late_key = draw_keys(seed_ptr + 2 * row, tl.load(positions_ptr + draw))
    _, token = _largest_with_noise(
        x_ptr, allowed_ptr, num_words, temperature, threshold, largest, least, key, late_key, VOCAB_SIZE, BLOCK_V
    )
    _store(tokens_ptr + draw, drawn_ptr, row, token)


def sample(
    logits_LV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    params: SamplingRows,
    *,
    lines_S: Tensor | None = None,
    allowed_SW: Tensor | None = None,
    out_S: Tensor | None = None,
    drawn_R: Tensor | None = None,
    block_v: int = BLOCK_V,
) -> Tensor:
    """Launch the kernel; `kernels/sample.py` says what it computes. A program looks at `block_v` logits at a time."""
    tokens_S = torch.empty(len(rows_S), dtype=torch.int64, device=logits_LV.device) if out_S is None else out_S
    by_row = (params.temperature_R, params.top_p_R, params.min_p_R, params.top_k_R, params.seed_R2)
    assert logits_LV.dtype in (torch.bfloat16, torch.float16, torch.float32)
    assert logits_LV.stride(1) == 1
    given = [x for x in (lines_S, allowed_SW) if x is not None]
    assert all(x.is_contiguous() for x in (rows_S, positions_S, tokens_S, *by_row, *given))
    assert all(x.dtype == torch.int32 and len(x) == len(rows_S) for x in given)
    assert len(rows_S) == len(positions_S) == len(tokens_S)
    assert lines_S is not None or len(logits_LV) == len(rows_S)
    assert tokens_S.dtype == torch.int64
    assert drawn_R is None or drawn_R.dtype == torch.int32
    if len(rows_S) == 0:
        return tokens_S
    vocab_size = logits_LV.shape[1]
    block_v = min(block_v, triton.next_power_of_2(vocab_size))
    _sample_kernel[(len(rows_S),)](
        logits_LV,
        rows_S,
        positions_S,
        *by_row,
        lines_S,
        allowed_SW,
        tokens_S,
        drawn_R,
        logits_LV.stride(0),
        0 if allowed_SW is None else allowed_SW.shape[1],
        KEY_BITS=8 * logits_LV.dtype.itemsize,
        VOCAB_SIZE=vocab_size,
        BLOCK_V=block_v,
        num_warps=max(4, min(16, block_v // 512)),
    )
    return tokens_S
