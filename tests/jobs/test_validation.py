"""Every error of a batch file, with its line; and the cut into shards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pressrun.jobs.errors import BlobMissing
from pressrun.jobs.lines import read_requests
from pressrun.jobs.records import Batch
from pressrun.jobs.settings import Settings, load_settings
from pressrun.jobs.validation import Validated, validate

from .conftest import chat_line, encode

BATCH = Batch(
    id="batch_x",
    kind="batch",
    endpoint="/v1/chat/completions",
    input_file_id="file-x",
    completion_window="24h",
    created_at=0,
    expires_at=1,
)


def settings(**values: Any) -> Settings:
    return load_settings({}, **values)


def check(raw: bytes, chunk: int = 7, **values: Any) -> Validated:
    """Validate `raw`, read in small chunks so that lines cross their borders."""
    read = lambda: (raw[i : i + chunk] for i in range(0, len(raw), chunk))  # noqa: E731
    return validate(BATCH, read, models={"m", "m2"}, settings=settings(**values))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in chat_line("a").items() if key != name}


@pytest.mark.parametrize(
    ("line", "code", "param", "message"),
    [
        (b"{nope", "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (b"[1]", "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (b'{"a": NaN}', "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (b"\xff\xfe", "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (b"[" * 100_000, "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (without("custom_id"), "missing_required_parameter", "custom_id", "Missing required parameter: 'custom_id'."),
        (without("method"), "missing_required_parameter", "method", "Missing required parameter: 'method'."),
        (without("url"), "missing_required_parameter", "url", "Missing required parameter: 'url'."),
        (without("body"), "missing_required_parameter", "body", "Missing required parameter: 'body'."),
        (
            chat_line("a") | {"url": "/v1/completions"},
            "invalid_url",
            "url",
            "The URL provided for this request does not match the batch endpoint.",
        ),
        (chat_line("a") | {"method": "GET"}, "invalid_request", "method", "The method of a request must be POST."),
        (chat_line("a") | {"custom_id": 5}, "invalid_request", "custom_id", "custom_id must be a string."),
        (
            chat_line("a", stream=True),
            "streaming_unsupported",
            "body.stream",
            "Chat Completions: Streaming is not supported in the Batch API.",
        ),
        (
            chat_line("a", model="x"),
            "model_not_found",
            "body.model",
            "The provided model 'x' is not supported by the Batch API.",
        ),
        (chat_line("a", model=None), "invalid_request", "body.model", "Model parameter is required."),
        (chat_line("a", messages=None), "invalid_request", "body.messages", "Messages parameter is required."),
        (
            chat_line("a", model="m2"),
            "mismatched_model",
            "body.model",
            "The model 'm2' for this request does not match the rest of the batch.",
        ),
        (
            chat_line("a") | {"pressrun": 5},
            "invalid_type",
            "pressrun",
            "Invalid type for 'pressrun': expected an object, but got an integer instead.",
        ),
        (
            chat_line("a") | {"pressrun": {"timeout": 5}},
            "unknown_parameter",
            "pressrun.timeout",
            "Unknown parameter: 'pressrun.timeout'.",
        ),
        (
            chat_line("a") | {"pressrun": {"timeout_s": 0}},
            "invalid_value",
            "pressrun.timeout_s",
            "Invalid value for 'pressrun.timeout_s': input should be greater than 0.",
        ),
        (
            chat_line("a") | {"pressrun": {"timeout_s": "5"}},
            "invalid_type",
            "pressrun.timeout_s",
            "Invalid type for 'pressrun.timeout_s': expected a number, but got a string instead.",
        ),
        (
            json.dumps(chat_line("a") | {"pressrun": {"timeout_s": "X"}}).replace('"X"', "1e999").encode(),
            "invalid_value",
            "pressrun.timeout_s",
            "Invalid value for 'pressrun.timeout_s': input should be a finite number.",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_code_and_number(line: Any, code: str, param: str | None, message: str) -> None:
    result = check(encode(chat_line("first"), b"", line, chat_line("last")))
    assert [(e.line, e.code, e.param, e.message) for e in result.errors] == [(3, code, param, message)]
    assert result.shards == ()


@pytest.mark.parametrize(
    "raw",
    [
        b'\xef\xbb\xbf{"custom_id": "a"}',  # a byte order mark
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a":' * 201 + b"1" + b"}" * 201,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a": 1} {"b": 2}',
        b'{"a": \x00}',
        b'{"a": "\t"}',
        b"{'a': 1}",
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_what_only_looks_like_json_is_not(raw: bytes) -> None:
    result = check(encode(chat_line("first"), raw), chunk=1000)
    assert [(e.line, e.code) for e in result.errors] == [(2, "invalid_json_line")]


@pytest.mark.parametrize("options", [None, {}, {"timeout_s": None}, {"timeout_s": 1}, {"timeout_s": 0.5}])
def test_a_line_may_say_how_long_it_may_take(options: Any) -> None:
    raw = encode(chat_line("a") | {"pressrun": options})
    assert check(raw).errors == ()
    assert [line.options for line in read_requests([raw], first=0, longest=1000)] == [options]


@pytest.mark.parametrize("number", ["1e999", "-0.0", "1" * 4000, "1.5e-400"])
def test_a_number_that_no_field_takes_fails_its_own_line_only(number: str) -> None:
    raw = json.dumps(chat_line("b", seed="NUMBER")).replace('"NUMBER"', number).encode()
    assert check(encode(chat_line("a"), raw), chunk=1000).errors == ()


def test_what_passes_can_be_read_again_however_deep_the_reader_stands() -> None:
    nested = "[" * 190 + "]" * 190
    raw = json.dumps(chat_line("b", user="NESTED", stop="[{" * 5000)).replace('"NESTED"', nested).encode()
    assert check(raw, chunk=1000).errors == ()

    def read(depth: int) -> int:
        return read(depth - 1) if depth else len(list(read_requests([raw], first=0, longest=len(raw))))

    assert read(500) == 1


def test_custom_ids_may_hold_half_of_a_surrogate_pair_and_are_told_apart() -> None:
    lines = [chat_line(name) for name in ("\ud800", "\ud801", "\ud800", "?", "\ufffd")]
    assert [(e.line, e.code) for e in check(encode(*lines)).errors] == [(3, "duplicate_custom_id")]


def test_what_an_error_quotes_is_cut_and_can_be_sent() -> None:
    for model in ("\ud800" * 3, "x" * 100_000, ["x" * 100_000]):
        (error,) = check(encode(chat_line("a", model=model)), chunk=10_000).errors
        assert error.code == "model_not_found"
        assert len(error.message.encode()) < 1000


def test_a_repeated_custom_id_before_a_line_without_end_is_still_reported() -> None:
    raw = encode(chat_line("a"), chat_line("a"), chat_line("a", user="x" * 5000))
    result = check(raw, max_line_bytes=1024)
    assert [(e.line, e.code) for e in result.errors] == [(None, "invalid_request"), (2, "duplicate_custom_id")]


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    twice = json.dumps(chat_line("a")).encode()[:-1] + b',"custom_id":"b"}'
    assert [e.line for e in check(encode(chat_line("a"), twice)).errors] == []
    assert [e.line for e in check(encode(chat_line("b"), twice)).errors] == [2]


def test_all_errors_are_gathered_in_order_of_lines() -> None:
    result = check(encode(chat_line("a"), b"{", without("body"), chat_line("a"), chat_line("b", model="x")))
    assert [(e.line, e.code) for e in result.errors] == [
        (2, "invalid_json_line"),
        (3, "missing_required_parameter"),
        (3, "duplicate_custom_id"),
        (4, "duplicate_custom_id"),
        (5, "model_not_found"),
    ]


def test_every_repetition_of_a_custom_id_is_reported_but_not_its_first() -> None:
    result = check(encode(*[chat_line(name) for name in ("a", "b", "a", "c", "a", "b")]))
    assert [(e.line, e.code) for e in result.errors] == [(n, "duplicate_custom_id") for n in (3, 5, 6)]


@pytest.mark.parametrize("raw", [b"", b"\n \n\n"])
def test_a_file_without_requests_is_an_error(raw: bytes) -> None:
    assert [e.code for e in check(raw).errors] == ["empty_file"]


def test_a_missing_file_is_an_error_of_the_batch() -> None:
    def missing() -> list[bytes]:
        raise BlobMissing("files/file-x")

    result = validate(BATCH, missing, models={"m"}, settings=settings())
    assert [(e.line, e.code, e.param) for e in result.errors] == [(None, "invalid_request", "file_id")]
    assert result.errors[0].message == ("Cannot find file file-x, or organization default does not have access to it.")


def test_too_many_lines_and_too_long_lines_name_the_setting() -> None:
    many = check(encode(*[chat_line(f"c{i}") for i in range(5)]), max_batch_lines=4)
    assert "PRESSRUN_MAX_BATCH_LINES" in many.errors[0].message
    long = check(encode(chat_line("a", user="x" * 3000)), max_line_bytes=2000)
    assert "PRESSRUN_MAX_LINE_BYTES" in long.errors[0].message


def test_a_flood_of_errors_is_cut_and_says_so() -> None:
    result = check(b"{\n" * 2500, chunk=1000)
    assert len(result.errors) == 1001
    assert result.errors[-1].message == "1500 more errors are not listed."


def test_of_a_flood_of_several_kinds_the_first_lines_are_listed_and_all_are_counted() -> None:
    twice = encode(*(chat_line(f"c{i}") for i in range(600))) + b"\n"
    result = check(b"{\n" * 600 + twice + twice * 2 + b"{\n" * 900, chunk=10_000)
    assert [error.line for error in result.errors[:-1]] == [*range(1, 601), *range(1201, 1601)]
    assert result.errors[-1].message == "1700 more errors are not listed."


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n"])
def test_shards_cover_every_request_and_nothing_else(newline: bytes, ending: bytes) -> None:
    lines = [json.dumps(chat_line(f"c{i}", user="é" * i), ensure_ascii=False).encode() for i in range(11)]
    raw = newline.join(lines) + ending
    result = check(raw, shard_lines=4)
    assert result.errors == ()
    assert [(s.index, s.first_line, s.num_lines) for s in result.shards] == [(0, 0, 4), (1, 4, 4), (2, 8, 3)]
    found = [line for s in result.shards for line in raw[s.offset : s.offset + s.size].split(b"\n") if line.strip()]
    assert [json.loads(line)["custom_id"] for line in found] == [f"c{i}" for i in range(11)]


def test_a_body_that_is_not_an_object_fails_its_own_line_only() -> None:
    assert check(encode(chat_line("a"), chat_line("b") | {"body": "text"})).errors == ()
