"""What goes between processes by the thousand is pickled as what it is, without the names of its fields."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest

from pressrun.engine.packed import packed
from pressrun.engine.request import Lifetime, Output, PromptLogprob, Request, SamplingParams, TokenLogprob

LIFE = Lifetime(
    arrived_at=1.0, admitted_at=None, first_token_at=2.0, ended_at=3.0, num_prompt_tokens=4, num_generated_tokens=5
)
SCORE = TokenLogprob(token_id=1, logprob=-0.5, top=((1, -0.5),))
PARAMS = SamplingParams(max_tokens=3, seed=7, stop=("a",), logit_bias=((1, 2.0),), grammar="start: x")
THINGS = [
    LIFE,
    SCORE,
    PromptLogprob(token_id=1, logprob=-1.0, rank=2),
    PARAMS,
    Request(id="a", prompt=b"bytes", params=PARAMS, priority=-3, stream=True),
    Output(id="a", token_ids=[1, 2], finish_reason="stop", logprobs=[SCORE], lifetime=LIFE),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_a_thing_arrives_as_it_was_sent_and_stays_frozen(thing: Any) -> None:
    arrived = pickle.loads(pickle.dumps(thing))
    assert arrived == thing
    assert type(arrived) is type(thing)
    with pytest.raises(FrozenInstanceError):
        setattr(arrived, fields(thing)[0].name, "other")


def test_what_several_share_is_sent_once() -> None:
    requests = [Request(id=str(i), prompt=b"x", params=PARAMS) for i in range(3)]
    first, *others = pickle.loads(pickle.dumps(requests))
    assert all(other.params is first.params for other in others)


def test_a_state_of_another_shape_is_not_taken_in_half() -> None:
    @packed
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Pair:
        one: int
        two: int

    pair = Pair(one=1, two=2)
    assert replace(pair, two=3).__getstate__() == (1, 3)
    with pytest.raises(ValueError, match="zip"):
        pair.__setstate__((1,))  # type: ignore[attr-defined]
