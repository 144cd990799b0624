"""Which lines of a file are spelled the same, and how those that lie apart are brought into one shard."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest

from pressrun.jobs import cutting, twins
from pressrun.jobs.backend import Backend
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.cutting import cut
from pressrun.jobs.lines import requests_of
from pressrun.jobs.records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Batch
from pressrun.jobs.requests import parse_body
from pressrun.jobs.twins import Spellings, Twins, digest_of, spelling_of

from .conftest import MakeBackend, chat_line, encode, upload_batch
from .simulated import run_shard

HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@pytest.mark.parametrize(
    "other",
    [
        dict(reversed(HI.items())),
        HI | {"temperature": 0.0},
        HI | {"n": 1, "top_p": 1, "stop": None, "seed": None, "logit_bias": {}},
        HI | {"user": "u", "metadata": {"night": "1"}, "store": False},
    ],
)
def test_what_is_spelled_the_same_means_the_same(other: dict[str, Any]) -> None:
    assert spelling_of(CHAT, other) == spelling_of(CHAT, HI)
    assert digest_of(CHAT, parse_body(CHAT, other)) == digest_of(CHAT, parse_body(CHAT, HI))


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "ho"}]},
        {"messages": [{"role": "user", "content": "h\ud800"}]},
        {"seed": 0},
        {"n": 2},
        {"max_tokens": 3},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"anything": [10**400]},
    ],
)
def test_what_may_be_answered_otherwise_is_spelled_otherwise(change: dict[str, Any]) -> None:
    assert spelling_of(CHAT, HI | change) not in (None, spelling_of(CHAT, HI))


def test_where_chance_has_a_say_there_is_no_spelling() -> None:
    for body in ({}, {"temperature": 0.1}, {"temperature": None}, {"temperature": [0]}):
        assert spelling_of(COMPLETIONS, body) is None
    assert spelling_of(COMPLETIONS, {"seed": 3}) is not None
    assert spelling_of(EMBEDDINGS, {"input": "hi"}) is not None


def test_a_response_repeats_its_labels_and_so_they_tell_it_from_others() -> None:
    one, other = ({"input": "hi", "temperature": 0, "metadata": {"a": value}} for value in "bc")
    assert spelling_of(RESPONSES, one) != spelling_of(RESPONSES, other)


def spelled(text: str) -> Spellings:
    """A file whose lines are letters; dots are left to chance."""
    found = Spellings()
    for line, letter in enumerate(text):
        found.add(line, None if letter == "." else ord(letter) * 2**40)
    return found


def test_twins_follow_the_first_of_them() -> None:
    text = "ab.ca.bda"
    order = Twins(spelled(text).groups(), len(text)).together(range(len(text)))
    assert "".join(text[line] for line in order) == "aaabb.c.d"
    assert list(order) == [0, 4, 8, 1, 6, 2, 3, 5, 7]


def test_a_file_of_too_many_lines_is_not_searched_for_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(spelled("aa").groups()) == [[0, 1]]
    monkeypatch.setattr(twins, "MOST_LINES", 3)
    assert list(spelled("aab").groups()) == [[0, 1]]
    assert list(spelled("aabaa").groups()) == []


def shards_of(text: str, shard_lines: int, size: int = 10) -> list[str]:
    """How lines that are letters, twins side by side, are cut."""
    groups = ["".join(group) for _, group in groupby(text)]
    shards = cut(((size, i > 0) for group in groups for i in range(len(group))), shard_lines)
    for number, shard in enumerate(shards):
        assert (shard.index, shard.offset, shard.size) == (number, size * shard.first_line, size * shard.num_lines)
    return [text[shard.first_line :][: shard.num_lines] for shard in shards]


def test_no_group_of_twins_is_divided_that_a_shard_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_TWINS", 6)
    assert shards_of("abcdefghi", 4) == ["abcd", "efgh", "i"]
    assert shards_of("abbccdddef", 4) == ["abb", "cc", "ddde", "f"]
    assert shards_of("abbcccddd", 4) == ["abb", "ccc", "ddd"]
    assert shards_of("abbbbbcd", 4) == ["a", "bbbbb", "cd"]
    assert shards_of("a" + 13 * "b" + "c", 4) == ["a", 6 * "b", 6 * "b", "b", "c"]
    assert shards_of(9 * "b", 8) == [8 * "b", "b"]


def test_a_shard_holds_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_SHARD_BYTES", 30)
    assert shards_of("abcd", 64) == ["abc", "d"]
    assert shards_of("abbbbc", 64) == ["a", "bbb", "b", "c"]
    assert shards_of("abb", 64, size=31) == ["a", "b", "b"]


def texts_of(backend: Backend, batch: Batch) -> list[list[str]]:
    """What the lines of each shard ask."""
    batch = backend.store.batch(batch.id)
    shards = backend.shards.geometry(batch.id).values()
    lines = [list(requests_of(backend.blobs, batch, shard)) for shard in shards]
    return [[line.body["messages"][0]["content"] for line in shard] for shard in lines]


def asking(texts: str, **body: Any) -> list[dict[str, Any]]:
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [chat_line(f"c{i:03}", messages=one, **body) for i, one in enumerate(messages)]


def test_a_batch_is_run_with_its_twins_in_one_shard_and_answered_in_the_files_order(backend: Backend) -> None:
    lines = asking("abcdefghaaaaaijklhm", temperature=0)
    batch = upload_batch(backend, lines)
    validate_batch(backend, batch.id)
    assert texts_of(backend, batch) == [list("aaaaaa"), list("bcde"), list("fghh"), list("ijkl"), list("m")]
    copy = b"".join(backend.blobs.open(backend.store.batch(batch.id).arranged_blob))
    assert sorted(line.split(b"\t")[1] for line in copy.splitlines()) == sorted(encode(*lines).splitlines())
    while left := backend.shards.unsealed(batch.id):
        run_shard(backend, batch.id, left[0], seed=left[0])
    done = backend.store.batch(batch.id)
    found = {}
    for file_id in (done.output_file_id, done.error_file_id):
        raw = b"".join(backend.blobs.open(backend.store.file(file_id).blob)).splitlines()
        names = [json.loads(line)["custom_id"] for line in raw]
        assert names == sorted(names)
        found |= dict.fromkeys(names)
    assert sorted(found) == [line["custom_id"] for line in lines]


@pytest.mark.parametrize(
    ("texts", "body"),
    [
        ("aabbccdd", {"temperature": 0}),  # No two of them lie in different shards.
        ("abcdabcd", {"temperature": 1}),
        ("abcdefgh", {"temperature": 0}),
    ],
)
def test_where_no_twins_lie_apart_the_file_itself_is_run(backend: Backend, texts: str, body: dict[str, Any]) -> None:
    batch = upload_batch(backend, asking(texts, **body))
    validate_batch(backend, batch.id)
    assert not backend.store.batch(batch.id).arranged
    assert texts_of(backend, batch) == [list(texts[:4]), list(texts[4:])]


def test_fewer_twins_than_a_copy_costs_are_left_where_they_are(make_backend: MakeBackend) -> None:
    backend = make_backend(shard_lines=64)
    several = asking("a" + "".join(chr(1000 + i) for i in range(2500)) + "a", temperature=0)
    batch = upload_batch(backend, several)
    validate_batch(backend, batch.id)
    assert not backend.store.batch(batch.id).arranged
    batch = upload_batch(backend, several[:1] + several[2002:])
    validate_batch(backend, batch.id)
    assert backend.store.batch(batch.id).arranged
