# mypy: ignore-errors
"""The Triton kernel behind `kernels/sample.py`: one program draws from one line of logits.

Filters are thresholds, found by search and not by sorting. First a floor is found below which no token can pass: from
the largest logits of the columns that a program looks at at once (top_k), or from how little probability so many tokens
can have together (top_p, min_p). The ids of what reaches it, the list, are noted, and all else happens among these in
registers: logits become integers of the same order ("keys"), and each round settles two bits of the smallest key that
passes, by how many tokens, or how much probability, lie above three candidates for it. Where the list would be too
long, the next pass over the line raises the floor; where that does not help either, as among equals, each round is a
pass.

Without filters one pass is enough. Noise is made only for parts of the line in which some token could win: whether one
could is seen from its word by comparing, before its noise is known.
What a logit is, with allowed tokens and penalties, is said in `triton_logits.py`, and what passes filters in
`triton_filters.py`.
V vocabulary, S draws, L lines of logits, R rows, W words of 32 bits; `_V` marks what a program holds of the vocabulary
at once, `_C` the list.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .penalties import PenaltyRows, num_mark_words
from .sample import SamplingRows
from .triton_compiling import launcher
from .triton_filters import column_tops, key_among, mass_from, note_reaching, reaching, threshold_of
from .triton_logits import Line, keys_of, logits_at, logits_of, note, ordered_keys, penalties_of
from .triton_noise import draw_keys, gumbel_of, uniform_of, words_of

BLOCK_V = 8192
# Tokens that the list has room for: a few hundred are usual at a top_p of 0.95, and 50 at a top_k of 50.
MOST_LISTED = 4096
# Passes that look for a floor, before the whole line is searched; each leaves half of the distance to the largest.
MAX_PASSES = tl.constexpr(6)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
# What roundings of exponents of up to some hundreds may make too small.
_ROUNDED_UP = tl.constexpr(1.001)


@triton.jit
def _best(best_V, ids_V, VOCAB_SIZE: tl.constexpr):
    """The largest value and its id, the lowest among equals."""
    best = tl.max(best_V, axis=0)
    return best, tl.min(tl.where(best_V == best, ids_V, VOCAB_SIZE - 1), axis=0)


@triton.jit
def _largest(line, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    best_V = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    best_ids_V = tl.zeros((BLOCK_V,), tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = logits_of(line, ids_V, VOCAB_SIZE).to(tl.float32)
        best_ids_V = tl.where(x_V > best_V, ids_V, best_ids_V)
        best_V = tl.maximum(x_V, best_V)
    return _best(best_V, best_ids_V, VOCAB_SIZE)


@triton.jit
def _largest_with_noise(
    line,
    temperature,
    threshold,
    largest,
    least,
    key,
    late_key,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Of the tokens whose key reaches the threshold and whose scaled logit, less the largest, reaches the least.

    Noise is at most -log(v), so that a token beats the best so far only if v is at most exp(its scaled logit - best).
    """
    scaled_largest = tl.div_rn(largest, temperature)
    rate = _LOG2_E / temperature
    best, best_id = tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = logits_of(line, ids_V, VOCAB_SIZE)
        words_V = words_of(ids_V, key, late_key)
        bound_V = tl.exp2(x_V.to(tl.float32) * rate - best * _LOG2_E) * _ROUNDED_UP
        if tl.max((uniform_of(words_V) <= bound_V).to(tl.int32), axis=0) > 0:
            scaled_V = tl.div_rn(x_V.to(tl.float32), temperature)
            passes_V = (ordered_keys(x_V) >= threshold) & (scaled_V - scaled_largest >= least)
            score_V = tl.where(passes_V, scaled_V + gumbel_of(words_V), float("-inf"))
            block_best = tl.max(score_V, axis=0)
            if block_best > best:
                best = block_best
                best_id = tl.min(tl.where(score_V == block_best, ids_V, VOCAB_SIZE - 1), axis=0)
    return best_id


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
    strengths_ptr,
    marks_ptr,
    slots_ptr,
    counts_ptr,
    tokens_ptr,
    drawn_ptr,
    ids_ptr,
    line_stride,
    num_words,
    KEY_BITS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MOST_LISTED: tl.constexpr,
):
    draw = tl.program_id(0)
    line_index = draw
    if lines_ptr is not None:
        line_index = tl.load(lines_ptr + draw)
    if allowed_ptr is not None:
        allowed_ptr += draw.to(tl.int64) * num_words
    row = tl.load(rows_ptr + draw).to(tl.int64)
    penalties = penalties_of(row, strengths_ptr, marks_ptr, slots_ptr, counts_ptr, VOCAB_SIZE)
    x_ptr = logits_ptr + line_index.to(tl.int64) * line_stride
    line = Line(x_ptr=x_ptr, allowed_ptr=allowed_ptr, num_words=num_words, penalties=penalties)
    temperature = tl.load(temperature_ptr + row)
    if temperature <= 0:
        token = tl.full((), 0, tl.int32)
        if temperature == 0:
            _, token = _largest(line, VOCAB_SIZE, BLOCK_V)
            note(penalties, token)
        _store(tokens_ptr + draw, drawn_ptr, row, token)
        return
    top_p, min_p, top_k = tl.load(top_p_ptr + row), tl.load(min_p_ptr + row), tl.load(top_k_ptr + row)
    limits_k = (top_k > 0) & (top_k < VOCAB_SIZE)
    limit_k = top_k.to(tl.float32)
    key, late_key = draw_keys(seed_ptr + 2 * row, tl.load(positions_ptr + draw))
    threshold = tl.full((), -(2 ** (KEY_BITS - 1)), tl.int32)
    largest = tl.full((), 0.0, tl.float32)
    least = tl.full((), float("-inf"), tl.float32)
    count = tl.full((), MOST_LISTED + 1, tl.int32)
    mass = tl.full((), 0.0, tl.float32)
    rate = _LOG2_E / temperature
    ids_ptr += draw.to(tl.int64) * MOST_LISTED
    if limits_k | (top_p < 1) | (min_p > 0):
        tops_V = column_tops(line, VOCAB_SIZE, BLOCK_V)
        largest = tl.max(tops_V, axis=0)
        if min_p > 0:
            least = tl.minimum(tl.log(min_p), 0.0)
        floor = tl.full((), float("-inf"), tl.float32)
        if limits_k & (top_k <= BLOCK_V):
            # As many columns as top_k asks for hold a token that reaches it.
            column_keys_V = keys_of(line, tops_V)
            floor_key = key_among(column_keys_V, tl.full((BLOCK_V,), 1.0, tl.float32), limit_k, KEY_BITS)
            floor = tl.min(tl.where(column_keys_V >= floor_key, tops_V, float("inf")), axis=0)
        if (not limits_k) & (top_p < 1):
            # What lies below has less than half of what top_p leaves out, even if it is the whole vocabulary.
            floor = largest - temperature * (_LN_2 * tl.log2(2.0 * VOCAB_SIZE / (1 - top_p)) + 0.01)
        if (not limits_k) & (top_p >= 1):
            floor = largest + temperature * (least - 0.01)
        passes_left = tl.where(limits_k | (top_p >= 1), 1, MAX_PASSES)
        while passes_left > 0:
            counts_V, mass, upper = reaching(line, floor, largest, rate, VOCAB_SIZE, BLOCK_V)
            count = tl.sum(counts_V, axis=0)
            passes_left -= 1
            if count <= MOST_LISTED:
                note_reaching(line, ids_ptr, floor, counts_V, VOCAB_SIZE, BLOCK_V)
                passes_left = 0
            elif upper >= top_p * mass:
                floor += 0.5 * (largest - floor)
            else:
                passes_left = 0
        if count > MOST_LISTED:
            if limits_k:
                threshold = threshold_of(line, limit_k, largest, rate, False, KEY_BITS, VOCAB_SIZE, BLOCK_V)
            if top_p < 1:
                limit = top_p * mass_from(line, threshold, largest, rate, VOCAB_SIZE, BLOCK_V)
                of_mass = threshold_of(line, limit, largest, rate, True, KEY_BITS, VOCAB_SIZE, BLOCK_V)
                threshold = tl.maximum(threshold, of_mass)
            threshold = tl.minimum(threshold, keys_of(line, largest))
    if count > MOST_LISTED:
        token = _largest_with_noise(
            line,
            temperature,
            threshold,
            largest,
            least,
            key,
            late_key,
            VOCAB_SIZE,
            BLOCK_V,
        )
    else:
        places_C = tl.arange(0, MOST_LISTED)
        live_C = places_C < count
        ids_C = tl.load(ids_ptr + places_C, mask=live_C, other=0)
        x_C = logits_at(line, ids_C, live_C)
        keys_C = ordered_keys(x_C)
        weights_C = tl.exp2((x_C.to(tl.float32) - largest) * rate)
        if limits_k:
            threshold = key_among(keys_C, live_C.to(tl.float32), limit_k, KEY_BITS)
            mass = tl.sum(tl.where(keys_C >= threshold, weights_C, 0.0), axis=0)
        if top_p < 1:
            threshold = tl.maximum(threshold, key_among(keys_C, weights_C, top_p * mass, KEY_BITS))
        threshold = tl.minimum(threshold, keys_of(line, largest))
        scaled_C = tl.div_rn(x_C.to(tl.float32), temperature)
        passes_C = live_C & (keys_C >= threshold) & (scaled_C - tl.div_rn(largest, temperature) >= least)
        score_C = tl.where(passes_C, scaled_C + gumbel_of(words_of(ids_C, key, late_key)), float("-inf"))
        token = tl.min(tl.where(score_C == tl.max(score_C, axis=0), ids_C, VOCAB_SIZE - 1), axis=0)
    note(penalties, token)
    _store(tokens_ptr + draw, drawn_ptr, row, token)


def sample(
    logits_LV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    params: SamplingRows,
    *,
    lines_S: Tensor | None = None,
    allowed_SW: Tensor | None = None,
    penalties: PenaltyRows | None = None,
    out_S: Tensor | None = None,
    drawn_R: Tensor | None = None,
    block_v: int = BLOCK_V,
    most_listed: int = MOST_LISTED,
) -> Tensor:
    """Launch the kernel; `kernels/sample.py` says what it computes.

    A program looks at `block_v` logits at a time, and its list has room for `most_listed` ids.
    """
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
    of_penalties = (None,) * 4 if penalties is None else _checked(penalties, logits_LV.shape[1])
    if len(rows_S) == 0:
        return tokens_S
    vocab_size = logits_LV.shape[1]
    block_v = min(block_v, triton.next_power_of_2(vocab_size))
    most_listed = min(most_listed, triton.next_power_of_2(vocab_size))
    ids = torch.empty(len(rows_S), most_listed, dtype=torch.int32, device=logits_LV.device)
    launcher(_sample_kernel, (len(rows_S),))(
        logits_LV,
        rows_S,
        positions_S,
        *by_row,
        lines_S,
        allowed_SW,
        *of_penalties,
        tokens_S,
        drawn_R,
        ids,
        logits_LV.stride(0),
        0 if allowed_SW is None else allowed_SW.shape[1],
        KEY_BITS=32 if penalties is not None else 8 * logits_LV.dtype.itemsize,
        VOCAB_SIZE=vocab_size,
        BLOCK_V=block_v,
        MOST_LISTED=most_listed,
        num_warps=max(4, min(16, block_v // 512)),
    )
    return tokens_S


def _checked(penalties: PenaltyRows, vocab_size: int) -> tuple[Tensor, ...]:
    """The tensors of penalties, as the kernel takes them."""
    tensors = (penalties.strengths_R3, penalties.marks_RM, penalties.slots_R, penalties.counts_CV)
    assert all(x.is_contiguous() for x in tensors)
    assert penalties.marks_RM.shape[1] == num_mark_words(vocab_size)
    assert penalties.counts_CV.shape[1] == vocab_size
    assert penalties.strengths_R3.dtype == torch.float32
    assert penalties.marks_RM.dtype == penalties.slots_R.dtype == torch.int32
    assert penalties.counts_CV.dtype in (torch.int16, torch.int32)
    return tensors
