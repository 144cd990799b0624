"""Text in pieces: no half character, nothing of a stop string, and together what the whole answer says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pressrun.engine.request import ModelInfo, Output, TokenLogprob
from pressrun.jobs.records import Line
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import choice_of
from pressrun.workers.streaming import AnswerStream, ChoiceText, Piece

TOKENIZER = ByteTokenizer()


def prepared(**body: Any) -> Prepared:
    prompts = Prompts(TOKENIZER, ModelInfo(max_model_len=4096, vocab_size=256), "m")
    fields = {"model": "m", "prompt": "p", "max_tokens": 1000, "stream": True} | body
    ready = prompts.prepare_online(Line(index=0, custom_id="x", url="/v1/completions", body=fields))
    assert isinstance(ready, Prepared)
    return ready


def pieces_of(ready: Prepared, cuts: list[list[int]], **end: Any) -> list[Piece]:
    """What is passed on when the tokens come in these pieces."""
    text = ChoiceText(ready, TOKENIZER)
    outputs = [Output(id="0.0", token_ids=cut, logprobs=_certain(cut)) for cut in cuts[:-1]]
    outputs.append(Output(id="0.0", token_ids=cuts[-1], logprobs=_certain(cuts[-1]), **end))
    return [text.feed(output) for output in outputs]


def _certain(tokens: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(token_id=token, logprob=0.0) for token in tokens]


def cut_up(data: st.DataObject, tokens: list[int]) -> list[list[int]]:
    """The tokens in pieces of any size, none empty but perhaps the last."""
    places = sorted(data.draw(st.sets(st.integers(1, len(tokens)), max_size=len(tokens))) if tokens else ())
    edges = [0, *places, len(tokens)]
    return [tokens[start:end] for start, end in pairwise(edges)]


@given(text=st.text(max_size=40), data=st.data())
def test_pieces_make_the_whole_text_and_none_holds_half_a_character(text: str, data: st.DataObject) -> None:
    text = text.replace("\ufffd", "")
    pieces = pieces_of(prepared(), cut_up(data, list(text.encode())), finish_reason="length")
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)


@given(raw=st.binary(max_size=40), data=st.data())
def test_bytes_that_are_no_text_come_out_as_in_the_whole(raw: bytes, data: st.DataObject) -> None:
    pieces = pieces_of(prepared(), cut_up(data, list(raw)), finish_reason="length")
    assert "".join(piece.text for piece in pieces) == raw.decode(errors="replace")


@given(
    before=st.text("ab", max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    data=st.data(),
)
def test_no_piece_holds_the_beginning_of_a_stop_string(before: str, stops: list[str], data: st.DataObject) -> None:
    ready = prepared(stop=stops)
    found = min(
        (stop for stop in stops if stop in before), key=lambda stop: before.find(stop) + len(stop), default=None
    )
    text = before if found is None else before[: before.find(found) + len(found)]
    end: dict[str, Any] = {"finish_reason": "length"}
    if found is not None:
        end = {"finish_reason": "stop", "stop_reason": found}
    tokens = list(text.encode())
    cuts = cut_up(data, tokens) if found is None else [*cut_up(data, tokens[:-1]), tokens[-1:]]
    pieces = pieces_of(ready, cuts, **end)
    whole = choice_of(ready.body, Output(id="0.0", token_ids=tokens, logprobs=_certain(tokens), **end), TOKENIZER)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [entry for piece in pieces for entry in piece.logprobs or ()] == whole.logprobs


def test_the_token_that_ends_a_text_is_not_part_of_it() -> None:
    pieces = pieces_of(prepared(), [[104], [105], [0]], finish_reason="stop", stop_reason=0)
    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("h", None), ("i", None), ("", "stop")]


def test_log_probabilities_wait_for_their_text() -> None:
    first, second = "ü".encode()
    pieces = pieces_of(prepared(logprobs=0), [[first], [second], [33]], finish_reason="length")
    assert [(piece.text, len(piece.logprobs or ())) for piece in pieces] == [("", 0), ("ü", 2), ("!", 1)]


def test_every_choice_begins_with_its_echo_once() -> None:
    stream = AnswerStream(prepared(prompt=["one", "two"], echo=True), TOKENIZER)
    rows = [row for token in b"ab" for place in (1, 0) for row in stream.feed(place, Output(id="x", token_ids=[token]))]
    assert [(place, delta["text"]) for place, delta, _, _ in rows] == [(1, "twoa"), (0, "onea"), (1, "b"), (0, "b")]
