# mypy: ignore-errors
"""The logits of one draw, as `kernels/sample.py` means them, for use inside Triton kernels.

Where a line has allowed tokens, their bits are read beside the logits: an eighth of a byte to two or four. With
penalties marks are, a quarter of a byte; counts only where frequency asks, of the few tokens that were generated. What
follows is computed anew in every pass, which costs less than to write it down. V vocabulary; `_V` marks what a program
holds of it at once.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Penalties(NamedTuple):
    """One row's; as `kernels/penalties.py` has them."""

    presence: tl.tensor
    frequency: tl.tensor
    repetition: tl.tensor
    inverse: tl.tensor  # 1 / repetition
    marks_ptr: tl.tensor
    counts_ptr: tl.tensor


class Line(NamedTuple):
    """What a draw reads: its logits, the bits of the tokens that it may draw, and its row's penalties."""

    x_ptr: tl.tensor
    allowed_ptr: tl.tensor | None
    num_words: tl.tensor
    penalties: Penalties | None


@triton.jit
def penalties_of(row, strengths_ptr, marks_ptr, slots_ptr, counts_ptr, VOCAB_SIZE: tl.constexpr):
    """A row's, None if there are none."""
    penalties = None
    if marks_ptr is not None:
        slot = tl.maximum(tl.load(slots_ptr + row), 0).to(tl.int64)
        repetition = tl.load(strengths_ptr + 3 * row + 2)
        penalties = Penalties(
            presence=tl.load(strengths_ptr + 3 * row),
            frequency=tl.load(strengths_ptr + 3 * row + 1),
            repetition=repetition,
            inverse=tl.div_rn(1.0, repetition),
            marks_ptr=marks_ptr + row * ((VOCAB_SIZE + 15) // 16),
            counts_ptr=counts_ptr + slot * VOCAB_SIZE,
        )
    return penalties


@triton.jit
def note(penalties, token):
    """Mark and count a token that was drawn."""
    if penalties is not None:
        mark_ptr = penalties.marks_ptr + token // 16
        tl.store(mark_ptr, tl.load(mark_ptr) | (3 << (token % 16 * 2)))
        if penalties.frequency != 0:
            count_ptr = penalties.counts_ptr + token
            tl.store(count_ptr, tl.load(count_ptr) + 1)


@triton.jit
def ordered_keys(x):
    """int32 of the order of the floats x, equal where those are equal: the magnitude's bits with the number's sign."""
    width: tl.constexpr = x.dtype.primitive_bitwidth
    bits = x.to(tl.int16 if width == 16 else tl.int32, bitcast=True).to(tl.int32)
    return tl.where(bits >= 0, bits, -(bits & ((1 << (width - 1)) - 1)))


@triton.jit
def keys_of(line, x):
    """The keys of float32 that were logits of the line, whatever their type."""
    if line.penalties is None:
        x = x.to(line.x_ptr.dtype.element_ty)
    return ordered_keys(x)


@triton.jit
def logits_of(line, ids_V, VOCAB_SIZE: tl.constexpr):
    """-inf beyond the vocabulary and for what is not allowed.

    That has no probability, is never drawn, and lies above no key that could pass.
    """
    counts_V = ids_V < VOCAB_SIZE
    if line.allowed_ptr is not None:
        words_V = tl.load(line.allowed_ptr + ids_V // 32, mask=counts_V & (ids_V // 32 < line.num_words), other=0)
        counts_V = counts_V & (((words_V >> (ids_V % 32)) & 1) != 0)
    return logits_at(line, ids_V, counts_V)


@triton.jit
def logits_at(line, ids_V, counts_V):
    """-inf for what does not count; ids that do are of the vocabulary and allowed."""
    x_V = tl.load(line.x_ptr + ids_V, mask=counts_V, other=float("-inf"))
    if line.penalties is not None:
        x_V = _penalised(line.penalties, x_V.to(tl.float32), ids_V, counts_V)
    return x_V


@triton.jit
def _penalised(penalties, x_V, ids_V, counts_V):
    marks_V = tl.load(penalties.marks_ptr + ids_V // 16, mask=counts_V, other=0) >> (ids_V % 16 * 2)
    generated_V = (marks_V & 2) != 0
    # Most rows ask for one of the three; the whole program takes the same way.
    if penalties.repetition != 1:
        divided_V = _divided(x_V, penalties.repetition, penalties.inverse)
        repeated_V = tl.where(x_V > 0, divided_V, x_V * penalties.repetition)
        x_V = tl.where((marks_V & 1) != 0, repeated_V, x_V)
    if penalties.frequency != 0:
        times_V = tl.load(penalties.counts_ptr + ids_V, mask=counts_V & generated_V, other=0).to(tl.float32)
        x_V = tl.fma(-penalties.frequency, times_V, x_V)
    if penalties.presence != 0:
        x_V = tl.where(generated_V, x_V - penalties.presence, x_V)
    return x_V


@triton.jit
def _divided(x_V, by, inverse):
    """x / by, rounded as a division is, in three instructions: the remainder tells what the product is wrong by."""
    quotient_V = x_V * inverse
    return tl.fma(tl.fma(-quotient_V, by, x_V), inverse, quotient_V)
