"""Packed files and tables become plain lines on the way in, and results go out as either; none fills the memory."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pressrun.jobs import packing, parquet
from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import UserError
from pressrun.jobs.packing import PACK, unpacked, zstd
from pressrun.jobs.submit import create_file

from .conftest import MakeBackend, chat_line, encode

PLAIN = encode(*(chat_line(f"c{i}", user=f"é{i}") for i in range(3000))) + b"\n"
CHAT = {"custom_id": ["a", "b"], "messages": [[{"role": "user", "content": "hi", "name": None}]] * 2}


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def read(filename: str, data: bytes) -> bytes:
    return b"".join(unpacked(filename, pieces(data))[1])


def table(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read("in.parquet", table(columns)).splitlines()]


@pytest.mark.parametrize(("name", "pack"), [("in.jsonl.gz", gzip.compress), ("in.jsonl.zst", zstd.compress)])
def test_a_packed_file_is_kept_as_its_lines(backend: Backend, name: str, pack: Any) -> None:
    for data in (pack(PLAIN), pack(PLAIN[:70_000]) + pack(PLAIN[70_000:])):
        file = create_file(backend, filename=name, purpose="batch", chunks=pieces(data))
        assert (file.filename, file.bytes) == ("in.jsonl", len(PLAIN))
        assert b"".join(backend.blobs.open(file.blob)) == PLAIN
    as_it_is = create_file(backend, filename=name, purpose="user_data", chunks=pieces(pack(PLAIN)))
    assert (as_it_is.filename, as_it_is.bytes) == (name, len(pack(PLAIN)))


@pytest.mark.parametrize(("name", "pack"), [("in.jsonl.gz", gzip.compress), ("in.jsonl.zst", zstd.compress)])
def test_a_packed_file_that_is_cut_or_something_else_is_refused(backend: Backend, name: str, pack: Any) -> None:
    for data in (pack(PLAIN)[:-9], PLAIN, pack(PLAIN) + b"rubbish"):
        with pytest.raises(UserError, match="cannot be unpacked as") as refused:
            create_file(backend, filename=name, purpose="batch", chunks=pieces(data))
        assert refused.value.param == "file"
    assert list(backend.blobs.list("files")) == []


@pytest.mark.parametrize(("name", "pack"), [("in.jsonl.gz", gzip.compress), ("in.jsonl.zst", zstd.compress)])
def test_a_small_file_that_unpacks_to_a_large_one_stops_at_the_limit(
    make_backend: MakeBackend, name: str, pack: Any
) -> None:
    backend = make_backend(max_batch_bytes=20 * 2**20)
    bomb = pack(PLAIN + b" " * (300 * 2**20))
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(UserError, match="PRESSRUN_MAX_BATCH_BYTES") as refused:
        create_file(backend, filename=name, purpose="batch", chunks=[bomb])
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()
    assert refused.value.status == 413
    assert list(backend.blobs.list("files")) == []


def test_another_kind_of_file_is_refused_with_those_that_are_taken() -> None:
    with pytest.raises(UserError, match=r"Must be .jsonl, not 'a.csv'.*\.jsonl, \.jsonl\.gz, \.jsonl\.zst, \.parquet"):
        unpacked("a.csv", [])


def test_columns_of_a_table_are_the_fields_of_a_body_and_a_null_is_none() -> None:
    assert rows(CHAT | {"model": ["m", "m"], "max_tokens": [3, None], "stop": [["x"], []]}) == [
        chat_line("a", max_tokens=3, stop=["x"]),
        chat_line("b", stop=[]),
    ]
    (line,) = rows({"custom_id": ["a"], "prompt": ["hi"], "temperature": [0.5]})
    assert (line["url"], line["body"]) == ("/v1/completions", {"prompt": "hi", "temperature": 0.5})


@pytest.mark.parametrize("as_text", [True, False])
def test_a_table_may_have_whole_bodies(as_text: bool) -> None:
    lines = [chat_line("a"), chat_line("b")]
    bodies = [json.dumps(line["body"]) if as_text else line["body"] for line in lines]
    columns = {"custom_id": ["a", "b"], "url": [line["url"] for line in lines], "body": bodies}
    assert rows(columns) == rows(columns | {"method": ["POST", None]}) == [{"method": "POST"} | line for line in lines]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": ["x"]}, "it lacks the column 'custom_id'"),
        ({"custom_id": ["a"]}, "one of the columns 'body', 'messages' and 'prompt'"),
        (CHAT | {"prompt": ["x", "y"]}, "one of the columns"),
        ({"custom_id": ["a"], "body": ["{}"]}, "lacks 'url'"),
        ({"custom_id": ["a"], "body": ["{}"], "url": ["u"], "model": ["m"]}, "a column 'model', which is none of"),
        (CHAT | {"url": ["u", "u"]}, "a column 'url', which belongs to a column 'body'"),
        ({"custom_id": ["a", "b"], "url": ["u", "u"], "body": ["{}", "{"]}, "'body' of row 2 is not a JSON object"),
        ({"custom_id": ["a"], "prompt": [b"raw"]}, "row 1 holds what JSON cannot say"),
        ({"custom_id": ["a"], "prompt": ["x"], "temperature": [float("nan")]}, "row 1 holds what JSON cannot say"),
    ],
)
def test_a_table_of_something_else_is_refused_with_its_row_or_column(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        rows(columns)
    assert reason in refused.value.message
    assert (refused.value.param, refused.value.code) == ("file", "invalid_table")


def test_a_file_that_is_no_table_is_refused() -> None:
    whole = table(CHAT)
    for data in (b"not a table at all", whole[:-20], whole[:4] + bytes(50) + whole[54:]):
        with pytest.raises(UserError, match="cannot be read as a table of requests"):
            read("in.parquet", data)


def test_a_table_that_unpacks_to_more_than_memory_ends_its_reader_alone(tmp_path: Path) -> None:
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 1000), pa.array(["y" * (100 * 2**20)]))
    bomb = table({"custom_id": [str(i) for i in range(1000)], "prompt": large}, compression="zstd", store_schema=False)
    assert len(bomb) < 2**20
    with pytest.raises(UserError, match="takes too much memory, or breaks the reader"):
        read("in.parquet", bomb)


def test_a_reader_of_a_table_ends_when_nobody_wants_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["x" * 1000] * 20_000
    chunks = iter(unpacked("in.parquet", [table({"custom_id": [str(i) for i in range(20_000)], "prompt": prompts})])[1])
    assert next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert [parquet.READERS.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    parquet.READERS.release(2)


def test_of_many_tables_at_once_those_that_would_wait_long_are_asked_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet, "BUSY_S", 0.1)
    with parquet.READERS, parquet.READERS, pytest.raises(UserError) as refused:
        read("in.parquet", table(CHAT))
    assert (refused.value.status, refused.value.code) == (503, "server_busy")
    assert read("in.parquet", table(CHAT))


@pytest.mark.parametrize(("form", "unpack"), [("jsonl.gz", gzip.decompress), ("jsonl.zst", zstd.decompress)])
def test_results_are_packed_as_they_go(form: str, unpack: Any) -> None:
    assert unpack(b"".join(PACK[form](pieces(PLAIN)))) == PLAIN


def test_results_become_a_table_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_LINES", 2)
    answered = {"status_code": 200, "request_id": "r", "body": {"text": "é"}}
    lines = [
        {"id": "1", "custom_id": "a", "response": answered, "error": None},
        {"id": "2", "custom_id": "b", "response": None, "error": {"code": "batch_expired", "message": "late"}},
        {"id": "3", "custom_id": "c", "response": answered, "error": None},
    ]
    raw = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = pq.ParquetFile(io.BytesIO(b"".join(PACK["parquet"](pieces(raw, 50)))))
    assert file.metadata.num_row_groups == 2
    found = file.read().to_pylist()
    assert [(row["id"], row["custom_id"], row["status_code"], row["request_id"]) for row in found] == [
        ("1", "a", 200, "r"),
        ("2", "b", None, None),
        ("3", "c", 200, "r"),
    ]
    assert json.loads(found[0]["body"]) == {"text": "é"}
    assert json.loads(found[1]["error"])["code"] == "batch_expired"
    assert found[0]["error"] is found[1]["body"] is None
    assert pq.ParquetFile(io.BytesIO(b"".join(PACK["parquet"]([])))).metadata.num_rows == 0


def test_without_pyarrow_a_table_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'pressrun\[parquet\]'"):
        read("in.parquet", table(CHAT))
    with pytest.raises(UserError, match=r"pip install 'pressrun\[parquet\]'"):
        packing.PACK["parquet"]([])
