"""Grammars: what is drawn always follows them, in any company, and a grammar that fails costs no one else anything."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

from pressrun.engine import grammars as grammars_module
from pressrun.engine.expand import expand
from pressrun.engine.refusals import find_fault
from pressrun.engine.request import ModelInfo, Output, Request, SamplingParams

from .spelling import CHOICE, EOS, JSON, SUM, WORD, crowd

Ask = Callable[..., Request]
Make = Callable[..., Any]
# What the fixture `speller` is made with.
NUM_TOKENS, VOCAB_SIZE = 300, 320
INFO = ModelInfo(max_model_len=99, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,))

at_once_and_late = pytest.mark.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)


class Speech:
    """Reads tokens of a folder's tokenizer, and says which they are."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def text(self, output: Output) -> str:
        return self._tokenizer.decode(output.token_ids)

    def ids(self, characters: str) -> list[int]:
        """The tokens of single characters."""
        ids = [self._tokenizer.token_to_id(character) for character in characters]
        assert None not in ids
        return ids

    def ending_sooner(self) -> tuple[tuple[int, float], ...]:
        """A bias with which random weights close what they have opened."""
        return tuple((id, 7.0) for id in [*self.ids('"}],:'), EOS])


def names(length: int) -> st.SearchStrategy[str]:
    return st.text("abcxyz_é", min_size=1, max_size=length)


def strings() -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(
        lambda ends: {"type": "string", "minLength": min(ends), "maxLength": max(ends)}
    )
    formats = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"]).map(
        lambda name: {"type": "string", "format": name}
    )
    patterns = st.sampled_from(["^[a-c]+$", "^x?y{2}$", "^(ab|cd)*$"]).map(lambda p: {"type": "string", "pattern": p})
    return st.one_of(st.just({"type": "string"}), sizes, formats, patterns)


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    kinds, ends = st.sampled_from(["integer", "number"]), st.tuples(st.integers(-99, 99), st.integers(-99, 99))
    bounded = st.builds(lambda k, e: {"type": k, "minimum": min(e), "maximum": max(e)}, kinds, ends)
    return st.one_of(kinds.map(lambda kind: {"type": kind}), bounded)


def plain() -> st.SearchStrategy[dict[str, Any]]:
    values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), names(3))
    constants = st.one_of(
        st.lists(values, min_size=1, max_size=3, unique_by=json.dumps).map(lambda v: {"enum": v}),
        values.map(lambda v: {"const": v}),
        st.sampled_from(["boolean", "null"]).map(lambda kind: {"type": kind}),
    )
    return st.one_of(strings(), numbers(), constants, st.just({"$ref": "#/$defs/part"}))


def composed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], required: list[str], closed: bool) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        schema["required"] = [name for name in properties if name in required]
        return schema | ({"additionalProperties": False} if closed else {})

    objects = st.dictionaries(names(2), inner, max_size=3).flatmap(
        lambda properties: st.builds(
            an_object, st.just(properties), st.lists(st.sampled_from([*properties, ""])), st.booleans()
        )
    )
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    either = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    nullable = inner.map(lambda schema: {"anyOf": [schema, {"type": "null"}]})
    return st.one_of(objects, arrays, either, nullable)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of nested objects and arrays, whose references lead to a part that may contain itself."""
    parts = st.sampled_from(
        [
            {"type": "integer"},
            {"type": "object", "properties": {"next": {"$ref": "#/$defs/part"}}, "additionalProperties": False},
            {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
        ]
    )
    tree = st.recursive(plain(), composed, max_leaves=6)
    return st.builds(lambda schema, part: schema | {"$defs": {"part": part}}, tree, parts)


@at_once_and_late
def test_what_is_drawn_is_valid_against_any_schema(speller: Path, make_engine: Make, ask: Ask) -> None:
    engine, speech = make_engine(speller), Speech(speller)
    draw = random.Random(0)
    num_whole = num_all = 0

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(schemas())
    def check(schema: dict[str, Any]) -> None:
        nonlocal num_whole, num_all
        grammar = LLMatcher.grammar_from_json_schema(schema)
        asked = {"grammar": grammar, "max_tokens": 120, "temperature": 1.0, "logit_bias": speech.ending_sooner()}
        requests = [ask([3 + draw.randrange(250)], id=str(i), seed=draw.randrange(999), **asked) for i in range(4)]
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        for output in engine.finish(requests).values():
            assert output.finish_reason in ("stop", "length"), output.error
            num_all += 1
            if output.finish_reason == "stop":
                num_whole += 1
                # RFC 3339's grammar has leap seconds at any time of the day, and this validator only at midnight.
                text = re.sub(r"(\d\d:\d\d):60", r"\1:59", speech.text(output))
                validator.validate(json.loads(text))

    check()
    assert num_whole > num_all / 2, f"only {num_whole} of {num_all} came to their end"


@at_once_and_late
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (WORD, "[a-z]{3,6}( [a-z]{3,6}){0,3}"),
        (CHOICE, "red|green|greenish"),
        (SUM, r"[0-9+()]+=[0-9+()]+"),
    ],
    ids=["regex", "choice", "lark"],
)
def test_texts_follow_their_grammar_greedy_or_sampled(
    speller: Path, make_engine: Make, ask: Ask, grammar: str, pattern: str
) -> None:
    styles: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.01},
        {"frequency_penalty": 1.0, "repetition_penalty": 1.2},
    ]
    speech = Speech(speller)
    requests = [
        ask([5, 9 + i], id=str(i), seed=i, grammar=grammar, max_tokens=60, logit_bias=((EOS, 4.0),), **styles[i % 5])
        for i in range(25)
    ]
    outputs = make_engine(speller).finish(requests, arrivals=random.Random(0))
    whole = [output for output in outputs.values() if output.finish_reason == "stop"]
    assert len(whole) > len(outputs) / 2
    for output in whole:
        assert re.fullmatch(pattern, speech.text(output))
        assert output.token_ids[-1] == EOS


def seen(outputs: dict[str, Output]) -> dict[str, tuple[Any, ...]]:
    return {id: (output.token_ids, output.finish_reason, output.stop_reason) for id, output in outputs.items()}


def decoder(folder: Path) -> Callable[[list[int]], str]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode


def test_every_way_of_running_a_step_draws_the_same_tokens(speller: Path, make_engine: Make, ask: Ask) -> None:
    def answers(**settings: Any) -> dict[str, Output]:
        engine = make_engine(speller, decode=decoder(speller), **settings)
        outputs: dict[str, Output] = engine.finish(crowd(ask), arrivals=random.Random(1))
        assert (engine.load().num_preemptions > 0) == ("crowded" in settings)
        return outputs

    expected = answers(async_scheduling=False)
    small: dict[str, Any] = {"crowded": True, "num_pages": 24, "page_size": 4, "max_num_batched_tokens": 48}
    assert seen(answers(async_scheduling=True)) == seen(expected)
    assert seen(answers(async_scheduling=False, **small)) == seen(expected)
    assert seen(answers(async_scheduling=True, **small)) == seen(expected)
    assert seen(answers(async_scheduling=True, max_num_seqs=1)) == seen(expected)


@at_once_and_late
def test_neighbours_draw_what_they_would_without_grammars_beside_them(
    speller: Path, make_engine: Make, ask: Ask
) -> None:
    free = [request for request in crowd(ask) if request.params.grammar is None]
    alone = make_engine(speller, decode=decoder(speller)).finish(free)
    together = make_engine(speller, decode=decoder(speller)).finish(crowd(ask))
    for request in free:
        assert seen(together)[request.id] == seen(alone)[request.id]
        logprobs = [[entry.logprob for entry in outputs[request.id].logprobs or ()] for outputs in (together, alone)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


@at_once_and_late
def test_the_padding_of_a_vocabulary_is_never_drawn(speller: Path, make_engine: Make, ask: Ask) -> None:
    anything = LLMatcher.grammar_from_regex("(.|\n)*")
    asked = {"max_tokens": 100, "temperature": 2.0, "seed": 1}
    outputs = make_engine(speller).finish(
        [
            ask([5], id="free", ignore_eos=True, **asked),
            ask([5], id="text", grammar=anything, logit_bias=((EOS, -100.0),), **asked),
        ]
    )
    assert max(outputs["free"].token_ids) >= NUM_TOKENS, "nothing would have been drawn without the grammar either"
    assert len(outputs["text"].token_ids) == 100
    assert max(outputs["text"].token_ids) < NUM_TOKENS


@at_once_and_late
def test_log_probabilities_are_of_what_the_grammar_allows(speller: Path, make_engine: Make, ask: Ask) -> None:
    grammar = LLMatcher.grammar_from_regex("[ab][cd]")
    output = make_engine(speller).finish([ask([5], grammar=grammar, logprobs=4)])["a"]
    speech = Speech(speller)
    assert output.logprobs is not None
    assert len(output.logprobs) == 3
    for entry, characters in zip(output.logprobs, ("ab", "cd", None), strict=True):
        allowed = [EOS] if characters is None else speech.ids(characters)
        possible = {token: logprob for token, logprob in entry.top if logprob > float("-inf")}
        assert set(possible) == set(allowed)
        assert torch.tensor([*possible.values()]).exp().sum().item() == pytest.approx(1, abs=1e-4)
        assert entry.logprob == max(possible.values())


@at_once_and_late
def test_what_other_parameters_forbid_is_forbidden_too(speller: Path, make_engine: Make, ask: Ask) -> None:
    speech = Speech(speller)
    vowels = LLMatcher.grammar_from_regex("[aeiou]{12}")
    a, e, i, o, u = speech.ids("aeiou")
    requests = [
        ask([5], id="allowed", grammar=vowels, max_tokens=20, allowed_token_ids=(a, u, *speech.ids("xyz"), EOS)),
        ask([5], id="bad", grammar=vowels, max_tokens=20, bad_words_token_ids=((a,), (e,), (o,), (i,))),
        ask([5], id="biased", grammar=vowels, max_tokens=20, logit_bias=((i, 100.0), (*speech.ids("x"), 100.0))),
    ]
    outputs = make_engine(speller).finish(requests)
    texts = {id: speech.text(output).removesuffix("</s>") for id, output in outputs.items()}
    assert set(texts["allowed"]) <= set("au")
    assert set(texts["bad"]) == {"u"}
    assert texts["biased"] == "i" * 12
    assert {len(text) for text in texts.values()} == {12}


@at_once_and_late
def test_a_request_that_is_left_no_token_ends_alone_with_an_error(speller: Path, make_engine: Make, ask: Ask) -> None:
    speech = Speech(speller)
    engine = make_engine(speller)
    stuck = ask([5], id="stuck", grammar=WORD, allowed_token_ids=tuple(speech.ids("ab")), max_tokens=50)
    beside = [ask([5, i], id=f"beside {i}", grammar=WORD, max_tokens=9) for i in (7, 8)]
    outputs = engine.finish([beside[0], stuck, beside[1]])
    assert outputs["stuck"].finish_reason == "error"
    assert "the other parameters leave no token" in (outputs["stuck"].error or "")
    for request in beside:
        assert seen(outputs)[request.id] == seen(engine.finish([request]))[request.id]


@at_once_and_late
def test_a_matcher_that_gives_up_ends_its_request_alone(speller: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(speller)
    engine.add([ask([5, i], id=str(i), grammar=WORD, max_tokens=9, logit_bias=((EOS, -100.0),)) for i in range(3)])
    outputs = [*engine.step(), *engine.step(), *engine.step()]
    assert engine._live["1"].matcher.consume_token(1) is False  # As after a mask that took too long to make.
    while engine.has_work():
        outputs += engine.step()
    assert {output.id: output.finish_reason for output in outputs} == {"0": "length", "1": "error", "2": "length"}
    (error,) = [output.error for output in outputs if output.error]
    assert error.startswith("grammar: it became too complex to follow: ")


def test_a_grammar_is_compiled_once_for_all_choices(
    speller: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def compile_grammar(grammar: str, tokenizer: Any) -> Any:
        compiled.append(grammar)
        return original(grammar, tokenizer)

    original = grammars_module.compile_grammar
    monkeypatch.setattr(grammars_module, "compile_grammar", compile_grammar)
    engine = make_engine(speller)
    choices = expand(ask([5, 6], id="a", grammar=WORD, temperature=1.0, seed=7, max_tokens=40), 4)
    first = engine.finish(choices)
    assert len({tuple(output.token_ids) for output in first.values()}) > 1
    assert seen(engine.finish(choices)) == seen(first)
    assert compiled == [WORD]


@at_once_and_late
def test_requests_are_aborted_while_they_compile_and_while_they_run(speller: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(speller)
    engine.add([ask([5], id="early", grammar=JSON), ask([5], id="late", grammar=WORD, max_tokens=60)])
    assert engine.load().num_waiting == 2
    engine.abort(["early"])
    outputs = [*engine.step(), *engine.step(), *engine.step()]
    engine.abort(["late"])
    while engine.has_work():
        outputs += engine.step()
    assert [(output.id, output.finish_reason) for output in outputs] == [("early", "abort"), ("late", "abort")]
    assert len(outputs[1].token_ids) > 0


def test_what_cannot_be_followed_is_refused_alone(speller: Path, tiny: Path, make_engine: Make, ask: Ask) -> None:
    bad = LLMatcher.grammar_from_json_schema({"not": {}})
    outputs = make_engine(speller).finish([ask([5], id="bad", grammar=bad), ask([5], id="good", grammar=CHOICE)])
    assert outputs["bad"].error == 'grammar: Unimplemented keys: ["not"]'
    assert outputs["good"].finish_reason == "stop"
    mute = make_engine(tiny).finish([ask([5], grammar=CHOICE)])["a"]
    assert "takes a tokenizer.json in the model's folder" in (mute.error or "")
    config = speller / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": None}))
    (speller / "generation_config.json").unlink()
    endless = make_engine(speller).finish([ask([5], grammar=CHOICE)])["a"]
    assert "takes a token that ends a text" in (endless.error or "")


@pytest.mark.parametrize(("fields", "field"), [({"min_tokens": 1}, "min_tokens"), ({"ignore_eos": True}, "ignore_eos")])
def test_a_grammar_says_itself_where_a_text_ends(fields: dict[str, Any], field: str) -> None:
    fault = find_fault(SamplingParams(max_tokens=5, grammar=CHOICE, **fields), INFO)
    assert fault is not None
    assert fault.field == field
    assert find_fault(SamplingParams(max_tokens=5, grammar=CHOICE), INFO) is None
