"""From a file of prompts to every line answered, as a user drives it: `pressrun up`, the openai SDK, real weights.

One service serves all tests here. The processes are killed under it, and it must come through.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema_rs
import psutil
import pytest
import torch
from openai import APIConnectionError, NotFoundError, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

from pressrun.workers.native_tokenizer import NativeTokenizer

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MODEL = "smol"
ENDED = ("completed", "failed", "expired", "cancelled")
pytestmark = [pytest.mark.timeout(600)]


class Service:
    """`pressrun up` in a folder of its own, and the processes below it."""

    def __init__(self, folder: Path, model: Path, **changes: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "DATA_DIR": folder,
            "PORT": port,
            "MODEL": model,
            "SERVED_MODEL_NAME": MODEL,
            "LEASE_S": 2,
            "SHARD_LINES": 16,
            "MAX_MODEL_LEN": 512,
            "KV_CACHE_GB": 0.5,
        }
        environment = os.environ | {f"PRESSRUN_{name}": str(value) for name, value in (settings | changes).items()}
        self.log = open(folder / "up.log", "wb")  # noqa: SIM115 (closed in stop)
        command = [str(Path(sys.executable).parent / "pressrun"), "up"]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        self.client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0)

    def wait_until_ready(self, timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"pressrun up ended: {Path(self.log.name).read_text()}"
            try:
                if self.client.models.list().data:
                    return
            except APIConnectionError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready: {Path(self.log.name).read_text()}")

    def find(self, role: str) -> psutil.Process | None:
        """The live process of a role: api, worker, or engine (the worker's child)."""
        for child in psutil.Process(self.process.pid).children():
            if role in child.cmdline():
                return child
            if role == "engine" and "worker" in child.cmdline():
                engines = [one for one in child.children() if any("spawn_main" in word for word in one.cmdline())]
                return engines[0] if engines else None
        return None

    def kill(self, role: str) -> None:
        """SIGKILL, once there is something to kill."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            victim = self.find(role)
            if victim is not None:
                victim.kill()
                return
            time.sleep(0.1)
        raise AssertionError(f"no {role} process to kill")

    def stop(self) -> list[int]:
        """Stop as Ctrl-C does; the pids that were left behind."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        self.log.close()
        _, alive = psutil.wait_procs(below, timeout=5)
        return [process.pid for process in alive]

    # As a client

    def upload(self, lines: list[Any]) -> str:
        raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        return self.client.files.create(file=("in.jsonl", io.BytesIO(raw)), purpose="batch").id

    def create(self, lines: list[Any], endpoint: Any = CHAT) -> str:
        file_id = self.upload(lines)
        return self.client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h").id

    def wait(self, batch_id: str, timeout_s: float = 300.0) -> Any:
        """The ended batch; an API that is down for a moment is asked again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                batch = self.client.batches.retrieve(batch_id)
                if batch.status in ENDED:
                    return batch
            except APIConnectionError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"batch did not end: {Path(self.log.name).read_text()[-5000:]}")

    def wait_for_job(self, job: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """The job, ended."""
        deadline = time.monotonic() + timeout_s
        while job["status"] not in ENDED:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
            job = self.client.get(f"/jobs/{job['id']}", cast_to=dict[str, Any])  # type: ignore[arg-type]
        return job

    def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()] if file_id else []


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("road"), smollm2)
    try:
        service.wait_until_ready()
        yield service
    finally:
        left = service.stop()
    assert left == [], Path(service.log.name).read_text()


def ask(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    default = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": default | body}


def test_a_batch_of_questions_is_answered_line_by_line(service: Service) -> None:
    batch = service.wait(service.create([ask("a", "What is the capital of France?"), ask("b", "Say hello.")]))
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed) == (2, 2)
    first, second = service.lines_of(batch.output_file_id)
    assert (first["custom_id"], second["custom_id"]) == ("a", "b")
    answer = first["response"]["body"]
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert batch.usage.output_tokens == sum(
        line["response"]["body"]["usage"]["completion_tokens"] for line in (first, second)
    )


def test_embeddings_are_those_of_transformers(service: Service, smollm2: Path) -> None:
    texts = ["The cat sat on the mat.", "A kitten rested on a rug.", "Interest rates rose in March."]
    lines = [
        ask(f"{i}", "") | {"url": EMBEDDINGS, "body": {"model": MODEL, "input": text}} for i, text in enumerate(texts)
    ]
    lines.append(lines[0] | {"custom_id": "all", "body": {"model": MODEL, "input": texts}})
    batch = service.wait(service.create(lines, EMBEDDINGS))
    *single, together = (line["response"]["body"]["data"] for line in service.lines_of(batch.output_file_id))
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for i, tokens in enumerate(NativeTokenizer(smollm2).encode(texts)):
        with torch.inference_mode():
            states = model(torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states[-1][0]
        wanted = torch.nn.functional.normalize(states[-1], dim=0)
        for data in (single[i][0], together[i]):
            # The service may compute in bfloat16.
            assert float(torch.tensor(data["embedding"]) @ wanted) > 0.99
    assert batch.usage.output_tokens == 0


def test_metrics_tell_of_what_the_engine_did(service: Service) -> None:
    """After the tests above."""

    def told() -> dict[str, float]:
        text = httpx.get(str(service.client.base_url).replace("/v1/", "/metrics")).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return {one.name: one.value for one in samples if one.labels.get("model_name") == MODEL}

    batch = service.wait(
        service.create([ask(f"{i}", f"Count to {i}.", max_tokens=8, ignore_eos=True) for i in range(8)])
    )
    assert batch.request_counts.completed == 8
    deadline = time.monotonic() + 30
    while told().get("vllm:inter_token_latency_seconds_count", 0) < 8 * 7:
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)
    found = told()
    assert found["vllm:generation_tokens_total"] >= 64
    assert 0 < found["vllm:time_to_first_token_seconds_sum"] < found["vllm:e2e_request_latency_seconds_sum"]
    assert found["vllm:num_requests_running"] == 0


def test_a_bad_request_fails_its_own_line_alone(service: Service) -> None:
    lines = [
        ask("good", "Say hello."),
        ask("long", "word " * 600),
        ask("room", "Say hello.", max_tokens=5000),
        ask("unknown", "Say hello.", frobnicate=1),
        ask("text", "Say hello.") | {"body": "text"},
        ask("also good", "Say hello."),
    ]
    batch = service.wait(service.create(lines))
    assert batch.status == "completed"
    assert [line["custom_id"] for line in service.lines_of(batch.output_file_id)] == ["good", "also good"]
    errors = {line["custom_id"]: line["response"] for line in service.lines_of(batch.error_file_id)}
    assert list(errors) == ["long", "room", "unknown", "text"]
    assert {response["status_code"] for response in errors.values()} == {400}
    said = {name: response["body"]["error"] for name, response in errors.items()}
    assert (said["long"]["code"], said["long"]["param"]) == ("context_length_exceeded", "messages")
    assert said["room"]["param"] == "max_tokens"
    assert (said["unknown"]["code"], said["unknown"]["param"]) == ("unknown_parameter", "frobnicate")
    assert (said["text"]["code"], said["text"]["param"]) == ("invalid_type", "body")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 4)


def test_answers_have_the_shape_that_their_line_asks_for(service: Service) -> None:
    question = "Name a city and how many people live there, as JSON."
    city: dict[str, Any] = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "city", "schema": city, "strict": True}}
    lines = [
        ask("schema", question, max_tokens=100, response_format=named),
        ask("free", "Say hello."),
        ask("two", question, max_tokens=100, n=2, temperature=1, seed=3, response_format=named),
        ask("choice", "Is water wet?", structured_outputs={"choice": ["certainly", "hardly"]}),
        ask("regex", "When did it end?", structured_outputs={"regex": "In (19|20)[0-9]{2}, in [A-Z][a-z]{2,8}[.]"}),
        ask(
            "bad",
            question,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}},
        ),
    ]
    batch = service.wait(service.create(lines))
    answers = {
        line["custom_id"]: line["response"]["body"]["choices"] for line in service.lines_of(batch.output_file_id)
    }
    assert list(answers) == ["schema", "free", "two", "choice", "regex"]
    texts = {name: [choice["message"]["content"] for choice in choices] for name, choices in answers.items()}
    print(texts)
    for text in texts["schema"] + texts["two"]:
        jsonschema_rs.validate(city, json.loads(text))
    assert texts["choice"][0] in ("certainly", "hardly")
    assert re.fullmatch("In (19|20)[0-9]{2}, in [A-Z][a-z]{2,8}[.]", texts["regex"][0])
    assert {choice["finish_reason"] for name in ("schema", "two", "choice") for choice in answers[name]} == {"stop"}
    (error,) = service.lines_of(batch.error_file_id)
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["param"] == "response_format.json_schema.schema"


def test_a_prompts_tokens_are_scored(service: Service) -> None:
    batch = service.wait(service.create([ask("a", "The capital of France is Paris.", prompt_logprobs=1, max_tokens=1)]))
    (line,) = service.lines_of(batch.output_file_id)
    first, *others = line["response"]["body"]["prompt_logprobs"]
    assert first is None
    assert len(others) == line["response"]["body"]["usage"]["prompt_tokens"] - 1
    likely = [one["decoded_token"] for by_id in others for one in by_id.values() if one["rank"] == 1]
    assert len(likely) == len(others)
    assert " Paris" in likely


def test_a_prompt_is_scored_online_without_an_answer_as_with_one(service: Service) -> None:
    asked: Any = {"model": MODEL, "prompt": "The capital of France is Paris.", "echo": True, "logprobs": 1}
    (alone,) = service.client.completions.create(**asked, max_tokens=0).choices
    (answered,) = service.client.completions.create(**asked, max_tokens=1).choices
    assert alone.text == asked["prompt"]
    assert alone.logprobs is not None
    assert answered.logprobs is not None
    assert answered.logprobs.tokens is not None
    assert alone.logprobs.tokens == answered.logprobs.tokens[:-1]
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(answered.logprobs.token_logprobs[1:-1], abs=1e-2)


def test_tokens_are_favoured_and_forbidden_line_by_line(service: Service, smollm2: Path) -> None:
    paris, rome = (token for (token,) in NativeTokenizer(smollm2).encode_words([" Paris", " Rome"]))
    question = "What is the capital of France?"
    lines = [
        ask("bias", question, logit_bias={str(rome): 100}),
        ask("allowed", question, allowed_token_ids=[paris, rome]),
        ask("bad", question, bad_words=["Paris"], logit_bias={str(paris): 100, str(rome): 50}),
        ask("range", question, logit_bias={str(rome): 101}),
        ask("unknown", question, logit_bias={"49152": 1}),
        ask("none", question, allowed_token_ids=[]),
        ask("nothing left", question, allowed_token_ids=[paris], bad_words=["Paris"]),
        ask("blank", question, bad_words=[""]),
    ]
    batch = service.wait(service.create(lines))
    output = {line["custom_id"]: line["response"]["body"] for line in service.lines_of(batch.output_file_id)}
    said = {name: body["choices"][0]["message"]["content"] for name, body in output.items()}
    assert said["bias"] == " Rome" * 16
    assert len(said["allowed"].split()) == 16
    assert set(said["allowed"].split()) <= {"Paris", "Rome"}
    assert said["bad"] == " Rome" * 16
    errors = {line["custom_id"]: line["response"] for line in service.lines_of(batch.error_file_id)}
    assert {name: (error["status_code"], error["body"]["error"]["param"]) for name, error in errors.items()} == {
        "range": (400, "logit_bias"),
        "unknown": (400, "logit_bias"),
        "none": (400, "allowed_token_ids"),
        "nothing left": (400, "allowed_token_ids"),
        "blank": (400, "bad_words[0]"),
    }


def test_a_completion_job_echoes_its_prompt(service: Service) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0, "echo": True}
    job = service.client.post("/jobs", body={"url": "/v1/completions", "body": body}, cast_to=dict[str, Any])  # type: ignore[arg-type]
    job = service.wait_for_job(job)
    assert job["status"] == "completed"
    text = job["response"]["body"]["choices"][0]["text"]
    assert text.startswith("The capital of France is")
    assert len(text) > len(body["prompt"])


@pytest.mark.parametrize("wanted", [{}, {"stop": ["Paris", "Rome"]}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_of_a_real_model_says_what_its_whole_answer_says(service: Service, wanted: dict[str, Any]) -> None:
    body = ask("x", "What are the capitals of France and Italy? 🇫🇷🇮🇹", max_tokens=40)["body"] | wanted
    whole = service.client.chat.completions.create(**body)
    chunks = list(service.client.chat.completions.create(**body, stream=True))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        told = [entry.token for one in mine if one.logprobs for entry in one.logprobs.content or ()]
        known = choice.logprobs.content if choice.logprobs else None
        assert told == [entry.token for entry in known or ()]


def test_a_streamed_response_is_parsed_as_the_whole_one_is(service: Service) -> None:
    class City(BaseModel):
        name: Literal["Rome", "Paris"]
        capital_of: Literal["Italy", "France"]

    asked: Any = {"model": MODEL, "input": "Name a capital, as JSON.", "temperature": 0, "text_format": City}
    whole = service.client.responses.parse(**asked)
    with service.client.responses.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == whole.status == "completed"
    assert "".join(pieces) == final.output_text == whole.output_text
    assert len(pieces) > 3
    assert isinstance(final.output_parsed, City)
    assert final.output_parsed == whole.output_parsed


def test_a_file_with_one_of_every_bad_line_fails_with_all_errors_and_their_lines(service: Service) -> None:
    good = ask("a", "hi")
    lines: list[Any] = [
        good,
        b"{nope",
        *[{key: value for key, value in ask(f"no {name}", "hi").items() if key != name} for name in good],
        ask("url", "hi") | {"url": "/v1/completions"},
        ask("stream", "hi", stream=True),
        ask("model", "hi", model="gpt-5"),
        ask("no model", "hi", model=None),
        ask("no messages", "hi", messages=None),
        ask("a", "hi"),
    ]
    batch = service.wait(service.create(lines))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert [(e.line, e.code, e.param) for e in batch.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "missing_required_parameter", "custom_id"),
        (4, "missing_required_parameter", "method"),
        (5, "missing_required_parameter", "url"),
        (6, "missing_required_parameter", "body"),
        (7, "invalid_url", "url"),
        (8, "streaming_unsupported", "body.stream"),
        (9, "model_not_found", "body.model"),
        (10, "invalid_request", "body.model"),
        (11, "invalid_request", "body.messages"),
        (12, "duplicate_custom_id", "custom_id"),
    ]


def test_a_native_job_is_answered_at_once_and_polled(service: Service) -> None:
    body = ask("x", "What is the capital of France?")["body"]
    job = service.client.post("/jobs", body={"url": CHAT, "body": body}, cast_to=dict[str, Any])  # type: ignore[arg-type]
    job = service.wait_for_job(job)
    assert job["status"] == "completed"
    assert "Paris" in job["response"]["body"]["choices"][0]["message"]["content"]
    with pytest.raises(NotFoundError) as caught:
        service.client.post("/jobs", body={"url": CHAT, "body": body | {"model": "gpt-5"}}, cast_to=object)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("role", ["worker", "engine", "api"])
def test_killing_a_process_at_random_moments_loses_and_repeats_nothing(service: Service, role: str) -> None:
    chance = random.Random(f"kill {role}")
    names = [f"line-{i}" for i in range(200)]
    lines = [ask(name, f"Count from {i} to {i + 3}.", max_tokens=8, ignore_eos=True) for i, name in enumerate(names)]
    lines[50] |= {"body": {"model": MODEL, "messages": [], "max_tokens": 1}}  # one that fails, among those that do not
    batch_id = service.create(lines)
    for _ in range(2):
        time.sleep(chance.uniform(0.5, 3.0))
        service.kill(role)
    batch = service.wait(batch_id)
    assert batch.status == "completed"
    output, errors = service.lines_of(batch.output_file_id), service.lines_of(batch.error_file_id)
    assert [line["custom_id"] for line in output] == names[:50] + names[51:]
    assert [line["custom_id"] for line in errors] == [names[50]]
    assert (batch.request_counts.completed, batch.request_counts.failed) == (199, 1)
    assert batch.usage.output_tokens == 199 * 8
    service.wait_until_ready()


def test_a_cancelled_batch_answers_every_line_once(service: Service) -> None:
    names = [f"line-{i}" for i in range(400)]
    batch_id = service.create([ask(name, "Tell me a long story.", max_tokens=200, ignore_eos=True) for name in names])
    time.sleep(2.0)
    service.client.batches.cancel(batch_id)
    batch = service.wait(batch_id, timeout_s=60)
    assert batch.status == "cancelled"
    output, errors = service.lines_of(batch.output_file_id), service.lines_of(batch.error_file_id)
    assert sorted(line["custom_id"] for line in output + errors) == sorted(names)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


def test_the_readmes_first_batch_runs_as_it_stands(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    questions = re.search(r"cat > questions.jsonl <<'EOF'\n(.*?)EOF\n", readme, flags=re.S)
    example = re.search(r"```python\n(.*?)```", readme, flags=re.S)
    assert questions is not None
    assert example is not None
    (tmp_path / "questions.jsonl").write_text(questions[1].replace("smollm2-135m-instruct", MODEL))
    monkeypatch.chdir(tmp_path)
    code = example[1].replace("http://localhost:8000/v1", str(service.client.base_url))
    code = code.replace('open("questions.jsonl", "rb")', 'Path("questions.jsonl")')  # which the SDK closes
    exec(compile(code, "README.md", "exec"), {"Path": Path})
    said = capsys.readouterr().out
    assert "completed=2" in said
    assert [json.loads(line)["custom_id"] for line in said.splitlines() if line.startswith("{")] == ["q1", "q2"]
