"""Which order a batch's lines are run in, and how their results get back into the file's."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from pressrun.jobs import arranging
from pressrun.jobs.arranging import Beginnings, Layout, arranged_copy, in_file_order, prompt_bytes
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.errors import BlobsUnavailable
from pressrun.jobs.lines import label, split_label
from pressrun.jobs.records import Batch
from pressrun.jobs.redis_keys import batch_key

from .conftest import MakeBackend, chat_line, encode, upload_batch
from .simulated import run_shard


def beginnings_of(prompts: list[str]) -> Beginnings:
    found = Beginnings()
    for prompt in prompts:
        found.add({"prompt": prompt})
    return found


def documents(num_documents: int, num_questions: int, size: int) -> list[str]:
    """Questions about documents, document after document."""
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=size)) for _ in range(num_documents)]
    return [f"{text} question {i}" for text in texts for i in range(num_questions)]


def shuffled(prompts: list[str]) -> list[str]:
    return random.Random(0).sample(prompts, len(prompts))


def num_changes(prompts: list[str], order: list[int], size: int = 500) -> int:
    """How often the first bytes change."""
    return sum(prompts[a][:size] != prompts[b][:size] for a, b in pairwise(order))


def test_lines_about_one_document_are_brought_together() -> None:
    prompts = shuffled(documents(300, 8, 3000))
    order = beginnings_of(prompts).order()
    assert order is not None
    assert sorted(order) == list(range(2400))
    assert num_changes(prompts, order) == 299
    # Among equals the file's order stays.
    same = [index for index in order if prompts[index][:500] == prompts[order[0]][:500]]
    assert same == sorted(same)


@pytest.mark.parametrize(
    "prompts",
    [
        documents(300, 8, 3000),  # together already
        shuffled(documents(20, 100, 3000)),  # so few that all of them come soon again
        shuffled(documents(1, 2400, 3000)),
        shuffled(documents(2400, 1, 3000)),  # nothing in common
        shuffled(documents(300, 8, 400)),  # next to nothing
        shuffled(documents(100, 8, 3000)),  # a short file
    ],
    ids=["together", "few", "one", "different", "short prompts", "short file"],
)
def test_the_files_order_stays_where_another_gains_nothing(prompts: list[str]) -> None:
    assert beginnings_of(prompts).order() is None


def test_a_file_too_long_to_be_sorted_in_memory_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = shuffled(documents(600, 4, 3000))
    assert beginnings_of(prompts).order() is not None
    monkeypatch.setattr(arranging, "MAX_LINES", 2000)
    assert beginnings_of(prompts).order() is None


def test_longer_beginnings_count_within_shorter_ones() -> None:
    draw = random.Random(2)
    heads = ["".join(draw.choices("ab", k=700)) for _ in range(2)]
    tails = ["".join(draw.choices("ab", k=4000)) for _ in range(300)]
    prompts = shuffled([heads[i % 2] + tails[i % 300] + str(i) for i in range(2400)])
    order = beginnings_of(prompts).order()
    assert order is not None
    assert num_changes(prompts, order) == 1
    assert num_changes(prompts, order, 4000) == 299


def test_what_a_request_begins_with() -> None:
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    chat = {"messages": [{"role": "system", "content": parts}, {"role": "user", "content": "h\ud800"}]}
    assert prompt_bytes(chat) == b"Be brief\0h\xed\xa0\x80"
    assert prompt_bytes({"prompt": "a"}) == prompt_bytes({"prompt": ["a", "b"]}) == b"a"
    assert prompt_bytes({"prompt": [1, 2]}) == prompt_bytes({"prompt": [[1, 2], [3]]}) == b"1 2"
    odd: list[dict[str, Any]] = [{}, {"messages": 3}, {"messages": [3, {"content": None}]}, {"prompt": {}}]
    assert [prompt_bytes(body) for body in odd] == [b"", b"", b"", b""]


def test_a_copy_holds_every_line_behind_its_place(tmp_path: Path) -> None:
    raw = "zero\n \none\r\nzwölf".encode()
    layout = Layout([raw[:9], raw[9:]], longest=9)
    copy = b"".join(arranged_copy([raw[:7], raw[7:]], layout, [2, 0, 1], tmp_path))
    assert copy == "2\tzwölf\n0\tzero\n1\tone\r\n".encode()
    assert [len(line) + 1 for line in copy[:-1].split(b"\n")] == [layout.line_size(index) for index in (2, 0, 1)]


@pytest.mark.parametrize("room", [None, 0, 100, 4000])
def test_results_go_back_into_the_files_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    """Also where the temporary file finds no room, or not for all of them."""
    numbers = list(range(500))
    random.Random(3).shuffle(numbers)
    segments = {
        f"{start:03}": b"".join(label(number) + b"line\t%d\n" % number for number in sorted(numbers[start : start + 7]))
        for start in range(0, 500, 7)
    }

    def open_blob(key: str, offset: int = 0, size: int | None = None) -> list[bytes]:
        part = segments[key][offset:][:size]
        return [part[:5], part[5:]]

    if room is not None:
        small = SmallFile(room)
        monkeypatch.setattr(arranging.tempfile, "TemporaryFile", lambda **_: small)
    lines = in_file_order(sorted(segments), open_blob, tmp_path)
    assert list(lines) == [(number, b"line\t%d\n" % number) for number in range(500)]
    assert split_label(b"17\t{a\tb}") == (17, b"{a\tb}")


class SmallFile(io.BytesIO):
    """A file on a disk with so much room, which takes what it can and then nothing."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def write(self, data: Any) -> int:
        if self.tell() >= self._room:
            raise OSError("no space left")
        return super().write(data[: self._room - self.tell()])


def three_topics(number: int) -> list[dict[str, Any]]:
    """One after the other, in turn."""
    return [
        chat_line(f"c{i:03}", messages=[{"role": "user", "content": f"topic {i % 3} " * 9 + str(i)}])
        for i in range(number)
    ]


def run_to_the_end(backend: Backend, batch: Batch) -> Batch:
    for shard in backend.shards.unsealed(batch.id):
        while shard in backend.shards.unsealed(batch.id):
            run_shard(backend, batch.id, shard, seed=shard)
    return backend.store.batch(batch.id)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes in common are enough, and all others lie far away."""
    monkeypatch.setattr(arranging, "BOUNDARIES", (16, 64))
    monkeypatch.setattr(arranging, "WINDOW_BYTES", 1)


@pytest.mark.usefixtures("eager")
def test_a_batch_is_run_by_beginnings_and_answered_in_the_files_order(make_backend: MakeBackend) -> None:
    backend, lines = make_backend(shard_lines=5), three_topics(40)
    batch = upload_batch(backend, lines)
    validate_batch(backend, batch.id)
    copy = [split_label(line) for line in b"".join(backend.blobs.open(batch.arranged_blob)).splitlines()]
    assert num_changes([str(index % 3) for index in range(40)], [index for index, _ in copy]) == 2
    assert [line for _, line in sorted(copy)] == encode(*lines).splitlines()

    batch = run_to_the_end(backend, batch)
    assert batch.arranged
    for file_id in (batch.output_file_id, batch.error_file_id):
        raw = b"".join(backend.blobs.open(backend.store.file(file_id).blob))
        names = [json.loads(line)["custom_id"] for line in raw.splitlines()]
        assert names == sorted(names)
        assert backend.store.file(str(file_id)).bytes == len(raw)
    assert (batch.counts.completed + batch.counts.failed, batch.counts.unrun) == (40, 0)
    assert list(backend.blobs.list("arranged")) == list(backend.blobs.list("segments")) == []


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("error", [OSError, BlobsUnavailable, OutOfMemoryError])
def test_a_batch_whose_copy_finds_no_room_is_run_in_the_files_order(
    make_backend: MakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    backend = make_backend(shard_lines=5)
    put = backend.blobs.put

    def full(key: str, chunks: Any) -> int:
        if key.startswith("arranged/"):
            raise error("no space left")
        return put(key, chunks)

    monkeypatch.setattr(backend.blobs, "put", full)
    batch = upload_batch(backend, three_topics(40))
    validate_batch(backend, batch.id)
    batch = run_to_the_end(backend, batch)
    assert not batch.arranged
    assert batch.counts.total == batch.counts.completed + batch.counts.failed == 40
    assert "no space left" in caplog.text


@pytest.mark.usefixtures("eager")
def test_a_batch_that_is_being_wound_up_is_not_copied(make_backend: MakeBackend) -> None:
    backend = make_backend(shard_lines=5)
    batch = upload_batch(backend, three_topics(40))
    backend.store.cancel(batch.id)
    validate_batch(backend, batch.id)
    assert list(backend.blobs.list("arranged")) == []
    assert not backend.store.batch(batch.id).arranged


@pytest.mark.usefixtures("eager")
def test_a_late_validator_leaves_no_copy_of_an_ended_batch(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(shard_lines=50)
    batch = upload_batch(backend, three_topics(40))
    put = backend.blobs.put

    def overtaken(key: str, chunks: Any) -> int:
        size = put(key, chunks)
        if key.startswith("arranged/"):
            monkeypatch.setattr(backend.blobs, "put", put)
            backend.redis.delete(f"{batch_key(batch.id)}:lock")
            validate_batch(backend, batch.id)
            assert run_to_the_end(backend, batch).status == "completed"
            put(key, [b"late"])
        return size

    monkeypatch.setattr(backend.blobs, "put", overtaken)
    validate_batch(backend, batch.id)
    assert list(backend.blobs.list("arranged")) == []


def test_what_a_response_or_an_embedding_begins_with_is_known() -> None:
    assert prompt_bytes({"input": "hi"}) == b"hi"
    assert prompt_bytes({"input": ["hi", "ho"]}) == b"hi"
    assert prompt_bytes({"input": "hi", "instructions": "Be terse."}) == b"Be terse.\0hi"
    items = [{"role": "user", "content": "hi"}, {"type": "function_call_output", "output": "x"}]
    assert prompt_bytes({"instructions": "Be terse.", "input": items}) == b"Be terse.\0hi\0"
