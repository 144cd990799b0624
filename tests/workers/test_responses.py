"""Response bodies in OpenAI's shape: the SDK's own types read them, and the text ends where it should."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pressrun.engine.request import ModelInfo, Output, PromptLogprob, TokenLogprob
from pressrun.jobs.records import Line, Usage
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import answer, choice_of, result_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
EOS = 0
TOKENIZER = ByteTokenizer()


def prepared(url: str = CHAT, **body: Any) -> Prepared:
    default: dict[str, Any] = {"model": "m"}
    default |= {"messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {"prompt": "hi"}
    line = Line(index=0, custom_id="a", url=url, body=default | body)
    (ready,) = Prompts(TOKENIZER, ModelInfo(max_model_len=100, vocab_size=256), "m").prepare([line])
    assert isinstance(ready, Prepared)
    return ready


def output(text: str | bytes, reason: Any = "length", **fields: Any) -> Output:
    raw = text.encode() if isinstance(text, str) else text
    return Output(id="0.0", token_ids=list(raw), finish_reason=reason, **fields)


def said(line: Prepared, one: Output) -> str:
    return choice_of(line.body, one, TOKENIZER).text


def test_a_chat_answer_is_read_by_the_sdk() -> None:
    body, usage = answer(prepared(), [output("hello\0", "stop", num_cached_tokens=4)], TOKENIZER)
    chat = ChatCompletion.model_validate(body, strict=True)
    assert chat.id.startswith("chatcmpl-")
    assert (chat.model, chat.object) == ("m", "chat.completion")
    (choice,) = chat.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("hello", "assistant", "stop")
    assert choice.logprobs is None
    assert usage == Usage(input_tokens=8, cached_tokens=4, output_tokens=6)
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (8, 6, 14)
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == 4


def test_a_text_answer_is_read_by_the_sdk() -> None:
    line = prepared(TEXT, prompt=["hi", "ho"], n=2, logprobs=1)
    top = TokenLogprob(token_id=ord("x"), logprob=-0.5, top=((ord("x"), -0.5),))
    outputs = [output("x", logprobs=[top], num_cached_tokens=cached) for cached in (2, 0, 2, 2)]
    body, usage = answer(line, outputs, TOKENIZER)
    text = Completion.model_validate(body, strict=True)
    assert text.id.startswith("cmpl-")
    assert text.object == "text_completion"
    assert [(choice.index, choice.text) for choice in text.choices] == [(0, "x"), (1, "x"), (2, "x"), (3, "x")]
    # A prompt counts once, and is cached as far as it was before its first choice.
    assert usage == Usage(input_tokens=4, cached_tokens=2, output_tokens=4)
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["x"], [-0.5], [0])
    assert logprobs.top_logprobs == [{"x": -0.5}]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hi é", ["hi é 0", "hi é 1"]),
        (["hi", "ho"], ["hi 0", "hi 1", "ho 2", "ho 3"]),
        ([104, 105], ["hi 0", "hi 1"]),
        ([[104, 105], [104, 111]], ["hi 0", "hi 1", "ho 2", "ho 3"]),
    ],
)
def test_an_echo_repeats_the_prompt_of_each_choice(prompt: Any, texts: list[str]) -> None:
    line = prepared(TEXT, prompt=prompt, n=2, echo=True, stop="hi")
    # A stop string in the prompt stops nothing.
    outputs = [output(f" {i}hi", "stop", stop_reason="hi") for i in range(len(texts))]
    body, usage = answer(line, outputs, TOKENIZER)
    assert [choice.text for choice in Completion.model_validate(body, strict=True).choices] == texts
    assert usage.output_tokens == 4 * len(texts)


def test_chat_logprobs_carry_bytes_of_characters_cut_in_two() -> None:
    raw = "é".encode()
    entries = [TokenLogprob(token_id=byte, logprob=-1.0, top=((byte, -1.0), (65, float("-inf")))) for byte in raw]
    body, _ = answer(prepared(logprobs=True, top_logprobs=2), [output(raw, logprobs=entries)], TOKENIZER)
    chat = ChatCompletion.model_validate(body, strict=True)
    assert chat.choices[0].message.content == "é"
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [token.bytes for token in content] == [[raw[0]], [raw[1]]]
    assert content[0].top_logprobs[1].logprob == -9999.0
    assert content[0].top_logprobs[1].token == "A"


def test_the_token_that_ends_a_sequence_is_not_part_of_its_text() -> None:
    assert said(prepared(), output("yes\0", "stop")) == "yes"
    assert said(prepared(stop_token_ids=[33]), output("yes!", "stop", stop_reason=33)) == "yes"
    line = prepared(stop_token_ids=[33], include_stop_str_in_output=True)
    assert said(line, output("yes!", "stop", stop_reason=33)) == "yes!"
    assert said(prepared(), output("yes!", "length")) == "yes!"


@pytest.mark.parametrize(
    ("body", "text", "expected"),
    [
        ({"stop": "END"}, "one ENDx", "one "),
        ({"stop": "END", "include_stop_str_in_output": True}, "one ENDx", "one END"),
        # The first one came before min_tokens were written.
        ({"stop": "END", "min_tokens": 6}, "END one END", "END one "),
    ],
)
def test_text_ends_before_its_stop_string(body: dict[str, Any], text: str, expected: str) -> None:
    assert said(prepared(**body), output(text, "stop", stop_reason="END")) == expected


def test_logprobs_end_where_the_text_ends() -> None:
    entries = [TokenLogprob(token_id=byte, logprob=0.0) for byte in b"ab--"]
    choice = choice_of(
        prepared(stop="--", logprobs=True).body,
        output("ab--", "stop", stop_reason="--", logprobs=entries),
        TOKENIZER,
    )
    assert choice.logprobs is not None
    assert [entry.token_id for entry in choice.logprobs] == [97, 98]


def test_what_the_engine_refuses_is_a_failed_line() -> None:
    result = result_of(prepared(), [output("", "error", error="too long for the page pool")], TOKENIZER)
    assert result.outcome == "failed"
    assert b"too long for the page pool" in result.data
    assert b'"status_code":500' in result.data


def scored(text: str) -> list[PromptLogprob]:
    """All tokens but the first; the likeliest is always x."""
    return [PromptLogprob(token_id=t, logprob=-2.0, rank=3, top=((ord("x"), -0.5),)) for t in text.encode()[1:]]


def test_an_echo_with_log_probabilities_has_those_of_the_prompt_in_front() -> None:
    line = prepared(TEXT, prompt=["hi", "ho"], n=2, echo=True, logprobs=1)
    assert [request.params.prompt_logprobs for request in line.requests("0", 0)] == [1, None, 1, None]
    top = TokenLogprob(token_id=ord("y"), logprob=-0.5, top=((ord("y"), -0.5),))
    prompts = [scored("hi"), None, scored("ho"), None]
    outputs = [output("y", logprobs=[top], prompt_logprobs=prompt) for prompt in prompts]
    body, _ = answer(line, outputs, TOKENIZER)
    assert [choice["text"] for choice in body["choices"]] == ["hiy", "hiy", "hoy", "hoy"]
    for choice in body["choices"]:
        assert choice["logprobs"] == {
            "tokens": [*choice["text"]],
            "token_logprobs": [None, -2.0, -0.5],
            "top_logprobs": [None, {"x": -0.5}, {"y": -0.5}],
            "text_offset": [0, 1, 2],
        }
        assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("url", [CHAT, TEXT])
def test_a_prompts_log_probabilities_are_listed_as_vllm_has_them(url: str) -> None:
    line = prepared(url, prompt_logprobs=1)
    body, _ = answer(line, [output("y", prompt_logprobs=scored("hi"))], TOKENIZER)
    listed = (body if url == CHAT else body["choices"][0])["prompt_logprobs"]
    assert listed == [
        None,
        {
            "120": {"logprob": -0.5, "rank": 1, "decoded_token": "x"},
            "105": {"logprob": -2.0, "rank": 3, "decoded_token": "i"},
        },
    ]


def test_more_scores_than_an_answer_can_hold_are_refused() -> None:
    body = {"model": "m", "prompt": ["a" * 90] * 100, "n": 2, "prompt_logprobs": 20}
    line = Line(index=0, custom_id="a", url=TEXT, body=body)
    (result,) = Prompts(TOKENIZER, ModelInfo(max_model_len=200, vocab_size=256), "m").prepare([line])
    assert b"378000 log-probabilities of prompts would be reported" in result.data
