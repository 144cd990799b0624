# mypy: ignore-errors
"""The words of `kernels/noise.py`, bit for bit, and their Gumbel noise, for use inside Triton kernels.

S draws, K tokens of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_compiling import launcher

_FIRST = tl.constexpr(0x7FEB352D)
_SECOND = tl.constexpr(0x846CA68B)
_GOLDEN = tl.constexpr(0x9E3779B9)


@triton.jit
def _mixed(words):
    words = (words ^ (words >> 16)) * _FIRST
    words = (words ^ (words >> 15)) * _SECOND
    return words ^ (words >> 16)


@triton.jit
def draw_keys(seed_ptr, position):
    """The two keys of a draw, uint32, from the two words of its seed and its position."""
    low = tl.load(seed_ptr).to(tl.uint32, bitcast=True)
    high = tl.load(seed_ptr + 1).to(tl.uint32, bitcast=True)
    key = _mixed(low + position.to(tl.uint32) * _GOLDEN)
    return key, _mixed(high ^ key)


@triton.jit
def words_of(token_ids, key, late_key):
    """The uint32 words of tokens."""
    words = token_ids.to(tl.uint32) * _GOLDEN + key
    words = (words ^ (words >> 16)) * _FIRST
    words = ((words ^ (words >> 15)) + late_key) * _SECOND
    return words ^ (words >> 16)


@triton.jit
def uniform_of(words):
    """0 < v < 1, in float32."""
    return tl.minimum((words >> 1).to(tl.int32).to(tl.float32) * (2.0**-31) + 2.0**-32, 1 - 2.0**-24)


@triton.jit
def gumbel_of(words):
    """-log(e) with e = -log(1 - v), exact to a few roundings at any v: small ones, where noise is large, decide.

    For v < ½ e is 2·artanh(v / (2 - v)) by its series, whose eighth term is below 2⁻²⁵; a GPU's logarithm is not
    exact near 1.
    """
    v = uniform_of(words)
    s = v / (2 - v)
    t = s * s
    series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11 + t * (1 / 13))))))
    return -tl.log(tl.where(v < 0.5, 2 * s * series, -tl.log(1 - v)))


@triton.jit
def _noise_words_kernel(seed_ptr, position_ptr, token_ids_ptr, words_ptr, num_tokens, BLOCK_K: tl.constexpr):
    draw = tl.program_id(0).to(tl.int64)
    tokens_K = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = tokens_K < num_tokens
    key, late_key = draw_keys(seed_ptr + 2 * draw, tl.load(position_ptr + draw))
    words_K = words_of(tl.load(token_ids_ptr + tokens_K, mask=mask, other=0), key, late_key)
    tl.store(words_ptr + draw * num_tokens + tokens_K, words_K.to(tl.int32, bitcast=True), mask=mask)


def noise_words(seed_S2: Tensor, position_S: Tensor, token_ids_K: Tensor) -> Tensor:
    """The words alone, as `kernels/noise.py` returns them; the kernels have them only in passing."""
    assert all(x.is_contiguous() for x in (seed_S2, position_S, token_ids_K))
    words_SK = seed_S2.new_empty((len(seed_S2), len(token_ids_K)), dtype=torch.int32)
    grid = (len(seed_S2), triton.cdiv(len(token_ids_K), 1024))
    launcher(_noise_words_kernel, grid)(seed_S2, position_S, token_ids_K, words_SK, len(token_ids_K), BLOCK_K=1024)
    return words_SK
