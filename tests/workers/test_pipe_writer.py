"""What goes into a pipe that is read slowly: who is urgent overtakes."""

from __future__ import annotations

import threading
import time
from multiprocessing import Pipe

from pressrun.workers.pipe_writer import PipeWriter

MORE_THAN_A_PIPE_HOLDS = bytes(10**6)


def test_what_is_urgent_goes_before_all_that_waits() -> None:
    ours, theirs = Pipe()
    writer = PipeWriter(ours)
    writer.send(MORE_THAN_A_PIPE_HOLDS)
    assert theirs.poll(5), "it is under way, and stops there until somebody reads"
    for name in ("a", "b"):
        writer.send(name)
    for name in ("first", "second"):
        writer.send(name, urgent=True)
    assert theirs.recv() == MORE_THAN_A_PIPE_HOLDS
    assert [theirs.recv() for _ in range(4)] == ["first", "second", "a", "b"]
    assert writer.close(5)


def test_all_that_was_sent_is_written_before_it_closes() -> None:
    ours, theirs = Pipe()
    writer = PipeWriter(ours)
    for number in range(100):
        writer.send(number, urgent=number % 2 == 0)
    assert writer.close(5)
    assert sorted(theirs.recv() for _ in range(100)) == list(range(100))


def test_a_small_message_needs_no_other_thread() -> None:
    ours, theirs = Pipe()
    writer = PipeWriter(ours)
    with writer._writing:
        writer.send("later")
    for _ in range(100):
        if not writer._others:
            break
        time.sleep(0.01)
    assert theirs.recv() == "later"
    assert writer.close(5), "the thread is gone"
    writer.send("at once")
    assert theirs.recv() == "at once"


def test_a_reader_that_does_not_read_stops_nobody_and_all_comes_in_order() -> None:
    ours, theirs = Pipe()
    writer = PipeWriter(ours)
    started = time.monotonic()
    for number in range(2000):
        writer.send((number, bytes(1000)))
    assert time.monotonic() - started < 2
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.extend(theirs.recv()[0] for _ in range(2000)))
    reader.start()
    reader.join(10)
    assert found == list(range(2000))
    assert writer.close(5)
