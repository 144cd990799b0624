"""JSON by the fast parser says what Python's own module says, whatever the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressrun.jobs.json_text import read, read_strictly, written

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters())
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner))
HALF = "\ud800"


def of_python(raw: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(raw.decode(), parse_constant=refuse)


@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    raw = written(value)
    assert b"\n" not in raw
    assert json.loads(raw) == read(raw) == read_strictly(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": 12345678901234567890123}',
        b'{"a": 1e400, "b": -0.0, "c": 9007199254740993.0}',
        b"[" * 300 + b"]" * 300,
        b'"\\u0000\x7f\xc2\xa0"',
    ],
)
def test_unusual_json_is_read_as_python_reads_it(raw: bytes) -> None:
    assert read_strictly(raw) == read(raw) == of_python(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{} x",
        b'{"a": 01}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\t"}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_not_strictly_json_is_refused_as_python_refuses_it(raw: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        of_python(raw)
    with pytest.raises((ValueError, RecursionError)):
        read_strictly(raw)


def test_half_of_a_surrogate_pair_is_written_so_that_it_can_be_read() -> None:
    raw = written({"é": HALF})
    assert raw.isascii()
    assert read(raw) == {"é": HALF}
