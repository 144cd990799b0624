"""What may stand in a generation config, and what requests that leave it out then mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pressrun.api.schemas import ModelObject
from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import SettingsError
from pressrun.jobs.generation import NEUTRAL, checked, defaults_of, known_fields, parse_override
from pressrun.jobs.model_cards import MODELS
from pressrun.jobs.records import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, ModelCard
from pressrun.jobs.requests import ChatCompletionRequest, CompletionRequest, parse_body
from pressrun.jobs.settings import load_settings
from pressrun.jobs.twins import digest_of, spelling_of

HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GREEDY = {**NEUTRAL, "temperature": 0.0}
WARM = {**NEUTRAL, "temperature": 0.6, "top_k": 20}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, HI),
    (COMPLETIONS, {"model": "m", "prompt": "hi"}),
    (RESPONSES, {"model": "m", "input": "hi"}),
]


def drawn(url: str, body: dict[str, Any], sampling: Any) -> dict[str, float]:
    request = parse_body(url, body, sampling)
    assert isinstance(request, ChatCompletionRequest | CompletionRequest)
    return {name: getattr(request, name) for name in NEUTRAL}


def test_what_goes_without_saying_is_what_requests_say_themselves() -> None:
    fields = ChatCompletionRequest.model_fields
    assert {name: fields[name].default for name in NEUTRAL} == NEUTRAL


@pytest.mark.parametrize(("url", "body"), BODIES)
def test_what_is_left_out_is_the_models_and_what_is_said_is_the_requests(url: str, body: dict[str, Any]) -> None:
    assert drawn(url, body, WARM) == WARM
    assert drawn(url, body | {"temperature": None}, WARM) == WARM
    assert drawn(url, body | {"temperature": 1, "top_p": 0.5}, WARM) == WARM | {"temperature": 1.0, "top_p": 0.5}
    assert drawn(url, body, NEUTRAL) == NEUTRAL


def test_embeddings_have_no_sampling() -> None:
    assert parse_body(EMBEDDINGS, {"model": "m", "input": "hi"}, WARM) == parse_body(
        EMBEDDINGS, {"model": "m", "input": "hi"}
    )


@pytest.mark.parametrize(("url", "body"), BODIES)
def test_whether_a_line_is_left_to_chance_is_a_matter_of_what_it_leaves_out_too(url: str, body: dict[str, Any]) -> None:
    def is_bound(body: dict[str, Any], sampling: Any) -> bool:
        digest, spelling = digest_of(url, parse_body(url, body, sampling)), spelling_of(url, body, sampling)
        assert (digest is None) == (spelling is None)
        return digest is not None

    assert not is_bound(body, NEUTRAL)
    assert not is_bound(body, WARM)
    assert is_bound(body, GREEDY)
    assert is_bound(body | {"temperature": 0}, WARM)
    assert not is_bound(body | {"temperature": 1}, GREEDY)
    assert not is_bound(body | {"temperature": 1.0}, GREEDY)


def test_lines_are_spelled_alike_if_one_says_what_the_other_leaves_to_the_model() -> None:
    seeded = HI | {"seed": 1}
    pairs = [
        (seeded, seeded | {"temperature": 0.6, "top_k": 20}, True),
        (seeded, seeded | {"temperature": 1.0}, False),
        (seeded, seeded | {"top_k": 0}, False),
    ]
    for one, other, same in pairs:
        assert (spelling_of(CHAT, one, WARM) == spelling_of(CHAT, other, WARM)) is same
        digests = {digest_of(CHAT, parse_body(CHAT, body, WARM)) for body in (one, other)}
        assert (len(digests) == 1) is same
    assert spelling_of(CHAT, HI, GREEDY) == spelling_of(CHAT, HI | {"temperature": 0.0}, GREEDY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"temperature": -1}', "Invalid value for 'temperature': input should be greater than or equal to 0"),
        ('{"temperature": 2.5}', "less than or equal to 2"),
        ('{"temperature": "hot"}', "Invalid type for 'temperature': expected a number, but got a string"),
        ('{"temperature": NaN}', "NaN is not JSON"),
        ('{"top_p": 0}', "'top_p'"),
        ('{"top_k": -2}', "'top_k'"),
        ('{"top_k": 1.5}', "'top_k'"),
        ('{"min_p": 1.1}', "'min_p'"),
        ('{"repetition_penalty": 0}', "'repetition_penalty'"),
        ('{"max_new_tokens": 0}', "'max_new_tokens'"),
        ('{"max_new_tokens": true}', "'max_new_tokens'"),
        ('{"do_sample": false}', r"Unknown parameter: 'do_sample'\. It may have temperature, .*max_new_tokens"),
        ('{"max_tokens": null}', r"Unknown parameter: 'max_tokens'\. It may have temperature"),
        ("[1]", "not a JSON object"),
        ("temperature=1", "Expecting value"),
    ],
)
def test_an_override_that_cannot_be_is_refused_with_the_settings(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"PRESSRUN_OVERRIDE_GENERATION_CONFIG=.*{said}"):
        load_settings({"PRESSRUN_OVERRIDE_GENERATION_CONFIG": text})


def test_an_override_goes_to_child_processes_as_it_is() -> None:
    settings = load_settings({}, override_generation_config='{"temperature": 0.5, "top_k": null}')
    assert load_settings(settings.environment()) == settings
    assert parse_override(settings.override_generation_config or "") == {"temperature": 0.5, "top_k": None}


def test_of_a_models_file_only_what_counts_is_looked_at() -> None:
    text = '{"eos_token_id": [1, 2], "do_sample": false, "top_p": 0.9, "top_k": null, "max_new_tokens": 7}'
    config = checked(known_fields(text))
    defaults = defaults_of(config, most_tokens=None)
    assert defaults.shown() == {
        "temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_tokens": 7, "max_tokens_limit": None,
    }  # fmt: skip


def test_the_sampling_of_a_model_is_on_its_workers_cards(backend: Backend) -> None:
    shown = defaults_of(checked({"temperature": 0}), most_tokens=None).shown()
    card = ModelCard(id="new", max_model_len=8, created=1, worker="a", default_sampling=shown)
    backend.store.touch_model(card)
    of_an_earlier_version = {"id": "old", "max_model_len": 8, "created": 1, "worker": "b", "tokens_per_s": 0.0}
    backend.redis.hset(MODELS, "b", json.dumps([backend.store.now(), of_an_earlier_version]))
    found = {one.id: one for one in backend.store.models()}
    assert found["new"] == card
    assert found["old"].default_sampling is None
    assert backend.store.samplings()["new"] == GREEDY
    assert "old" not in backend.store.samplings()


def test_of_a_models_workers_one_that_says_how_it_is_drawn_speaks_for_it_and_need_not_say_all(backend: Backend) -> None:
    card: dict[str, Any] = {"id": "m", "max_model_len": 8, "created": 1, "tokens_per_s": 0.0}
    silent, later = card | {"worker": "a"}, card | {"worker": "b", "default_sampling": {"temperature": 0, "new": 1}}
    for one in (silent, later):
        backend.redis.hset(MODELS, one["worker"], json.dumps([backend.store.now(), one]))
    assert [one.worker for one in backend.store.models()] == ["b"]
    assert backend.store.samplings()["m"] == GREEDY
    shown = ModelObject.of(backend.store.models()[0]).pressrun.default_sampling
    assert shown is not None
    assert shown.model_dump() == {**GREEDY, "max_tokens": None, "max_tokens_limit": None}
