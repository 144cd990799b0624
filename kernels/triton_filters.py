# mypy: ignore-errors
"""Which tokens of a line pass filters, without a sort: floors, the list of what reaches one, and exact thresholds.

For use inside Triton kernels; `kernels/triton_sample.py` says how they come together. V vocabulary; `_V` marks what a
program holds of it at once, `_C` the list.
"""

import triton
import triton.language as tl

from .triton_logits import logits_of, ordered_keys


@triton.jit
def column_tops(line, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    """The largest logit of each column of the line, when it is written in rows of BLOCK_V."""
    tops_V = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        x_V = logits_of(line, start + tl.arange(0, BLOCK_V), VOCAB_SIZE)
        tops_V = tl.maximum(tops_V, x_V.to(tl.float32))
    return tops_V


@triton.jit
def reaching(
    line,
    floor,
    largest,
    rate,
    VOCAB_SIZE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """How many finite logits of each column reach the floor; the relative probability of all, and of the upper ones.

    Those reach half of the way from the floor to the largest.
    """
    middle = floor + 0.5 * (largest - floor)
    counts_V = tl.zeros((BLOCK_V,), tl.int32)
    mass_V = tl.zeros((BLOCK_V,), tl.float32)
    upper_V = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = logits_of(line, ids_V, VOCAB_SIZE).to(tl.float32)
        weights_V = tl.exp2((x_V - largest) * rate)
        mass_V += weights_V
        upper_V += tl.where(x_V >= middle, weights_V, 0.0)
        counts_V += ((x_V >= floor) & (x_V > float("-inf"))).to(tl.int32)
    return counts_V, tl.sum(mass_V, axis=0), tl.sum(upper_V, axis=0)


@triton.jit
def note_reaching(line, ids_ptr, floor, counts_V, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    """Note the ids of finite logits that reach the floor, column by column, of which each has so many."""
    places_V = tl.cumsum(counts_V, axis=0) - counts_V
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        ids_V = start + tl.arange(0, BLOCK_V)
        x_V = logits_of(line, ids_V, VOCAB_SIZE).to(tl.float32)
        reaches_V = (x_V >= floor) & (x_V > float("-inf"))
        tl.store(ids_ptr + places_V, ids_V, mask=reaches_V)
        places_V += reaches_V.to(tl.int32)
    tl.debug_barrier()  # Other threads of this program read what these have noted.


@triton.jit
def key_among(keys_C, weights_C, limit, KEY_BITS: tl.constexpr):
    """As `threshold_of`, of what is in registers."""
    low = tl.full((), -(2 ** (KEY_BITS - 1)), tl.int32)
    width = tl.full((), 2 ** (KEY_BITS - 2), tl.int32)
    for _ in range(KEY_BITS // 2):
        first, second = low + (width - 1), low + (2 * width - 1)
        third = second + width
        passed = (tl.sum(tl.where(keys_C > first, weights_C, 0.0), axis=0) >= limit).to(tl.int32)
        passed += (tl.sum(tl.where(keys_C > second, weights_C, 0.0), axis=0) >= limit).to(tl.int32)
        passed += (tl.sum(tl.where(keys_C > third, weights_C, 0.0), axis=0) >= limit).to(tl.int32)
        low += passed * width
        width = width >> 2
    return low


@triton.jit
def mass_from(line, threshold, largest, rate, VOCAB_SIZE: tl.constexpr, BLOCK_V: tl.constexpr):
    """The probability, relative to the likeliest token's, of the tokens whose key reaches the threshold."""
    mass_V = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK_V):
        x_V = logits_of(line, start + tl.arange(0, BLOCK_V), VOCAB_SIZE)
        weights_V = tl.exp2((x_V.to(tl.float32) - largest) * rate)
        mass_V += tl.where(ordered_keys(x_V) >= threshold, weights_V, 0.0)
    return tl.sum(mass_V, axis=0)


@triton.jit
def threshold_of(
    line,
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
            x_V = logits_of(line, start + tl.arange(0, BLOCK_V), VOCAB_SIZE)
            keys_V = ordered_keys(x_V)
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
