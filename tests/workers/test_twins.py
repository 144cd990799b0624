"""Lines of a batch that are bound to get the same answer are run once, and nothing of one is lost with another."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pressrun.engine.request import Output, TokenLogprob
from pressrun.jobs.requests import parse_body
from pressrun.jobs.twins import digest_of
from pressrun.workers.echo_engine import ByteTokenizer, EchoFactory
from pressrun.workers.engine_process import EngineProcess
from pressrun.workers.flight import MOST_ENDED, TWIN_SHARE, Flight
from pressrun.workers.twins import Answer, Answers
from pressrun.workers.worker import PressrunWorker

from .conftest import CHAT, Farm
from .inbox import Inbox, names, prepared, shard

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def flight(inbox: Inbox) -> Flight:
    return Flight(inbox, weigh=lambda line: 10.0)


def same(num_lines: int, text: str = "same", **body: Any) -> Any:
    return prepared(*[text] * num_lines, **{"temperature": 0} | body)


def digest(**changes: Any) -> bytes | None:
    return digest_of(CHAT, parse_body(CHAT, HI | changes))


def test_what_means_the_same_is_the_same_however_it_is_written() -> None:
    turned = dict(reversed(HI.items()))
    assert digest() == digest_of(CHAT, parse_body(CHAT, turned | {"temperature": 0.0, "n": 1, "stop": None}))
    assert digest(seed=3, temperature=1) == digest(seed=3, temperature=1.0)


def test_labels_make_no_difference() -> None:
    labels: dict[str, Any] = {"user": "u", "metadata": {"night": "1"}, "prompt_cache_key": "k", "store": False}
    assert digest(**labels, safety_identifier="s", service_tier="auto") == digest()


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "ho"}]},
        {"seed": 1},
        {"n": 2},
        {"max_tokens": 3},
        {"logprobs": True},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"priority": 1},
    ],
)
def test_what_differs_anywhere_is_no_twin(change: dict[str, Any]) -> None:
    assert digest(**change) not in (None, digest())


def test_where_chance_has_a_say_nothing_is_shared(flight: Flight, inbox: Inbox) -> None:
    assert digest(temperature=0.1) is None
    flight.add(shard(), same(3, temperature=1))
    flight.pump()
    assert len(inbox.requests) == 3


def test_twins_share_a_run_and_only_the_first_had_a_prompt_to_compute(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(0), same(2, n=2))
    flight.pump()
    flight.add(shard(1), same(1, n=2))
    flight.pump()
    assert len(inbox.requests) == 2
    ended = flight.take(inbox.answer_all())
    assert [flying.shard.key[1] for flying in ended] == [0, 0, 1]
    assert [flying.is_twin for flying in ended] == [False, True, True]
    assert [[output.num_cached_tokens for output in flying.outputs] for flying in ended] == [[0, 0], [10, 10], [10, 10]]
    assert [[output.id for output in flying.outputs] for flying in ended] == [["0.0", "0.1"]] * 3
    assert (len(flight), flight.weight, flight.num_batch) == (0, 0.0, 0)


def test_a_line_keeps_its_own_name_beside_its_twins(flight: Flight, inbox: Inbox) -> None:
    first, second = prepared("a", "b", temperature=0, messages=HI["messages"])
    flight.add(shard(), [first, second])
    flight.pump()
    ended = flight.take(inbox.answer_all())
    assert [(flying.prepared.line.custom_id, flying.prepared.line.index) for flying in ended] == [("a", 0), ("b", 1)]


def test_a_later_twin_is_answered_without_the_engine(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(0), same(1))
    flight.pump()
    flight.take(inbox.answer_all())
    flight.add(shard(1), same(1))
    assert flight.num_ended
    flight.pump()
    (late,) = flight.take([])
    assert (inbox.requests, late.is_twin, late.outputs[0].token_ids) == ({}, True, [1])
    assert not flight.num_ended


def test_other_batches_and_jobs_share_nothing(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(0), same(1))
    flight.add(shard(0, batch_id="batch_y"), same(1))
    flight.add(shard(1, interactive=True), same(1))
    flight.add(shard(2, interactive=True), same(1))
    flight.pump()
    assert len(inbox.requests) == 4
    flight.take(inbox.answer_all())
    flight.add(shard(0, batch_id="batch_z"), same(1))
    flight.add(shard(3, interactive=True), same(1))
    flight.pump()
    assert len(inbox.requests) == 2


def test_what_is_run_again_from_another_copy_is_run_afresh(flight: Flight, inbox: Inbox) -> None:
    first, again = shard(0), shard(0)
    again.claim = replace(again.claim, batch=replace(again.claim.batch, arranged=True))
    flight.add(first, same(1))
    flight.pump()
    flight.take(inbox.answer_all())
    flight.add(again, same(1))
    flight.pump()
    assert len(inbox.requests) == 1


def test_many_lines_that_wait_for_one_run_hold_one_prompt(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), same(3, "x" * 500))
    flight.pump()
    ended = flight.take(inbox.answer_all())
    assert len(ended) == 3
    assert len({id(flying.prepared.prompts) for flying in ended}) == 1
    assert len({id(flying.prepared.line.body) for flying in ended}) == 1


def test_a_great_many_twins_end_in_portions(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), same(2 * MOST_ENDED + 1))
    flight.pump()
    sizes = [len(flight.take(inbox.answer_all()))]
    while flight.num_ended:
        sizes.append(len(flight.take([])))
    assert sizes == [MOST_ENDED, MOST_ENDED, 1]


def test_a_run_goes_on_for_the_twins_of_a_line_that_is_dropped(flight: Flight, inbox: Inbox) -> None:
    lost, kept = shard(0), shard(1)
    flight.add(lost, same(1))
    flight.add(kept, same(2))
    flight.pump()
    flight.drop(lost)
    ended = flight.take(inbox.answer_all())
    assert [(flying.shard, flying.is_twin) for flying in ended] == [(kept, False), (kept, True)]


def test_a_run_that_nobody_waits_for_is_aborted(flight: Flight, inbox: Inbox) -> None:
    lost, also_lost = shard(0), shard(1)
    flight.add(lost, same(1, n=2))
    flight.add(also_lost, same(1, n=2))
    flight.pump()
    flight.drop(lost)
    assert len(inbox.requests) == 2
    flight.drop(also_lost)
    assert (inbox.requests, flight.num_inside, flight.weight) == ({}, 0, 0.0)
    flight.add(shard(2), same(1, n=2))
    flight.pump()
    assert len(inbox.requests) == 2


def test_twins_are_hardly_any_work_but_not_none(flight: Flight) -> None:
    flight.add(shard(), same(33))
    flight.add(shard(1, interactive=True), same(1))
    assert flight.num_batch == 1 + 32 * TWIN_SHARE
    assert flight.weight == 20.0


@pytest.mark.parametrize("deadly", ["b", "z", "everything"])
def test_the_twins_of_a_deadly_line_fail_as_it_does_and_no_later_one_is_tried(
    flight: Flight, inbox: Inbox, deadly: str
) -> None:
    for index in range(3):
        flight.add(shard(index), [*same(2, "a"), *same(2, "b"), *same(2, "c")])
    ended, num_deaths = [], 0
    while len(flight):
        flight.pump()
        if deadly in inbox.prompts() or deadly == "everything":
            inbox.requests.clear()
            ended += flight.engine_died("engine_hung")
            num_deaths += 1
        else:
            ended += flight.take(inbox.answer_all())
    wanted = {"b": "b", "z": "", "everything": "abc"}[deadly]
    assert sorted(names(flying for flying in ended if flying.error)) == sorted(wanted * 6)
    assert {flying.error for flying in ended} <= {None, "engine_hung"}
    assert len(ended) == 18
    assert num_deaths <= 3 + 3 * len(wanted)
    flight.add(shard(9), same(1, "b"))
    flight.pump()
    assert inbox.requests == {}
    (late,) = flight.take([])
    assert late.error == ("engine_hung" if "b" in wanted else None)


def test_a_twin_of_a_suspect_waits_with_it(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(0), prepared("a", "b", "c", temperature=0))
    flight.pump()
    inbox.requests.clear()
    flight.engine_died()
    flight.add(shard(1), same(1, "c"))
    flight.pump()
    assert inbox.prompts() == ["a", "b"]
    flight.take(inbox.answer_all())
    flight.pump()
    assert names(flight.take(inbox.answer_all())) == ["c", "c"]


def answer(num_tokens: int, **fields: Any) -> Answer:
    return Answer(outputs=(Output(id="0.0", token_ids=[1] * num_tokens, **{"finish_reason": "stop"} | fields),))


def twin(name: str) -> tuple[str, str, bytes]:
    return "batch_x", "files/f", name.encode()


def test_the_memory_holds_so_many_answers_and_so_many_tokens() -> None:
    answers = Answers(most=3, most_tokens=10)
    for name in "abc":
        answers.keep(twin(name), answer(2))
    assert answers.find(twin("a"))
    answers.keep(twin("d"), answer(2))
    assert [name for name in "abcd" if answers.find(twin(name))] == ["a", "c", "d"]
    answers.keep(twin("long"), answer(7))
    assert [name for name in ("a", "c", "d", "long") if answers.find(twin(name))] == ["d", "long"]
    answers.keep(twin("too long"), answer(11))
    assert not any(answers.find(twin(name)) for name in ("d", "long", "too long"))
    answers.keep(twin("e"), answer(10))
    assert answers.find(twin("e"))


def test_what_is_reported_of_a_token_takes_room_too() -> None:
    entry = TokenLogprob(token_id=1, logprob=0.0, top=((1, 0.0), (2, -1.0)))
    assert answer(5, logprobs=[entry] * 5).num_tokens == 5 + 5 * 3


def test_what_the_engine_could_not_serve_is_tried_again() -> None:
    answers = Answers()
    answers.keep(twin("a"), answer(0, finish_reason="error", error="no room"))
    assert answers.find(twin("a")) is None


@pytest.fixture
def echoing(farm: Farm) -> Iterator[PressrunWorker]:
    """A worker in a thread, so that the test sees what its engine says of itself."""
    worker = PressrunWorker(farm.backend, EngineProcess(EchoFactory()), ByteTokenizer(), grace_s=0.0)
    thread = threading.Thread(target=worker.work)
    thread.start()
    farm.until(farm.cards)
    yield worker
    worker.request_stop()
    thread.join(timeout=30)


def test_a_batch_of_a_thousand_lines_that_ask_the_same_runs_one(farm: Farm, echoing: PressrunWorker) -> None:
    batch = farm.batch([farm.ask(f"c{i}", "what is what?", temperature=0) for i in range(1000)])
    output, errors = farm.results(batch)
    assert [line["custom_id"] for line in output] == [f"c{i}" for i in range(1000)]
    assert errors == []
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in output} == {"user: wh"}
    num_prompt = len("user: what is what?")
    load = echoing.engine.load
    assert load is not None
    assert (load.num_prompt_tokens, load.num_generated_tokens) == (num_prompt, 8)
    ended = farm.backend.store.batch(batch.id)
    assert (ended.counts.completed, ended.usage.input_tokens, ended.usage.output_tokens) == (
        1000,
        1000 * num_prompt,
        8000,
    )
    assert ended.usage.cached_tokens == 999 * num_prompt


def test_scattered_twins_of_an_arranged_batch_run_once_too(farm: Farm, echoing: PressrunWorker) -> None:
    draw = random.Random(0)
    documents = ["".join(draw.choices("abcdefgh", k=3000)) for _ in range(400)]
    lines = [farm.ask(f"c{i}", documents[7 * i % 400], temperature=0) for i in range(1200)]
    batch = farm.batch(lines)
    output, _ = farm.results(batch)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert farm.backend.store.batch(batch.id).arranged
    load = echoing.engine.load
    assert load is not None
    assert load.num_generated_tokens == 8 * 400


def test_twins_that_lie_all_over_a_batch_run_once_among_several_workers(farm: Farm, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    for _ in range(2):
        farm.work(step_s=0.02, max_num_seqs=4, diary=str(diary))
    asked = random.Random(1).choices(range(200), k=500) + [7] * 40  # So many of one that no shard has room.
    lines = [farm.ask(f"c{i}", f"what is {one}?", temperature=0, user=f"u{i}") for i, one in enumerate(asked)]
    output, errors = farm.results(farm.batch(lines))
    assert errors == []
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    run = [line.split(b" ", 1) for line in diary.read_bytes().splitlines()]
    assert sorted(prompt for _, prompt in run) == sorted(f"user: what is {one}?".encode() for one in set(asked))
    assert len({pid for pid, _ in run}) == 2  # Both had a share of it.


def test_the_twins_of_a_line_that_an_engine_dies_of_fail_with_it(farm: Farm) -> None:
    worker = farm.work()
    deadly = [farm.ask(f"deadly-{i}", "please kill the engine", temperature=0) for i in range(19)]  # In two shards.
    output, errors = farm.results(farm.batch([*deadly[:10], farm.ask("good"), *deadly[10:]]))
    assert [line["custom_id"] for line in output] == ["good"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (f"deadly-{i}", "engine_crashed") for i in range(19)
    ]
    assert worker.process.poll() is None
