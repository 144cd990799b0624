"""The lines of a batch's files, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressrun.jobs.errors import UserError
from pressrun.jobs.lines import ERROR_TEXTS, answered, never_ran, read_requests, refused, split_lines
from pressrun.jobs.records import Line, Usage

from .conftest import chat_line, encode

LINE = Line(index=3, custom_id="a", url="/v1/chat/completions", body={})


def fields(data: bytes) -> dict[str, Any]:
    assert b"\n" not in data
    value = json.loads(data)
    assert isinstance(value, dict)
    return value


@given(st.lists(st.binary(max_size=8).map(lambda raw: raw.replace(b"x", b"\n"))))
def test_lines_are_the_same_however_the_bytes_come(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    lines = list(split_lines(chunks, longest=1000))
    assert [raw for _, raw in lines] == whole.removesuffix(b"\n").split(b"\n") * bool(whole)
    assert all(whole[offset : offset + len(raw)] == raw for offset, raw in lines)
    assert all(whole[offset - 1] == ord("\n") for offset, _ in lines if offset)


def test_a_line_that_never_ends_is_not_gathered_for_ever() -> None:
    def endless() -> Any:
        while True:
            yield b"x" * 100

    with pytest.raises(UserError, match="longer than 1000 bytes"):
        list(split_lines(endless(), longest=1000))


def test_requests_are_numbered_and_blank_lines_do_not_count() -> None:
    raw = encode(b"", chat_line("a"), b" \r", chat_line("b"), b"") + b"\r\n"
    lines = list(read_requests([raw], first=7, longest=1000))
    assert [(line.index, line.custom_id, line.url) for line in lines] == [
        (7, "a", "/v1/chat/completions"),
        (8, "b", "/v1/chat/completions"),
    ]
    assert lines[0].body["model"] == "m"


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    raw = json.dumps(chat_line("a")).encode()[:-1] + b',"custom_id":"b"}'
    assert [line.custom_id for line in read_requests([raw], first=0, longest=1000)] == ["b"]


def test_an_answered_line_is_as_openai_writes_it() -> None:
    result = answered(LINE, {"choices": []}, Usage(input_tokens=1))
    line = fields(result.data)
    assert (result.index, result.outcome, result.usage) == (3, "succeeded", Usage(input_tokens=1))
    assert line == {
        "id": line["id"],
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": line["response"]["request_id"], "body": {"choices": []}},
        "error": None,
    }
    assert line["id"].startswith("batch_req_")


def test_a_refused_line_carries_the_http_error_and_no_other() -> None:
    result = refused(LINE, UserError("No.", param="n", code="c", status=404))
    line = fields(result.data)
    assert (result.outcome, result.usage, line["error"]) == ("failed", Usage(), None)
    assert line["response"]["status_code"] == 404
    assert line["response"]["body"] == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "c"}
    }


@pytest.mark.parametrize("code", sorted(ERROR_TEXTS))
def test_a_line_that_never_ran_says_why(code: str) -> None:
    result = never_ran(LINE, code)
    line = fields(result.data)
    assert (line["response"], line["error"]) == (None, {"code": code, "message": ERROR_TEXTS[code]})
    assert result.outcome == ("unrun" if code in ("batch_cancelled", "batch_expired") else "failed")


@pytest.mark.parametrize("custom_id", ["é\n\u2028", "\ud800", "😀\udc00", "\x00\x7f"])
def test_any_custom_id_comes_back_as_it_was(custom_id: str) -> None:
    (line,) = read_requests([json.dumps(chat_line(custom_id)).encode()], first=0, longest=1000)
    for result in (answered(line, {"text": custom_id}, Usage()), never_ran(line, "batch_expired")):
        assert fields(result.data)["custom_id"] == custom_id


def test_what_needs_no_escape_is_written_as_utf_8() -> None:
    line = Line(index=0, custom_id="é", url="", body={})
    assert '"custom_id":"é"'.encode() in never_ran(line, "batch_expired").data
