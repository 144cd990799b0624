"""The engine's process: what goes in comes out, and every way to end is noticed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressrun.engine.request import Load, Output, Request, SamplingParams
from pressrun.workers.echo_engine import EchoEngine, EchoFactory
from pressrun.workers.engine_process import EngineDied, EngineProcess, EngineStartError
from pressrun.workers.waker import Waker


@pytest.fixture
def make() -> Iterator[Callable[..., EngineProcess]]:
    engines = []

    def start(factory: Any = None) -> EngineProcess:
        engine = EngineProcess(factory or EchoFactory())
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.stop()


def until_up(engine: EngineProcess) -> None:
    deadline = time.monotonic() + 20
    while engine.info is None:
        assert time.monotonic() < deadline
        engine.poll(0.1)


def gather(engine: EngineProcess, number: int) -> list[Output]:
    outputs: list[Output] = []
    deadline = time.monotonic() + 10
    while len(outputs) < number:
        assert time.monotonic() < deadline
        outputs += engine.poll(0.1)
    return outputs


def request(name: str, size: int = 4) -> Request:
    return Request(id=name, prompt=bytes(range(size)), params=SamplingParams(max_tokens=3))


def pid_of(engine: EngineProcess) -> int:
    assert engine.pid is not None
    return engine.pid


def test_requests_come_back_answered(make: Callable[..., EngineProcess]) -> None:
    engine = make()
    until_up(engine)
    assert engine.info is not None
    assert engine.info.vocab_size == 256
    engine.add([request(str(i)) for i in range(1000)])
    outputs = gather(engine, 1000)
    assert sorted(output.id for output in outputs) == sorted(str(i) for i in range(1000))
    assert outputs[0].token_ids == [0, 1, 2]
    assert engine.load is not None
    assert engine.load.num_waiting == 0


def test_aborted_requests_do_not_come_back(make: Callable[..., EngineProcess]) -> None:
    engine = make(EchoFactory(step_s=0.3, max_num_seqs=1))
    until_up(engine)
    engine.add([request("first"), request("second"), request("third")])
    engine.abort(["second"])
    assert [output.id for output in gather(engine, 2)] == ["first", "third"]


def test_a_killed_engine_is_reported_after_its_last_outputs_and_starts_again(
    make: Callable[..., EngineProcess],
) -> None:
    engine = make()
    until_up(engine)
    engine.add([request("a")])
    time.sleep(0.2)
    os.kill(pid_of(engine), signal.SIGKILL)
    assert [output.id for output in gather(engine, 1)] == ["a"]
    engine.add([request("into the void")])
    with pytest.raises(EngineDied, match="signal 9"):
        gather(engine, 1)
    assert not engine.running
    engine.start()
    until_up(engine)
    engine.add([request("b")])
    assert gather(engine, 1)[0].id == "b"


def test_an_engine_that_cannot_be_built_says_why(make: Callable[..., EngineProcess]) -> None:
    engine = make(partial(os.listdir, "/models/nope"))
    with pytest.raises(EngineStartError, match="No such file or directory: '/models/nope'"):
        until_up(engine)
    assert not engine.running


def test_stopping_leaves_no_process_and_the_terminal_signals_do_not_reach_it(
    make: Callable[..., EngineProcess],
) -> None:
    engine = make()
    until_up(engine)
    child = psutil.Process(pid_of(engine))
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    engine.add([request("a")])
    assert gather(engine, 1)[0].id == "a"
    engine.stop()
    assert not child.is_running()


def test_an_engine_in_the_middle_of_a_step_dies_with_its_parent() -> None:
    code = (
        "import os, signal, time\n"
        "from pressrun.workers.echo_engine import EchoFactory\n"
        "from pressrun.workers.engine_process import EngineProcess\n"
        "from pressrun.engine.request import Request, SamplingParams\n"
        "engine = EngineProcess(EchoFactory(step_s=60))\n"
        "engine.start()\n"
        "while engine.info is None: engine.poll(0.1)\n"
        "engine.add([Request(id='a', prompt=b'a', params=SamplingParams(max_tokens=1))])\n"
        "time.sleep(0.2)\n"
        "print(engine.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(result.stdout)
    deadline = time.monotonic() + 3
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_engine_that_reads_no_more_holds_nobody_up(make: Callable[..., EngineProcess]) -> None:
    engine = make()
    until_up(engine)
    child = psutil.Process(pid_of(engine))
    child.suspend()
    started = time.monotonic()
    for _ in range(20):
        engine.add([request("x", 256) for _ in range(1000)])  # A megabyte in all: more than a pipe holds.
    assert time.monotonic() - started < 2
    engine.kill()
    with pytest.raises(EngineDied, match="signal 9"):
        gather(engine, 1)
    assert not child.is_running()


def test_only_what_tells_of_something_new_is_progress(make: Callable[..., EngineProcess]) -> None:
    engine = make(EchoFactory(step_s=0.01, max_num_seqs=1))
    until_up(engine)
    assert engine.progress == 0
    engine.add([request("a"), request("b")])
    gather(engine, 2)
    done = engine.progress
    assert done >= 2
    engine.abort(["nobody"])
    engine.poll(0.3)
    engine.poll(0.3)
    assert engine.progress == done


class Settled(EchoEngine):
    """Says how many objects the garbage collection does not look at any more, in place of how many wait."""

    def load(self) -> Load:
        return replace(super().load(), num_waiting=gc.get_freeze_count())


def test_the_engine_is_not_stopped_for_garbage_to_be_looked_for_among_all_that_was_loaded(
    make: Callable[..., EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # Where its process is to find `Settled`.
    engine = make(Settled)
    until_up(engine)
    engine.add([request("a")])
    gather(engine, 1)
    assert engine.load is not None
    assert engine.load.num_waiting > 10_000


def test_a_waker_ends_the_wait(make: Callable[..., EngineProcess]) -> None:
    engine, waker = make(), Waker()
    until_up(engine)
    waker.wake()
    started = time.monotonic()
    engine.poll(5, waker)
    assert time.monotonic() - started < 1
    started = time.monotonic()
    engine.poll(0.2, waker)  # It rests again.
    assert time.monotonic() - started >= 0.19
    waker.close()
