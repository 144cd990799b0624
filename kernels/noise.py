"""Random numbers without a state: a hash of (seed, position, token id) turned into Gumbel noise.

The token with the largest logit plus Gumbel noise is a draw from softmax(logits). Because the noise of a token depends
on nothing but these three numbers, a draw depends on nothing else in the batch, and any subset of the tokens can be
looked at alone. All arithmetic is on 32-bit words that wrap around; `triton_noise.py` makes the same words on a GPU.
S draws, K tokens of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A bijective 32-bit mixer of low bias, by Chris Wellons: https://nullprogram.com/blog/2018/07/31/ ("lowbias32").
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)


def gumbel_noise(seed_S2: Tensor, position_S: Tensor, token_ids: Tensor) -> Tensor:
    """Return float32 noise of shape [S, K] for the tokens token_ids ([K], or [S, K]) of each of S draws.

    `seed_S2` holds the low and the high word of each seed, as int32.
    """
    return _to_gumbel(noise_words(seed_S2, position_S, token_ids))


def noise_words(seed_S2: Tensor, position_S: Tensor, token_ids: Tensor) -> Tensor:
    """Return the int32 words of shape [S, K] that the noise is made of: every one is equally likely."""
    key_S1 = _mixed(seed_S2[:, 0] + position_S.to(torch.int32) * _GOLDEN).unsqueeze(1)
    late_key_S1 = _mixed(seed_S2[:, 1] ^ key_S1[:, 0]).unsqueeze(1)
    words_SK = (token_ids.to(torch.int32) * _GOLDEN) + key_S1
    words_SK ^= _shifted(words_SK, 16)
    words_SK *= _FIRST
    words_SK ^= _shifted(words_SK, 15)
    # The second key enters between the rounds: 64 bits of key for 32-bit words.
    words_SK += late_key_S1
    words_SK *= _SECOND
    words_SK ^= _shifted(words_SK, 16)
    return words_SK


def split_seed(seed: int) -> tuple[int, int]:
    """The low and high 32 bits of a seed of any size, as signed words."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)


def _mixed(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 16)) * _FIRST
    words = (words ^ _shifted(words, 15)) * _SECOND
    return words ^ _shifted(words, 16)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own copies the sign bit."""
    return (words >> bits) & ((1 << (32 - bits)) - 1)


def _to_gumbel(words: Tensor) -> Tensor:
    """-log(-log(u)), with u = 1 - v, so that float32 is finest where noise is largest."""
    v = (_shifted(words, 1).to(torch.float32) * 2.0**-31).add_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_().neg_()
