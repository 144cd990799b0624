"""A model's own sampling defaults, as a user meets them: `pressrun up` on real weights, the openai SDK, every route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .test_whole_road import CHAT, MODEL, Service

QUESTION: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
RESPONSES = "/v1/responses"
pytestmark = [pytest.mark.timeout(600)]


@contextmanager
def running(folder: Path, weights: Path, config: dict[str, Any], **settings: Any) -> Iterator[Service]:
    """A service of the same weights beside another generation_config.json."""
    model = folder / "model"
    model.mkdir()
    for file in weights.iterdir():
        if file.name != "generation_config.json":
            (model / file.name).symlink_to(file)
    own = json.loads((weights / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(own | config))
    service = Service(folder, model, **settings)
    try:
        service.wait_until_ready()
        yield service
    finally:
        left = service.stop()
    assert left == [], Path(service.log.name).read_text()


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Service]:
    config = {"temperature": 0, "repetition_penalty": 1.1, "max_new_tokens": 24, "do_sample": True}
    with running(tmp_path_factory.mktemp("greedy"), smollm2, config) as service:
        yield service


def said(service: Service, **fields: Any) -> str:
    answer = service.client.chat.completions.create(model=MODEL, messages=QUESTION, **fields)
    return answer.choices[0].message.content or ""


def test_a_model_that_is_greedy_by_itself_says_the_same_twice(greedy: Service) -> None:
    assert said(greedy) == said(greedy) == said(greedy, temperature=0) != ""
    text: Any = {"model": MODEL, "prompt": "Once upon a time"}
    one, other = (greedy.client.completions.create(**text) for _ in range(2))
    assert one.choices[0].text == other.choices[0].text
    assert one.usage is not None
    assert one.usage.completion_tokens == 16


def test_what_a_request_says_itself_wins(greedy: Service) -> None:
    warm = {said(greedy, temperature=1.5, seed=seed) for seed in range(2)}
    assert len(warm) == 2
    assert said(greedy, temperature=1.5, seed=0) in warm
    plain = said(greedy, extra_body={"repetition_penalty": 1.0}, max_tokens=60)
    assert plain != said(greedy, max_tokens=60)


def test_an_answer_is_as_long_as_the_model_says_unless_the_request_does(greedy: Service) -> None:
    answer = greedy.client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (24, "length")
    longer = greedy.client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=30)
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 30


def test_a_response_says_what_it_was_drawn_by_whole_and_as_a_stream(greedy: Service) -> None:
    asked: Any = {"model": MODEL, "input": QUESTION[0]["content"]}
    whole = greedy.client.responses.create(**asked)
    assert (whole.temperature, whole.top_p, whole.output_text) == (0, 1, said(greedy))
    events = list(greedy.client.responses.create(**asked, stream=True))
    told = [event.response for event in events if hasattr(event, "response")]
    assert [(one.temperature, one.top_p) for one in told] == [(0, 1)] * 3
    assert told[-1].output_text == whole.output_text
    own = list(greedy.client.responses.create(**asked, temperature=0.5, top_p=0.9, stream=True))
    assert (own[0].response.temperature, own[-1].response.top_p) == (0.5, 0.9)  # type: ignore[union-attr]


def test_jobs_and_batches_follow_the_model_too(greedy: Service) -> None:
    expected = said(greedy)
    body = {"model": MODEL, "messages": QUESTION}
    job = greedy.client.post("/jobs", body={"url": CHAT, "body": body}, cast_to=dict[str, Any])  # type: ignore[arg-type]
    job = greedy.wait_for_job(job)
    assert job["response"]["body"]["choices"][0]["message"]["content"] == expected
    lines = [{"custom_id": f"c{i}", "method": "POST", "url": CHAT, "body": body} for i in range(20)]
    batch = greedy.wait(greedy.create(lines))
    answers = [line["response"]["body"] for line in greedy.lines_of(batch.output_file_id)]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [expected] * 20
    # They were bound to be the same, and so they ran once.
    num_prompt = answers[0]["usage"]["prompt_tokens"]
    assert batch.usage.input_tokens_details.cached_tokens >= 19 * num_prompt
    asked = {"model": MODEL, "input": QUESTION[0]["content"]}
    batch = greedy.wait(
        greedy.create([{"custom_id": "r", "method": "POST", "url": RESPONSES, "body": asked}], RESPONSES)
    )
    (line,) = greedy.lines_of(batch.output_file_id)
    assert (line["response"]["body"]["temperature"], line["response"]["body"]["top_p"]) == (0, 1)


def test_the_model_tells_its_defaults(greedy: Service) -> None:
    model = greedy.client.models.retrieve(MODEL).to_dict()
    assert model["pressrun"] == {
        "default_sampling": {
            "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1.1,
            "max_tokens": 24, "max_tokens_limit": None,
        },
    }  # fmt: skip
    log = Path(greedy.log.name).read_text()
    assert log.count("where requests leave it out: ") == 1
    assert "generation_config.json" in log


def test_vllm_takes_nothing_from_the_model_and_an_override_wins(tmp_path: Path, smollm2: Path) -> None:
    config = {"temperature": 0, "max_new_tokens": 3}
    settings = {"GENERATION_CONFIG": "vllm", "OVERRIDE_GENERATION_CONFIG": '{"top_p": 0.99, "max_new_tokens": 12}'}
    with running(tmp_path, smollm2, config, **settings) as service:
        answer = service.client.chat.completions.create(model=MODEL, messages=QUESTION, n=8, max_tokens=40)
        assert len({choice.message.content for choice in answer.choices}) > 1  # At temperature 1.
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8 * 12
        sampling: Any = service.client.models.retrieve(MODEL).to_dict()["pressrun"]
        assert sampling["default_sampling"] == {
            "temperature": 1, "top_p": 0.99, "top_k": 0, "min_p": 0, "repetition_penalty": 1,
            "max_tokens": 12, "max_tokens_limit": 12,
        }  # fmt: skip
