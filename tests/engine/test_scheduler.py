"""The scheduler with real rows and pages, and in place of a model a memory that says what each slot would hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from pressrun.engine.forecast import LengthForecast
from pressrun.engine.pages import PagePool
from pressrun.engine.plan import Plan
from pressrun.engine.prefixes import Sharing
from pressrun.engine.request import Request, SamplingParams
from pressrun.engine.rows import Rows
from pressrun.engine.scheduler import Scheduler
from pressrun.engine.sequence import Sequence

PAGE_SIZE = 4


class World:
    """Runs plans as a model would: writes slots, reads whole contexts, and draws a token that the context decides."""

    def __init__(
        self,
        *,
        num_pages: int,
        num_rows: int = 8,
        budget: int = 16,
        caching: bool = True,
        max_len: int = 64,
        crowded: bool = False,
        ahead: bool = False,
        min_paced_tokens: int | None = None,
    ) -> None:
        self.rows = Rows(num_rows, max_len, PAGE_SIZE)
        self.scheduler = Scheduler(
            pool=PagePool(num_pages),
            rows=self.rows,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
            shares_reading=caching,
            min_spared_tokens=0,
            min_paced_tokens=min_paced_tokens,
        )
        if crowded:
            self.scheduler.forecast = NoForesight()
        self.budget = budget
        # What only the device knows: each row's token drawn last. With `ahead` results come back one step late.
        self.drawn = [0] * num_rows
        self.ahead = ahead
        self.flying: tuple[Plan, list[int]] | None = None
        self.written: dict[int, tuple[int, int]] = {}
        self.num_computed = self.num_steps = self.num_shared_steps = 0
        self.ended: list[str] = []
        self.sequences: list[Sequence] = []

    def add(
        self,
        prompt: list[int],
        *,
        max_tokens: int = 4,
        priority: int = 0,
        id: str | None = None,
        ignore_eos: bool = False,
    ) -> Sequence:
        number = len(self.sequences)
        request = Request(
            id=id or str(number),
            prompt=prompt,
            params=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
            priority=priority,
        )
        sequence = Sequence(request=request, seed=0, tokens=np.array(prompt, np.int32))
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan | None:
        plan = self.scheduler.schedule()
        self.scheduler.check()
        before, self.flying = self.flying, None
        if plan is not None:
            assert 0 < plan.lengths.sum() <= self.budget
            self.flying = plan, self._compute(plan)
            self.num_computed += int(plan.lengths.sum())
        if before is not None:
            self._land(*before)
        if self.flying is not None and not self.ahead:
            self._land(*self.flying)
            self.flying = None
        self.num_steps += 1
        return plan

    def run(self) -> None:
        while self.scheduler.num_running or self.scheduler.num_waiting or self.flying:
            assert self.num_steps < 5000, "no end in sight"
            self.step()

    def running(self) -> set[str]:
        return {sequence.request.id for sequence in self.rows.sequences if sequence is not None}

    def _land(self, plan: Plan, tokens: list[int]) -> None:
        live = self.scheduler.record(plan, np.array(tokens, np.int64))
        rows = [int(row) for row in plan.rows[plan.draws][live] if self.rows.num_known_R[row] == self.rows.limit_R[row]]
        ended = [self.rows.sequence(row) for row in rows]
        self.scheduler.close(ended)
        self.ended += [sequence.request.id for sequence in ended]
        self.scheduler.check()

    def _compute(self, plan: Plan) -> list[int]:
        """The tokens drawn, from what the slots hold: every context must be what its sequence says."""
        drawn: list[int] = []
        if plan.sharing is not None:
            self._check_sharing(plan.sharing, plan.rows.tolist(), plan.lengths.tolist())
        firsts = np.cumsum(plan.lengths) - plan.lengths
        for row, start, length, draws, first in zip(
            *(x.tolist() for x in (plan.rows, plan.starts, plan.lengths, plan.draws, firsts)), strict=True
        ):
            pages, end = self.rows.pages(row), start + length
            slots = [int(pages[i // PAGE_SIZE]) * PAGE_SIZE + i % PAGE_SIZE for i in range(end)]
            for i, token in enumerate(plan.token_ids[first : first + length].tolist()):
                self.written[slots[start + i]] = (start + i, self.drawn[row] if token < 0 else token)
            held = [self.written.get(slot, (-1, -1)) for slot in slots]
            known = self.rows.tokens(row)[:end].tolist()
            assert [position for position, _ in held] == list(range(end))
            assert [token for _, token in held[: len(known)]] == known, "a context is not what its sequence says"
            assert len(known) >= end - 1
            if draws:
                self.drawn[row] = next_token([token for _, token in held])
                drawn.append(self.drawn[row])
        return drawn

    def _check_sharing(self, sharing: Sharing, rows: list[int], lengths: list[int]) -> None:
        self.num_shared_steps += 1
        assert lengths[: len(sharing.order)] == [1] * len(sharing.order)
        for level in sharing.levels:
            for start, end, first, last in zip(
                *(x.tolist() for x in (level.starts, level.ends, level.first_columns, level.end_columns)), strict=True
            ):
                pages = [self.rows.pages(row)[first:last].tolist() for row in rows[start:end]]
                assert pages == [pages[0]] * (end - start)


class NoForesight(LengthForecast):
    """Believes that every sequence is about to end."""

    def remaining(self, generated_S: Any, most_S: Any, may_end_early_S: Any) -> Any:
        return np.zeros(len(generated_S))


def next_token(context: list[int]) -> int:
    return (sum(context) * 31 + len(context)) % 7


def expected(prompt: list[int], max_tokens: int) -> list[int]:
    context = list(prompt)
    for _ in range(max_tokens):
        context.append(next_token(context))
    return context


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_any_mix_of_work_ends_with_every_context_right(seed: int, caching: bool, ahead: bool) -> None:
    draw = random.Random(seed)
    num_pages = draw.choice([10, 13, 20, 60])
    world = World(
        num_pages=num_pages,
        num_rows=draw.choice([1, 3, 8]),
        budget=draw.choice([1, 5, 16, 64]),
        caching=caching,
        crowded=draw.random() < 0.5,
        ahead=ahead,
    )
    aborted: set[str] = set()
    for _ in range(60):
        for _ in range(draw.choice([0, 0, 1, 3])):
            shared = [draw.randrange(2)] * draw.choice([0, 4, 9])
            prompt = shared + [draw.randrange(3) for _ in range(draw.randint(1, 14))]
            # The last token drawn needs no page.
            room = num_pages * PAGE_SIZE - len(prompt) + 1
            world.add(prompt, max_tokens=min(draw.randint(1, 20), room), priority=draw.choice([0, 0, 1, 2]))
        world.step()
        live = [s for s in world.sequences if s.request.id not in {*world.ended, *aborted}]
        if live and draw.random() < 0.1:
            gone = draw.choice(live)
            world.scheduler.close([gone])
            aborted.add(gone.request.id)
    world.run()
    assert sorted([*world.ended, *aborted]) == sorted(s.request.id for s in world.sequences)
    for sequence in world.sequences:
        if sequence.request.id not in aborted:
            prompt = list(sequence.request.prompt)
            assert sequence.tokens.tolist() == expected(prompt, sequence.request.params.max_tokens)
    assert world.scheduler.pool.num_free == num_pages


def test_a_step_mixes_a_prompt_in_chunks_with_sequences_that_draw() -> None:
    world = World(num_pages=50, budget=10)
    world.add([1, 2, 3], max_tokens=20)
    world.step()
    world.add(list(range(25)), max_tokens=2)
    lengths = []
    for _ in range(3):
        plan = world.step()
        assert plan is not None
        lengths.append(plan.lengths.tolist())
        assert plan.draws[0]
    assert lengths == [[1, 9], [1, 9], [1, 7]]
    world.run()


def test_the_latest_of_the_lowest_priority_is_preempted_when_pages_run_out() -> None:
    world = World(num_pages=9, crowded=True)
    for id, priority in (("early", 1), ("late", 1), ("urgent", 0)):
        world.add([1] * 4, max_tokens=17, priority=priority, id=id)
    preempted: list[set[str]] = []
    while world.scheduler.num_running or world.scheduler.num_waiting:
        before = world.running()
        world.step()
        if gone := before - world.running() - set(world.ended):
            preempted.append(gone)
    assert preempted[0] == {"late"}
    assert {"urgent"} not in preempted
    assert world.ended[0] == "urgent"
    assert world.scheduler.num_preemptions == sum(map(len, preempted))


def test_a_preempted_sequence_gets_its_pages_back_from_the_prefix_cache() -> None:
    world = World(num_pages=12, budget=64)
    low = world.add(list(range(16)), max_tokens=4, priority=1)
    world.step()
    world.step()
    world.add([50] * 28, max_tokens=2, priority=0)
    world.step()
    assert low.row is None
    computed = world.num_computed
    world.run()
    # The urgent prompt took 7 of 12 pages and never needed the 4 full ones of the other.
    assert world.num_computed - computed < 1 + 16


def test_an_urgent_arrival_takes_the_row_of_the_lowest_and_latest() -> None:
    world = World(num_pages=50, num_rows=2)
    for id in ("first", "second"):
        world.add([1, 2], max_tokens=20, priority=5, id=id)
    world.step()
    world.add([3, 4], max_tokens=2, priority=1, id="urgent")
    world.step()
    assert world.running() == {"first", "urgent"}
    world.run()
    assert world.ended == ["urgent", "first", "second"]


def test_an_equal_arrival_waits_for_a_row() -> None:
    world = World(num_pages=50, num_rows=1)
    world.add([1, 2], max_tokens=5, id="first")
    world.step()
    world.add([1, 2], max_tokens=2, id="second")
    world.run()
    assert world.ended == ["first", "second"]
    assert world.scheduler.num_preemptions == 0


def test_nothing_is_preempted_for_an_urgent_arrival_that_would_not_fit_anyway() -> None:
    world = World(num_pages=11, budget=64)
    world.add([1] * 28, max_tokens=4, priority=0, id="equal")
    world.add([2] * 4, max_tokens=4, priority=1, id="lower")
    world.step()
    world.add([3] * 16, max_tokens=2, priority=0, id="urgent")
    world.step()
    assert world.running() == {"equal", "lower"}
    world.run()


def test_copies_of_a_prompt_are_computed_once() -> None:
    world = World(num_pages=60, budget=64)
    prompt = list(range(18))
    for _ in range(5):
        world.add(prompt, max_tokens=1)
    world.run()
    # Four full pages are shared; the two tokens behind them are each copy's own.
    assert world.num_computed == 18 + 4 * 2
    assert [s.num_cached_tokens for s in world.sequences] == [0, 16, 16, 16, 16]


def test_what_running_sequences_share_is_told_until_they_end() -> None:
    world = World(num_pages=60, budget=64)
    for i in range(5):
        world.add([*range(10), i], max_tokens=5)
    world.run()
    assert world.num_shared_steps == 4


def test_generated_tokens_are_reused_by_a_prompt_that_repeats_them() -> None:
    world = World(num_pages=60)
    first = world.add([1, 2, 3], max_tokens=10)
    world.run()
    follow = world.add([*first.tokens.tolist(), 5, 5], max_tokens=1)
    world.run()
    assert follow.num_cached_tokens == 12


def test_without_prefix_caching_nothing_is_reused() -> None:
    world = World(num_pages=60, caching=False)
    for _ in range(2):
        world.add(list(range(12)), max_tokens=1)
        world.run()
    assert world.num_computed == 24
    assert [s.num_cached_tokens for s in world.sequences] == [0, 0]


@pytest.mark.parametrize("caching", [True, False])
def test_a_crowd_in_a_small_pool_does_not_thrash(caching: bool) -> None:
    """Nobody knows how long the first are; what they teach keeps the others from being preempted often."""
    world = World(num_pages=16, num_rows=16, budget=64, caching=caching)
    for i in range(24):
        world.add([i] * 8, max_tokens=24)
    world.run()
    needed = sum(8 + 23 for _ in world.sequences)
    assert world.scheduler.num_preemptions <= 2
    assert world.num_computed < 1.2 * needed


def test_the_budget_goes_to_those_of_higher_priority_first() -> None:
    world = World(num_pages=60, budget=8)
    world.add([1] * 20, priority=3, id="low")
    world.step()
    world.add([2] * 8, priority=0, id="high")
    plan = world.step()
    assert plan is not None
    assert [world.rows.sequence(int(row)).request.id for row in plan.rows] == ["high"]
    world.run()


def test_closing_a_waiting_sequence_leaves_the_others_in_order() -> None:
    world = World(num_pages=60, num_rows=1)
    sequences = [world.add([1], max_tokens=2, id=id) for id in ("a", "b", "c", "d")]
    world.step()
    world.scheduler.close([sequences[1], sequences[2]])
    world.run()
    assert world.ended == ["a", "d"]


def test_nothing_to_do_is_no_plan() -> None:
    world: Any = World(num_pages=4)
    assert world.step() is None


def test_prompts_are_spread_over_the_steps_that_the_longest_needs() -> None:
    world = World(num_pages=500, num_rows=100, budget=512, min_paced_tokens=128)
    draw = random.Random(3)
    for _ in range(100):
        world.add([draw.randrange(1000) for _ in range(20)], max_tokens=4, ignore_eos=True)
    world.add([1, 2, 3], max_tokens=40, id="longest", ignore_eos=True)
    sizes = []
    while (plan := world.step()) is not None:
        sizes.append(int(plan.lengths.sum()))
    assert world.ended[-1] == "longest"
    assert sizes[0] == 512  # Before anything runs, nobody knows how long there is.
    assert max(sizes[1:]) <= 256
    assert len(sizes) == 40
