"""Who gets a row next, and how much the rest of a round still wants."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pressrun.engine.forecast import FloatArray
from pressrun.engine.pages import page_hash
from pressrun.engine.request import Request, SamplingParams
from pressrun.engine.sequence import Sequence
from pressrun.engine.waiting import MIN_COMMON_TOKENS, Waiting, arrange

PAGE_SIZE = 16
GROUP = MIN_COMMON_TOKENS // PAGE_SIZE


def sequence(id: str, pages: list[int], max_tokens: int = 10, priority: int = 0) -> Sequence:
    """One whose prompt has such pages; equal numbers at equal places, with all before them equal, are equal pages."""
    request = Request(
        id=id, prompt=[0] * len(pages) * PAGE_SIZE, params=SamplingParams(max_tokens=max_tokens), priority=priority
    )
    made = Sequence(request=request, seed=0, tokens=np.zeros(len(request.prompt), np.int32))
    for page in pages:
        made.page_hashes.append(
            page_hash(made.page_hashes[-1] if made.page_hashes else b"", np.full(PAGE_SIZE, page, np.int32))
        )
    return made


def limits(sequences: list[Sequence]) -> FloatArray:
    return np.array([float(s.request.params.max_tokens) for s in sequences])


@pytest.fixture
def waiting() -> Waiting:
    return Waiting(PAGE_SIZE, limits)


def drain(waiting: Waiting) -> list[str]:
    taken = []
    while (first := waiting.first()) is not None:
        assert waiting.pop() is first
        taken.append(first.request.id)
    return taken


def test_the_longest_of_a_round_goes_first_and_equals_by_arrival(waiting: Waiting) -> None:
    for i, length in enumerate([3, 9, 3, 12, 9]):
        waiting.add(sequence(str(i), [i], length))
    assert drain(waiting) == ["3", "1", "4", "0", "2"]


def test_later_arrivals_overtake_nobody_of_a_round_that_has_begun(waiting: Waiting) -> None:
    waiting.add(sequence("a", [1], 1))
    waiting.add(sequence("b", [2], 2))
    first = waiting.first()
    assert first is not None
    assert first.request.id == "b"
    waiting.add(sequence("long", [3], 1000))
    assert drain(waiting) == ["b", "a", "long"]


def test_urgent_sequences_go_before_a_round_that_has_begun(waiting: Waiting) -> None:
    waiting.add(sequence("batch", [1], 100, priority=1))
    assert waiting.first() is not None
    waiting.add(sequence("urgent", [2], 1))
    assert drain(waiting) == ["urgent", "batch"]


def test_who_is_put_back_takes_the_same_place_again(waiting: Waiting) -> None:
    for i in range(4):
        waiting.add(sequence(str(i), [i], 10 - i))
    waiting.first()
    taken = [waiting.pop() for _ in range(3)]
    for one in taken[1:]:
        waiting.put_back(one)
    assert len(waiting) == 3
    assert drain(waiting) == ["1", "2", "3"]


def test_who_is_removed_does_not_come(waiting: Waiting) -> None:
    begun, behind = sequence("begun", [1]), sequence("behind", [2])
    waiting.add(begun)
    waiting.add(sequence("kept", [3]))
    waiting.first()
    waiting.add(behind)
    waiting.remove({begun, behind})
    assert drain(waiting) == ["kept"]
    assert len(waiting) == 0


def test_what_lies_ahead_is_known_only_where_nobody_waits_behind(waiting: Waiting) -> None:
    shared = list(range(GROUP))
    for i in range(3):
        waiting.add(sequence(str(i), [*shared, 100 + i], 7))
    assert waiting.first() is not None
    ahead = waiting.ahead()
    assert ahead is not None
    # What the second and third share with the one before them, they need not compute.
    assert ahead.prompt_tokens.tolist() == [(GROUP + 1) * PAGE_SIZE, (GROUP + 2) * PAGE_SIZE, (GROUP + 3) * PAGE_SIZE]
    assert ahead.lengths.tolist() == [7, 7, 7]
    waiting.pop()
    waiting.first()
    ahead = waiting.ahead()
    assert ahead is not None
    assert ahead.prompt_tokens.tolist() == [PAGE_SIZE, 2 * PAGE_SIZE]
    waiting.add(sequence("later", [5]))
    assert waiting.ahead() is None


def test_sequences_that_begin_alike_follow_each_other() -> None:
    heads = [[head] * GROUP for head in range(5)]
    sequences = [sequence(str(i), [*heads[i % 5], 1000 + i], 10) for i in range(50)]
    order, common = arrange(sequences, limits(sequences), GROUP)
    assert [index % 5 for index in order] == [head for head in range(5) for _ in range(10)]
    assert sum(common) == 45 * GROUP


def test_a_beginning_that_all_have_makes_no_group() -> None:
    sequences = [sequence(str(i), [*range(20), 1000 + i], i) for i in range(10)]
    order, common = arrange(sequences, limits(sequences), GROUP)
    assert order == list(range(9, -1, -1))
    assert common == [0] + [20] * 9


def test_the_group_with_the_longest_member_goes_first() -> None:
    head = [7] * GROUP
    sequences = [
        sequence("alone", [1], 50),
        sequence("short", [*head, 1], 2),
        sequence("long", [*head, 2], 99),
        sequence("middle", [3], 60),
    ]
    order, _ = arrange(sequences, limits(sequences), GROUP)
    assert set(order[:2]) == {1, 2}
    assert order[2:] == [3, 0]


def test_an_arrangement_holds_everyone_once_and_what_it_promises_is_shared() -> None:
    draw = random.Random(5)
    for _ in range(200):
        sequences = [
            sequence(str(i), [draw.randrange(2) for _ in range(draw.randrange(6))], draw.randrange(1, 4))
            for i in range(draw.randrange(1, 12))
        ]
        order, common = arrange(sequences, limits(sequences), draw.randrange(1, 4))
        assert sorted(order) == list(range(len(sequences)))
        for place in range(1, len(order)):
            before, after = (sequences[order[place - i]].page_hashes[: common[place]] for i in (1, 0))
            assert before == after
            assert len(after) == common[place]


def test_within_a_group_too_the_longest_goes_first() -> None:
    draw = random.Random(6)
    heads = [[draw.randrange(100) for _ in range(3 * GROUP)] for _ in range(3)]
    sequences = [sequence(str(i), [*heads[i % 3], 1000 + i], 2000 if i in (100, 101, 102) else 10) for i in range(300)]
    order, common = arrange(sequences, limits(sequences), GROUP)
    places = {index: place for place, index in enumerate(order)}
    assert sorted(places[index] for index in (100, 101, 102)) == [0, 100, 200]
    assert sum(common) == 297 * 3 * GROUP


def test_beginnings_that_end_one_within_the_other_are_arranged_however_many() -> None:
    pages = [page_hash(b"", np.array([i], np.int32)) for i in range(3000)]
    sequences = [sequence(str(i), []) for i in range(1500)]
    for i, one in enumerate(sequences):
        one.page_hashes = pages[: 2 * i]
    order, _ = arrange(sequences, limits(sequences), 1)
    assert sorted(order) == list(range(1500))


def test_nothing_is_said_of_what_lies_ahead_while_others_wait_beside_it(waiting: Waiting) -> None:
    held = sequence("held", [1])
    waiting.add(held)
    waiting.first()
    waiting.pop()
    waiting.add(sequence("next", [2]))
    waiting.first()
    assert waiting.ahead() is not None
    waiting.put_back(held)
    assert waiting.ahead() is None
    waiting.remove({held})
    assert waiting.ahead() is not None
    waiting.add(sequence("urgent", [3], priority=-1))
    waiting.first()
    assert waiting.ahead() is None
