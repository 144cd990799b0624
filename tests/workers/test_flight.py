"""Lines on their way through an engine that may die: what is sent when, and which line is found out."""

from __future__ import annotations

import pytest

from pressrun.engine.request import URGENT, Output
from pressrun.jobs.live import Call
from pressrun.workers.flight import MOST_ENDED, Flight
from pressrun.workers.online import OnlineRequest

from .inbox import Inbox, names, prepared, shard, streamed


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def flight(inbox: Inbox) -> Flight:
    return Flight(inbox, weigh=lambda line: 10.0)


def test_a_line_is_complete_with_its_last_choice(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), prepared("a", "b", n=2))
    flight.pump()
    outputs = inbox.answer_all()
    assert len(outputs) == 4
    assert flight.take(outputs[:1] + outputs[2:3]) == []
    assert names(flight.take(outputs[1:2])) == ["a"]
    assert names(flight.take(outputs[3:])) == ["b"]
    assert (len(flight), flight.weight) == (0, 0.0)


def test_interactive_lines_go_ahead(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(0), prepared("batch"))
    flight.add(shard(1, interactive=True), prepared("job"))
    flight.pump()
    batch, job = (request.priority for request in inbox.requests.values())
    assert job < batch
    assert flight.num_interactive == 1


def test_a_dropped_shard_is_aborted_and_late_answers_are_ignored(flight: Flight, inbox: Inbox) -> None:
    lost, kept = shard(0), shard(1)
    flight.add(lost, prepared("a"))
    flight.add(kept, prepared("b"))
    flight.pump()
    late = [Output(id=next(iter(inbox.requests)), token_ids=[1], finish_reason="stop")]
    flight.add(lost, prepared("not sent yet"))
    flight.drop(lost)
    flight.pump()
    assert inbox.prompts() == ["b"]
    assert flight.take(late) == []
    assert len(flight) == 1


def test_after_a_death_the_lines_go_in_halves_and_new_ones_wait(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), prepared("a", "b", "c", "d", "e"))
    flight.pump()
    inbox.requests.clear()
    assert flight.engine_died() == []
    flight.add(shard(1), prepared("new"))
    flight.pump()
    assert inbox.prompts() == ["a", "b", "c"]
    flight.pump()
    assert len(inbox.requests) == 3
    flight.take(inbox.answer_all())
    flight.pump()
    assert inbox.prompts() == ["d", "e"]
    flight.take(inbox.answer_all())
    flight.pump()
    assert inbox.prompts() == ["new"]


@pytest.mark.parametrize("deadly", [{3}, {0}, {6}, {1, 5}, set(range(7))])
def test_exactly_the_deadly_lines_are_given_up(flight: Flight, inbox: Inbox, deadly: set[int]) -> None:
    flight.add(shard(), prepared(*map(str, range(7))))
    given_up: list[str] = []
    answered: list[str] = []
    for _ in range(100):
        if not len(flight):
            break
        flight.pump()
        if any(int(prompt) in deadly for prompt in inbox.prompts()):
            inbox.requests.clear()
            given_up += names(flight.engine_died())
        else:
            answered += names(flight.take(inbox.answer_all()))
    assert sorted(given_up) == sorted(map(str, deadly))
    assert sorted(answered) == sorted(str(i) for i in range(7) if i not in deadly)


def test_one_death_alone_may_be_an_accident(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), prepared("unlucky"))
    flight.pump()
    inbox.requests.clear()
    assert flight.engine_died() == []
    flight.pump()
    assert names(flight.take(inbox.answer_all())) == ["unlucky"]


def test_suspects_that_are_dropped_are_not_sent_again(flight: Flight, inbox: Inbox) -> None:
    lost = shard()
    flight.add(lost, prepared("a", "b"))
    flight.pump()
    inbox.requests.clear()
    flight.engine_died()
    flight.drop(lost)
    flight.add(shard(1), prepared("new"))
    for _ in range(3):
        flight.pump()
    assert inbox.prompts() == ["new"]


class Listener:
    """An online request, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, list[int]]] = []
        call = Call(id="live_x", attempt=1, api="a", url="/v1/chat/completions", model="m", body={})
        self.request = OnlineRequest(call=call, on_tokens=self._hear)

    def _hear(self, request: OnlineRequest, place: int, output: Output) -> None:
        self.heard.append((place, list(output.token_ids)))


def test_a_stream_is_heard_piece_by_piece_and_ends_with_the_whole(flight: Flight, inbox: Inbox) -> None:
    listener = Listener()
    flight.add(listener.request, streamed("a"))
    flight.add(shard(), prepared("b"))
    flight.pump()
    stream, _ = inbox.requests.values()
    assert stream.stream
    assert stream.priority < URGENT
    assert flight.take([Output(id=stream.id, token_ids=[1]), Output(id=stream.id, token_ids=[2, 3])]) == []
    (ended,) = flight.take([Output(id=stream.id, token_ids=[4], finish_reason="length")])
    assert listener.heard == [(0, [1]), (0, [2, 3]), (0, [4])]
    assert ended.outputs[0].token_ids == [1, 2, 3, 4]
    assert len(flight) == 1


def test_when_the_engine_dies_a_stream_that_was_heard_ends_and_all_others_run_again(
    flight: Flight, inbox: Inbox
) -> None:
    heard, unheard = Listener(), Listener()
    flight.add(heard.request, streamed("a"))
    flight.add(unheard.request, streamed("b"))
    flight.add(shard(), prepared("c"))
    flight.pump()
    flight.take([Output(id=next(iter(inbox.requests)), token_ids=[1])])
    inbox.requests.clear()
    assert flight.engine_died() == []
    assert flight.num_ended
    assert [(line.prepared.line.custom_id, line.error) for line in flight.take([])] == [("a", "engine_crashed")]
    answered = []
    while len(flight):
        flight.pump()
        answered += names(flight.take(inbox.answer_all()))
    assert sorted(answered) == ["b", "c"]


def test_a_stream_that_nobody_waits_for_is_aborted(flight: Flight, inbox: Inbox) -> None:
    listener = Listener()
    flight.add(listener.request, streamed("a", n=3))
    flight.pump()
    assert len(inbox.requests) == 3
    flight.drop(listener.request)
    assert (inbox.requests, len(flight), flight.weight) == ({}, 0, 0.0)


def test_lines_that_have_ended_are_in_hand_until_they_are_taken(flight: Flight, inbox: Inbox) -> None:
    flight.add(shard(), prepared(*map(str, range(3 * MOST_ENDED))))
    flight.pump()
    assert flight.num_batch == 3 * MOST_ENDED
    assert len(flight.take(inbox.answer_all())) == MOST_ENDED
    assert (flight.num_batch, flight.num_ended) == (2 * MOST_ENDED, 2 * MOST_ENDED)
    flight.take([])
    flight.take([])
    assert flight.num_batch == 0
