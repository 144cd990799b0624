"""What goes into a pipe that is read slowly: who is urgent overtakes."""

from __future__ import annotations

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
