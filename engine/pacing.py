"""How many tokens a step should have, where hurrying gains nothing.

The running sequence that will end last says how many steps there will be at least. If all others can be computed beside
it, spreading them over those steps makes each step worth its reading of the weights; in haste the last sequences would
be left alone at the end, in steps that cost as much and do little. Knows nothing of rows or pages.
"""

from __future__ import annotations

from .forecast import FloatArray
from .waiting import Ahead

# Products of so many tokens, or a multiple, fill the tiles that they are computed in.
MULTIPLE = 256


def paced_tokens(ahead: Ahead, remaining_S: FloatArray, num_wanted: int, *, least: int, most: int) -> int:
    """The tokens of the next step, from `least` to `most`; `most` wherever spreading could cost time.

    `remaining_S` are the tokens that running sequences have still to generate, one a step, and `num_wanted` how many of
    their tokens wait to be computed.
    """
    num_steps = float(remaining_S.max())
    slack = num_steps - ahead.lengths  # Steps within which each must be admitted.
    if slack.min() <= 0:
        return most
    evenly = (num_wanted + remaining_S.sum() + ahead.prompt_tokens[-1] + ahead.lengths.sum()) / num_steps
    in_time = len(remaining_S) + (ahead.prompt_tokens / slack).max()
    return min(most, -(-int(max(evenly, in_time, least)) // MULTIPLE) * MULTIPLE)
