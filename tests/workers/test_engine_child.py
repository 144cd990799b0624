"""The loop in the engine's process: who is taken in when."""

from __future__ import annotations

import time
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from pressrun.engine.request import Attend, Output, Request, SamplingParams
from pressrun.workers.echo_engine import EchoEngine
from pressrun.workers.engine_child import MOST_AT_A_LOOK, MOST_BETWEEN_STEPS, MOST_IN_MESSAGE, Command, EngineLoop


class Recording(EchoEngine):
    """Notes how many requests are added at once; attends in the middle of each step, and closes after `num_steps`."""

    def __init__(self, inbox: SimpleQueue[Command | None], num_steps: int, *, attends: bool = True) -> None:
        super().__init__(max_num_seqs=4)
        self.inbox, self.num_steps, self.attends = inbox, num_steps, attends
        self.added: list[list[str]] = []
        self.aborted: list[str] = []
        self.in_between: Command | None = None

    def add(self, requests: Any) -> None:
        if requests:
            self.added.append([request.id for request in requests])
        super().add(requests)

    def abort(self, ids: Any) -> None:
        self.aborted += ids
        super().abort(ids)

    def step(self, attend: Attend | None = None) -> list[Output]:
        assert attend is not None
        if self.in_between is not None:
            self.inbox.put(self.in_between)
            self.in_between = None
        if self.attends:
            attend([])
        self.num_steps -= 1
        if not self.num_steps:
            self.inbox.put(None)
        return super().step(attend)


def request(name: str, priority: int = 0) -> Request:
    return Request(id=name, prompt=[1, 2, 3], params=SamplingParams(max_tokens=3), priority=priority)


def test_an_idle_engine_takes_all_and_one_that_looks_for_the_urgent_few_at_a_time() -> None:
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    outbox: SimpleQueue[Any] = SimpleQueue()
    engine = Recording(inbox, num_steps=4)
    inbox.put(Command(add=tuple(request(f"a{i}") for i in range(100))))
    engine.in_between = Command(
        add=(*(request(f"b{i}") for i in range(3 * MOST_AT_A_LOOK)), request("urgent", priority=-1000))
    )
    EngineLoop(engine, inbox, outbox.put).run()
    assert [len(names) for names in engine.added] == [100, 1, MOST_AT_A_LOOK, MOST_AT_A_LOOK, MOST_AT_A_LOOK]
    assert engine.added[1] == ["urgent"], "it waits for nobody"
    loads = [outbox.get_nowait().load for _ in range(outbox.qsize())]
    assert max(load.num_waiting for load in loads) >= 3 * MOST_AT_A_LOOK


def test_a_busy_engine_that_nobody_waits_for_takes_many_between_steps() -> None:
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    engine = Recording(inbox, num_steps=4, attends=False)
    inbox.put(Command(add=tuple(request(f"a{i}") for i in range(100))))
    engine.in_between = Command(add=tuple(request(f"b{i}") for i in range(MOST_BETWEEN_STEPS + 10)))
    EngineLoop(engine, inbox, SimpleQueue[Any]().put).run()
    assert [len(names) for names in engine.added] == [100, MOST_BETWEEN_STEPS, 10]


def test_who_waits_outside_can_be_aborted() -> None:
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    engine = Recording(inbox, num_steps=3)
    inbox.put(Command(add=(request("a"), *(request(f"c{i}") for i in range(10)))))
    engine.in_between = Command(add=tuple(request(f"b{i}") for i in range(100)), abort=("b99",))
    EngineLoop(engine, inbox, SimpleQueue[Any]().put).run()
    assert engine.aborted == ["b99"]
    assert sum(map(len, engine.added)) == 111
    assert "b99" not in [entry[2].id for entry in engine._waiting]


def test_what_a_step_gives_comes_in_small_messages_with_the_streams_first() -> None:
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    outbox: SimpleQueue[Any] = SimpleQueue()
    engine = Recording(inbox, num_steps=1)
    engine.max_num_seqs = 1000
    lines = [request(f"a{i}") for i in range(2 * MOST_IN_MESSAGE)]
    inbox.put(Command(add=(*lines, replace(request("stream"), stream=True))))
    EngineLoop(engine, inbox, outbox.put).run()
    messages = [outbox.get_nowait() for _ in range(outbox.qsize())]
    assert [len(message.outputs) for message in messages] == [MOST_IN_MESSAGE, MOST_IN_MESSAGE, 1]
    assert messages[0].outputs[0].id == "stream"


def test_who_is_urgent_is_told_when_it_came_and_left_and_nobody_else() -> None:
    inbox: SimpleQueue[Command | None] = SimpleQueue()
    outbox: SimpleQueue[Any] = SimpleQueue()
    engine = Recording(inbox, num_steps=3)
    started = time.monotonic()
    inbox.put(Command(add=(request("line"), replace(request("urgent", priority=-1000), stream=True))))
    EngineLoop(engine, inbox, outbox.put).run()
    outputs = [output for _ in range(outbox.qsize()) for output in outbox.get_nowait().outputs]
    first, *others = [output.passage for output in outputs if output.id == "urgent"]
    assert first is not None
    assert started <= first.came_at <= first.left_at <= time.monotonic()
    assert others == [None, None]
    assert [output.passage for output in outputs if output.id == "line"] == [None]
