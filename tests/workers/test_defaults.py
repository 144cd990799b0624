"""Where a worker takes its model's defaults from, what it refuses there, and how long answers are then."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pressrun.engine.request import ModelInfo
from pressrun.jobs.errors import SettingsError
from pressrun.jobs.generation import NEUTRAL, NO_DEFAULTS, Defaults
from pressrun.jobs.records import Line, LineResult
from pressrun.jobs.settings import load_settings
from pressrun.workers.defaults import load_defaults
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.worker import run

from .conftest import Farm, farm_on

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CONTEXT = 100
OWN = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 30, "do_sample": False, "eos_token_id": 2}
LOGGER = "pressrun.workers.defaults"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, as far as it matters here."""
    return folder(tmp_path / "model", OWN)


def folder(path: Path, config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "generation_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def defaults(model: Path | None, **settings: Any) -> Defaults:
    return load_defaults(load_settings({}, **settings), model)


def sampling(**changes: float) -> dict[str, float]:
    return {**NEUTRAL, **changes}


def test_by_default_the_models_own_file_counts(model: Path) -> None:
    found = defaults(model)
    assert found.sampling == sampling(temperature=0.6, top_p=0.95, top_k=20)
    assert (found.max_tokens, found.most_tokens) == (30, None)


def test_a_model_without_a_file_has_no_defaults_of_its_own(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model / "generation_config.json").unlink()
    with caplog.at_level(logging.INFO, LOGGER):
        assert defaults(model) == NO_DEFAULTS == defaults(None)
    assert caplog.messages == []


def test_vllm_takes_no_file(model: Path) -> None:
    assert defaults(model, generation_config="vllm") == NO_DEFAULTS
    found = defaults(model, generation_config="vllm", override_generation_config='{"top_k": 5}')
    assert found == Defaults(sampling=sampling(top_k=5))


def test_another_folders_file_takes_the_place_of_the_models_and_limits_answers(model: Path, tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine", {"temperature": 0, "max_new_tokens": 50})
    found = defaults(model, generation_config=str(mine))
    assert found == Defaults(sampling=sampling(temperature=0), max_tokens=50, most_tokens=50)


def test_an_override_goes_over_single_fields_and_null_takes_one_back(model: Path) -> None:
    found = defaults(model, override_generation_config='{"temperature": 0, "top_p": null}')
    assert found == Defaults(sampling=sampling(temperature=0, top_k=20), max_tokens=30)
    found = defaults(model, override_generation_config='{"max_new_tokens": 40}')
    assert (found.max_tokens, found.most_tokens) == (40, 40)
    found = defaults(model, override_generation_config='{"max_new_tokens": null}')
    assert (found.max_tokens, found.most_tokens) == (None, None)


def test_what_was_taken_is_logged_once_with_where_it_is_from(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        defaults(model, override_generation_config='{"temperature": 0.5, "top_k": null}')
    (said,) = caplog.messages
    assert "temperature 0.5 (override)" in said
    assert f"top_p 0.95 ({model / 'generation_config.json'})" in said
    assert "PRESSRUN_GENERATION_CONFIG=vllm" in said
    assert "top_k" not in said
    assert "eos_token_id" not in said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"temperature": -1}, "Invalid value for 'temperature': input should be greater than or equal to 0"),
        ({"top_k": "many"}, "Invalid type for 'top_k': expected an integer, but got a string"),
        ({"max_new_tokens": 0}, "'max_new_tokens'"),
        ('{"temperature": NaN}', "'temperature'"),
    ],
)
def test_a_worker_does_not_start_on_a_bad_file_and_says_which_and_why(tmp_path: Path, config: Any, said: str) -> None:
    model = folder(tmp_path / "model", config)
    with pytest.raises(SettingsError) as caught:
        run(load_settings({}, model=str(model), redis_url="redis://127.0.0.1:1/0"), model)
    assert str(model / "generation_config.json") in str(caught.value)
    assert said in str(caught.value)
    assert "PRESSRUN_GENERATION_CONFIG=vllm" in str(caught.value)
    assert defaults(model, generation_config="vllm") == NO_DEFAULTS


def test_a_bad_field_of_a_file_is_no_matter_where_it_is_overridden(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", {"temperature": -1, "top_p": 0.5})
    found = defaults(model, override_generation_config='{"temperature": 1.5}')
    assert found.sampling == sampling(temperature=1.5, top_p=0.5)


@pytest.mark.parametrize("text", ["", "{temperature: 1}", "[]", '\ufeff{"temperature": 0}'])
def test_a_file_that_is_no_json_object_is_named_and_is_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    model = folder(tmp_path / "model", text)
    for config in ("auto", str(model)):
        with pytest.raises(
            SettingsError, match=r"generation_config\.json: it cannot be read as a JSON object.*mend it"
        ):
            defaults(model, generation_config=config)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "{}")
    file = model / "generation_config.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(SettingsError, match=r"generation_config\.json: it cannot be read"):
        defaults(model)
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsError, match=r"generation_config\.json: it cannot be read"):
        defaults(model)
    file.rmdir()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(SettingsError, match=r"generation_config\.json: it cannot be read"):
        defaults(model)
    with pytest.raises(SettingsError, match="it cannot be looked at"):
        defaults(model, generation_config="~nobody-of-this-name/x")


def test_numbers_that_are_not_json_are_no_matter_in_fields_that_do_not_count(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", '{"temperature": 0.5, "guidance_scale": NaN}')
    assert defaults(model).sampling == sampling(temperature=0.5)


def test_a_folder_without_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SettingsError, match=f"PRESSRUN_GENERATION_CONFIG='{where}': .*give auto, vllm or a folder"):
            defaults(model, generation_config=str(where))


# How long answers are


def prepared(found: Defaults, url: str = CHAT, **fields: Any) -> Prepared | LineResult:
    given = {"messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {"prompt": "user: hi"}
    prompts = Prompts(ByteTokenizer(), ModelInfo(max_model_len=CONTEXT, vocab_size=256), "m", defaults=found)
    (result,) = prompts.prepare([Line(index=0, custom_id="a", url=url, body={"model": "m"} | given | fields)])
    return result


def length(found: Defaults, url: str = CHAT, **fields: Any) -> int:
    result = prepared(found, url, **fields)
    assert isinstance(result, Prepared), result
    return result.params[0].max_tokens


ROOM = CONTEXT - len("user: hi")
DEFAULT, LIMIT = Defaults(max_tokens=30), Defaults(max_tokens=30, most_tokens=30)


def test_a_default_length_is_for_chats_that_name_none() -> None:
    assert length(DEFAULT) == 30
    assert length(DEFAULT, max_tokens=50) == 50
    assert length(DEFAULT, max_completion_tokens=3) == 3
    assert length(Defaults(max_tokens=5000)) == ROOM
    assert (length(DEFAULT, TEXT), length(DEFAULT, TEXT, max_tokens=50)) == (16, 50)  # OpenAI's 16, as in vLLM.


def test_a_limit_is_for_all() -> None:
    assert (length(LIMIT), length(LIMIT, max_tokens=50), length(LIMIT, max_tokens=7)) == (30, 30, 7)
    assert (length(LIMIT, TEXT), length(LIMIT, TEXT, max_tokens=50), length(LIMIT, TEXT, max_tokens=0)) == (16, 30, 0)
    assert length(Defaults(max_tokens=5, most_tokens=5), TEXT) == 5


@pytest.mark.parametrize(
    ("found", "url", "fields", "code", "said"),
    [
        (LIMIT, CHAT, {"max_tokens": 93}, "context_length_exceeded", "'max_tokens' asks for 93: at most 92 fit"),
        (LIMIT, CHAT, {"min_tokens": 93}, "context_length_exceeded", "'min_tokens' asks for 93: at most 92 fit"),
        (LIMIT, CHAT, {"min_tokens": 31}, "invalid_value", "31 is larger than the 30 tokens that an answer has here"),
        (DEFAULT, CHAT, {"min_tokens": 31}, "invalid_value", "if 'max_tokens' is left out: give it too"),
        (NO_DEFAULTS, TEXT, {"min_tokens": 17}, "invalid_value", "the 16 tokens that an answer has if 'max_tokens'"),
    ],
)
def test_a_length_that_cannot_be_had_is_refused_with_why(
    found: Defaults, url: str, fields: dict[str, Any], code: str, said: str
) -> None:
    result = prepared(found, url, **fields)
    assert isinstance(result, LineResult)
    error = json.loads(result.data)["response"]["body"]["error"]
    assert (error["param"], error["code"]) == (next(iter(fields)), code)
    assert said in error["message"]


# With workers


@pytest.fixture
def greedy(redis: Redis, redis_server: str, tmp_path: Path) -> Iterator[Farm]:
    override = '{"temperature": 0, "max_new_tokens": 5}'
    farm = farm_on(redis, redis_server, tmp_path, override_generation_config=override)
    yield farm
    for worker in farm.workers:
        worker.end()


def test_lines_that_ask_the_same_and_leave_a_temperature_of_0_to_the_model_run_once(
    greedy: Farm, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    greedy.work(diary=str(diary))
    texts = [f"what is {i % 40}?" for i in range(400)]
    lines = [greedy.ask(f"c{i}", text, temperature=None if i % 3 else 0) for i, text in enumerate(texts)]
    lines += [greedy.ask(f"warm{i}", "by chance", temperature=1) for i in range(20)]
    batch = greedy.batch(lines)
    output, errors = greedy.results(batch)
    assert errors == []
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert {line["response"]["body"]["usage"]["completion_tokens"] for line in output} == {5}
    run_prompts = [line.split(b" ", 1)[1] for line in diary.read_bytes().splitlines()]
    assert sorted(run_prompts) == sorted([f"user: {text}".encode() for text in set(texts)] + [b"user: by chance"] * 20)
    assert greedy.backend.store.batch(batch.id).arranged  # They were brought together when the file was read.
