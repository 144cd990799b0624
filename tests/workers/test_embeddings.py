"""Embedding requests, from a body to OpenAI's answer: alone, in batches and as jobs."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from pressrun.engine.request import EMBEDDING_PARAMS, Embedding, ModelInfo, Output
from pressrun.jobs.records import ENDED, Line, LineResult
from pressrun.jobs.submit import create_batch, create_file, create_job, job_result
from pressrun.workers import embeddings
from pressrun.workers.echo_engine import ByteTokenizer, EchoEngine
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import answer
from pressrun.workers.twins import Answer

URL = "/v1/embeddings"
CONTEXT, SIZE = 100, 8


def prompts(embedding_size: int = SIZE) -> Prompts:
    info = ModelInfo(max_model_len=CONTEXT, vocab_size=256, embedding_size=embedding_size)
    return Prompts(ByteTokenizer(), info, "m")


def line(**body: Any) -> Line:
    return Line(index=0, custom_id="a", url=URL, body={"model": "m", "input": "hi"} | body)


def ready(**body: Any) -> Prepared:
    (result,) = prompts().prepare([line(**body)])
    assert isinstance(result, Prepared), result
    return result


def refusal(among: Prompts | None = None, **body: Any) -> dict[str, Any]:
    (result,) = (among or prompts()).prepare([line(**body)])
    assert isinstance(result, LineResult)
    assert result.outcome == "failed"
    error: dict[str, Any] = json.loads(result.data)["response"]["body"]["error"]
    return error


def answered(**body: Any) -> tuple[dict[str, Any], Any]:
    """A line's answer, by the stand-in engine."""
    prepared, engine = ready(**body), EchoEngine()
    engine.add(prepared.requests("0", 0))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    return answer(prepared, outputs, ByteTokenizer())


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("hi", [[104, 105]]),
        (["hi", "you"], [[104, 105], [121, 111, 117]]),
        ([7, 8], [[7, 8]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ],
)
def test_each_input_is_a_request_for_one_vector(given: Any, tokens: list[list[int]]) -> None:
    requests = ready(input=given, dimensions=3).requests("r", -1)
    assert [list(request.prompt) for request in requests] == tokens
    assert [request.id for request in requests] == [f"r.{i}" for i in range(len(tokens))]
    assert all(request.embedding == Embedding(dimensions=3) for request in requests)
    assert all(request.params == EMBEDDING_PARAMS for request in requests)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": ""}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": ["a", ""]}, "input", "must not be empty"),
        ({"input": [[1], []]}, "input", "must not be empty"),
        ({"input": 7}, "input", ""),
        ({"input": [1, "a"]}, "input", ""),
        ({"input": [256]}, "input", "token 256 is not in the model's vocabulary"),
        ({"input": "x" * CONTEXT}, "input", "embeds at most 99 tokens. However, an input has 100"),
        ({"input": ["x"] * 2049}, "input", "2048"),
        ({"dimensions": 9}, "dimensions", "from 1 to 8, not 9"),
        ({"dimensions": 0}, "dimensions", ""),
        ({"encoding_format": "int8"}, "encoding_format", ""),
        ({"temperature": 1}, "temperature", ""),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(body: dict[str, Any], param: str, said: str) -> None:
    error = refusal(**body)
    assert error["param"].startswith(param)
    assert said in error["message"]


def test_a_model_without_embeddings_says_so() -> None:
    error = refusal(prompts(embedding_size=0))
    assert (error["param"], "gives no embeddings" in error["message"]) == ("model", True)


def test_a_model_that_gives_nothing_else_says_so() -> None:
    info = ModelInfo(max_model_len=CONTEXT, vocab_size=256, embedding_size=SIZE, generates=False)
    asked = Line(index=0, custom_id="a", url="/v1/completions", body={"model": "m", "prompt": "hi"})
    (result,) = Prompts(ByteTokenizer(), info, "m").prepare([asked])
    assert isinstance(result, LineResult)
    assert b"gives embeddings only, at /v1/embeddings" in result.data


def test_an_answer_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_NUMBERS", 3 * SIZE)
    assert "Send fewer inputs" in refusal(input=["a"] * 4)["message"]
    assert ready(input=["a"] * 3)
    assert ready(input=["a"] * 4, dimensions=6)


def test_the_answer_is_what_the_sdk_expects() -> None:
    body, usage = answered(input=["hi", "you"])
    parsed = CreateEmbeddingResponse.model_validate(body, strict=True)
    assert [one.index for one in parsed.data] == [0, 1]
    assert [len(one.embedding) for one in parsed.data] == [SIZE, SIZE]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (usage.input_tokens, usage.output_tokens) == (5, 0)
    assert set(body) == {"object", "data", "model", "usage"}


def test_both_encodings_say_exactly_what_the_engine_said() -> None:
    values = array("f", [0.1, -1 / 3, 1e-7, 3.4e38, 0.0])
    output = Output(id="0.0", token_ids=[], finish_reason="stop", embedding=values.tobytes())
    as_floats, _ = answer(ready(), [output], ByteTokenizer())
    assert array("f", as_floats["data"][0]["embedding"]) == values
    as_base64, _ = answer(ready(encoding_format="base64"), [output], ByteTokenizer())
    raw = base64.b64decode(as_base64["data"][0]["embedding"])
    assert struct.unpack("<5f", raw) == tuple(values)


def test_embeddings_are_bound_to_be_the_same_and_are_remembered_by_their_size() -> None:
    assert ready().twin is not None
    assert ready().twin == ready(encoding_format="float").twin
    assert ready().twin != ready(dimensions=4).twin
    assert Answer(outputs=(Output(id="a", token_ids=[], embedding=b"x" * 400),)).num_tokens == 100


def ask(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"model": "m", "input": f"text of {custom_id}"} | body
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}


def test_a_batch_of_embeddings_is_answered_line_by_line(farm: Any) -> None:
    farm.work()
    lines = [ask(f"line-{i}") for i in range(20)]
    lines += [ask("many", input=["a", "b"], encoding_format="base64"), ask("wrong", dimensions=1000)]
    raw = "\n".join(map(json.dumps, lines)).encode()
    file = create_file(farm.backend, filename="in.jsonl", purpose="batch", chunks=[raw])
    batch = create_batch(farm.backend, input_file_id=file.id, endpoint=URL, completion_window="24h")
    output, errors = farm.results(batch)
    assert [one["custom_id"] for one in output] == [*(f"line-{i}" for i in range(20)), "many"]
    assert [one["custom_id"] for one in errors] == ["wrong"]
    for one in output[:-1]:
        CreateEmbeddingResponse.model_validate(one["response"]["body"])
    ended = farm.backend.store.batch(batch.id)
    used = sum(one["response"]["body"]["usage"]["total_tokens"] for one in output)
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (used, 0)
    assert farm.backend.store.answer_tokens() == {}  # There was no answer to learn from.


def test_what_a_batch_of_embeddings_lacks_is_found_in_validation(farm: Any) -> None:
    farm.work()
    lines = [ask("a"), ask("b", input=None), ask("c", stream=True)]
    raw = "\n".join(map(json.dumps, lines)).encode()
    file = create_file(farm.backend, filename="in.jsonl", purpose="batch", chunks=[raw])
    batch = create_batch(farm.backend, input_file_id=file.id, endpoint=URL, completion_window="24h")
    ended = farm.wait(batch)
    assert [(error.line, error.param) for error in ended.errors] == [(2, "body.input"), (3, "body.stream")]
    assert "Embeddings: Streaming" in ended.errors[1].message


def test_a_job_can_be_an_embedding(farm: Any) -> None:
    farm.work()
    job = create_job(farm.backend, url=URL, body={"model": "m", "input": "hi"})
    farm.until(lambda: farm.backend.store.batch(job.id).status in ENDED)
    result = job_result(farm.backend, farm.backend.store.batch(job.id))
    assert result is not None
    assert len(result["response"]["body"]["data"][0]["embedding"]) == SIZE
