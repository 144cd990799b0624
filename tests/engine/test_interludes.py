"""Urgent requests that come in the middle of a step: what they are promised, and that nobody else notices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pressrun.bench.byte_level import write_tokenizer
from pressrun.engine.errors import OutOfMemory
from pressrun.engine.pages import PagePool
from pressrun.engine.request import Output, Request, SamplingParams
from pressrun.engine.sequence import Sequence
from pressrun.engine.waiting import Waiting

from .conftest import CheckedEngine, merge
from .spelling import CHOICE

Make = Callable[..., CheckedEngine]
Ask = Callable[..., Request]


@pytest.fixture
def deep(make_model: Callable[..., Path]) -> Path:
    """A small Llama of several layers, so that a step has several pauses."""
    return make_model(num_hidden_layers=5)


def prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 256) for _ in range(draw.randint(3, longest))] for _ in range(count)]


class Attendant:
    """Adds `coming` requests while steps are under way, by chance, and gathers all that comes out."""

    def __init__(self, engine: CheckedEngine, coming: Iterable[Request], seed: int = 0) -> None:
        self.engine, self.coming, self.random = engine, list(coming), random.Random(seed)
        self.merged: dict[str, Output] = {}
        self.num_outputs: dict[str, int] = {}
        self.aborted: set[str] = set()

    def __call__(self, outputs: list[Output]) -> None:
        self.take(outputs)
        while self.coming and self.random.random() < 0.4:
            self.engine.add([self.coming.pop()])

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.merged[output.id] = merge(self.merged.get(output.id), output)
            self.num_outputs[output.id] = self.num_outputs.get(output.id, 0) + 1

    def finish(self) -> dict[str, Output]:
        while self.coming or self.engine.has_work():
            if not self.engine.has_work():
                self.engine.add([self.coming.pop()])
            self.take(self.engine.step(self))
        return self.merged


def crowd(ask: Ask) -> tuple[list[Request], list[Request]]:
    """Requests of batches and urgent ones; some begin alike, some end early, some ask for more than greedy draws."""
    common = prompts(1, 9)[0]
    styles: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 3, "top_p": 0.9},
        {"bad_words_token_ids": ((7,), (9, 8))},
        {"min_tokens": 4, "ignore_eos": False},
    ]
    batch = [
        ask(p, id=f"b{i}", **{"max_tokens": 3 + i % 17, "ignore_eos": True} | styles[i % 5])
        for i, p in enumerate(prompts(30, 1))
    ]
    urgent = [
        ask(
            (common + p) if i % 3 == 0 else p,
            id=f"u{i}",
            priority=-1000,
            stream=bool(i % 2),
            **{"max_tokens": 1 + i % 9, "ignore_eos": True} | styles[i % 5],
        )
        for i, p in enumerate(prompts(25, 2))
    ]
    return batch, urgent


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_pages": 400},
        {"num_pages": 45, "crowded": True},
        {"num_pages": 400, "enable_prefix_caching": False, "max_num_seqs": 9},
        {"num_pages": 60, "max_num_seqs": 12, "max_num_batched_tokens": 24},
    ],
)
def test_nobody_draws_anything_else_because_of_who_came_in_between(
    deep: Path, make_engine: Make, ask: Ask, late: bool, settings: dict[str, Any]
) -> None:
    batch, urgent = crowd(ask)
    roomy = make_engine(deep)
    alone = {one.id: roomy.finish([one])[one.id].token_ids for one in [*batch, *urgent]}
    for seed in range(2):
        engine = make_engine(deep, page_size=4, async_scheduling=late, **settings)
        attendant = Attendant(engine, urgent, seed)
        engine.add(batch)
        # The first makes the engine expect more.
        engine.add([attendant.coming.pop()])
        merged = attendant.finish()
        assert {id: output.token_ids for id, output in merged.items()} == alone


def test_who_is_urgent_gets_the_first_token_within_the_step_that_is_under_way(
    deep: Path, make_engine: Make, ask: Ask
) -> None:
    engine = make_engine(deep, async_scheduling=True)
    engine.add(ask(p, id=f"b{i}", max_tokens=60, ignore_eos=True) for i, p in enumerate(prompts(10, 1)))
    engine.add([ask([5, 6, 7], id="first", priority=-1000, max_tokens=1)])
    came: list[str] = []
    begun = False

    def attend(outputs: list[Output]) -> None:
        nonlocal begun
        came.extend(output.id for output in outputs)
        if not begun:
            begun = True
            engine.add([ask([8, 9, 10], id="u", priority=-1000, stream=True, max_tokens=5, ignore_eos=True)])

    engine.step(attend)
    assert begun
    assert "u" in came, "the first token came only after the step"
    engine.abort([f"b{i}" for i in range(10)] + ["u", "first"])
    while engine.has_work():
        engine.step()


def test_steps_have_no_pauses_while_nobody_urgent_has_come(deep: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(deep)
    engine.add(ask(p, id=f"b{i}") for i, p in enumerate(prompts(5, 1)))
    times: list[int] = []
    while engine.has_work():
        engine.step(lambda outputs: times.append(len(outputs)))
    assert not times


def test_a_grammar_that_is_ready_in_the_middle_of_a_step_is_followed_within_it(
    make_model: Callable[..., Path], make_engine: Make, ask: Ask
) -> None:
    model = make_model(vocab_size=320, num_hidden_layers=5)
    write_tokenizer(model, 300, {0: "<unk>", 1: "<s>", 2: "</s>"})
    engine = make_engine(model, async_scheduling=True)
    engine.finish([ask([5, 6], grammar=CHOICE)])  # Compiled once, it is ready at once.
    engine.add([ask([5, 6, 7], id="b", max_tokens=60, ignore_eos=True)])
    engine.add([ask([5, 6, 7], id="first", priority=-1000, max_tokens=1)])
    came: list[str] = []
    coming = [ask([8, 9], id="u", priority=-1000, stream=True, grammar=CHOICE)]

    def attend(outputs: list[Output]) -> None:
        came.extend(output.id for output in outputs)
        while coming:
            engine.add([coming.pop()])

    engine.step(attend)
    assert "u" in came, "it waited for the next step"
    engine.abort(["b", "u", "first"])
    while engine.has_work():
        engine.step()


def test_a_prompt_longer_than_a_step_may_be_is_not_computed_in_the_middle_of_one(
    deep: Path, make_engine: Make, ask: Ask
) -> None:
    engine = make_engine(deep, max_num_batched_tokens=16)
    launch, sizes = engine._runner.launch, []

    def noting(plan: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(plan.token_ids))
        return launch(plan, *arguments, **options)

    engine._runner.launch = noting  # type: ignore[method-assign]
    engine.add([ask([5, 6, 7], id=f"b{i}", max_tokens=9, ignore_eos=True) for i in range(3)])
    urgent = [ask(p, id=f"u{i}", priority=-1000) for i, p in enumerate(prompts(9, 3))]
    engine.add([urgent.pop()])
    assert len(Attendant(engine, urgent).finish()) == 12
    assert max(sizes) == 16


@pytest.mark.parametrize("num_rows", [1, 2, 4, 32])
def test_what_is_kept_for_urgent_requests_keeps_nobody_out_for_good(
    deep: Path, make_engine: Make, ask: Ask, num_rows: int
) -> None:
    """Each of the others fills the whole pool by itself, while urgent ones are still expected."""
    engine = make_engine(deep, page_size=4, num_pages=32, max_num_seqs=num_rows)
    batch = [ask(p, id=f"b{i}", max_tokens=4, ignore_eos=True) for i, p in enumerate([[7] * 125, [8] * 125])]
    engine.add([ask([5, 6], id="u", priority=-1000, max_tokens=3), *batch])
    attendant = Attendant(engine, [])
    for _ in range(40):
        attendant.take(engine.step(attendant))
    assert sorted(attendant.merged) == ["b0", "b1", "u"]


def test_an_engine_of_urgent_requests_alone_serves_them_all(deep: Path, make_engine: Make, ask: Ask) -> None:
    urgent = [ask(p, id=f"u{i}", priority=-1000, ignore_eos=True) for i, p in enumerate(prompts(30, 4))]
    roomy = make_engine(deep)
    alone = {one.id: roomy.finish([one])[one.id].token_ids for one in urgent}
    for num_rows in (1, 3):
        engine = make_engine(deep, page_size=4, num_pages=24, max_num_seqs=num_rows, async_scheduling=True)
        merged = Attendant(engine, urgent).finish()
        assert {id: output.token_ids for id, output in merged.items()} == alone


@pytest.mark.parametrize("late", [False, True])
def test_requests_may_be_aborted_in_the_middle_of_a_step(deep: Path, make_engine: Make, ask: Ask, late: bool) -> None:
    batch, urgent = crowd(ask)
    roomy = make_engine(deep)
    alone = {one.id: roomy.finish([one])[one.id].token_ids for one in [*batch, *urgent]}
    draw = random.Random(5)

    class Aborting(Attendant):
        def __call__(self, outputs: list[Output]) -> None:
            super().__call__(outputs)
            if draw.random() < 0.2:
                victims = draw.sample(sorted(alone), 3)
                self.aborted.update(victims)
                self.engine.abort(victims)

    engine = make_engine(deep, page_size=4, num_pages=120, async_scheduling=late)
    attendant = Aborting(engine, urgent[:-1], 1)
    engine.add([*batch, urgent[-1]])
    merged = attendant.finish()
    assert attendant.aborted
    assert merged.keys() == alone.keys()
    for id, output in merged.items():
        if output.finish_reason == "abort":
            assert id in attendant.aborted
            assert output.token_ids == alone[id][: len(output.token_ids)]
        else:
            assert output.token_ids == alone[id]


def test_an_interlude_that_finds_no_memory_is_done_without(
    deep: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, urgent = crowd(ask)
    roomy = make_engine(deep)
    alone = {one.id: roomy.finish([one])[one.id].token_ids for one in [*batch, *urgent]}
    engine = make_engine(deep, page_size=4, num_pages=400, async_scheduling=True)
    launch, refused = engine._runner.launch, []

    def tight(plan: Any, scoring: Any, *, urgent: bool = False, **options: Any) -> Any:
        if urgent:
            refused.append(plan)
            raise OutOfMemory("no room for an interlude")
        return launch(plan, scoring, **options)

    monkeypatch.setattr(engine._runner, "launch", tight)
    attendant = Attendant(engine, urgent[:-1])
    engine.add([*batch, urgent[-1]])
    merged = attendant.finish()
    assert len(refused) == 1, "it is not tried again"
    assert {id: output.token_ids for id, output in merged.items()} == alone


def test_a_batch_is_paced_while_urgent_requests_come_and_go() -> None:
    waiting = Waiting(4, lambda sequences: np.array([float(s.request.params.max_tokens) for s in sequences]))

    def sequence(priority: int) -> Sequence:
        params = SamplingParams(max_tokens=9)
        request = Request(id="", prompt=[1, 2, 3], params=params, priority=priority)
        return Sequence(request=request, seed=0, tokens=np.array([1, 2, 3], np.int32))

    for _ in range(3):
        waiting.add(sequence(0))
    waiting.first()
    waiting.pop()
    before = waiting.ahead()
    assert before is not None
    waiting.add(sequence(-1000))
    assert waiting.urgent
    assert waiting.ahead() is None
    waiting.first()
    assert waiting.pop().is_urgent
    after = waiting.ahead()
    assert after is not None
    assert after.prompt_tokens.tolist() == before.prompt_tokens.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_pages_that_are_being_written_are_not_taken(seed: int) -> None:
    draw = random.Random(seed)
    pool = PagePool(12)
    held: dict[str, Any] = {}
    for i in range(200):
        written = np.array(draw.sample(range(12), draw.randint(0, 8)), np.int64)
        match = pool.match([bytes([n]) for n in range(draw.randint(0, 3))])
        wanted = draw.randint(1, 4)
        pages = pool.take_beside(match, wanted, written)
        if pages is None:
            free = [page for page in range(12) if pool._owners[page] == 0 and page not in written.tolist()]
            assert set(match.pages) & set(written.tolist()) or len(set(free) - set(match.pages)) < wanted or pool._idle
        else:
            assert not set(pages.tolist()) & set(written.tolist())
            for place, page in enumerate(pages.tolist()[:3]):
                pool.publish(page, bytes([place]))
            held[str(i)] = pages
        if held and (pages is None or draw.random() < 0.5):
            pool.release(held.pop(draw.choice(sorted(held))))
        pool.check(held.values())


@pytest.mark.gpu
def test_on_a_gpu_nobody_draws_anything_else_either(deep: Path, make_engine: Make, ask: Ask) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    batch, urgent = crowd(ask)
    roomy = make_engine(deep, device="cpu")
    alone = {one.id: roomy.finish([one])[one.id].token_ids for one in [*batch, *urgent]}
    ways: list[dict[str, Any]] = [
        {},
        {"num_pages": 25, "crowded": True},
        {"enforce_eager": True},
        {"max_num_seqs": 9, "max_num_batched_tokens": 32},
    ]
    for way in ways:
        for seed in range(3):
            engine = make_engine(deep, device="cuda", page_size=16, **way)
            attendant = Attendant(engine, urgent[:-1], seed)
            engine.add([*batch, urgent[-1]])
            merged = attendant.finish()
            different = [id for id, output in merged.items() if output.token_ids != alone[id]]
            # Draws may differ where two candidates are as likely as float32 can tell.
            assert len(different) <= 1, (way, different)
