"""From a line's body to engine requests: what fits, what does not, and how it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pressrun.engine.request import ModelInfo
from pressrun.jobs.records import Line, LineResult
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.native_tokenizer import NativeTokenizer
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.rendering import PLAINLY, Rendering

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CONTEXT = 100


class Picky(ByteTokenizer):
    """A chat template that refuses one role, and a bug that one word triggers."""

    def chat(self, messages: Sequence[dict[str, Any]], how: Rendering = PLAINLY) -> Sequence[int]:
        if messages[-1]["role"] == "assistant":
            raise ValueError("the last message must be the user's")
        if "bug" in messages[-1]["content"]:
            raise ZeroDivisionError
        return super().chat(messages, how)


@pytest.fixture
def prompts() -> Prompts:
    return Prompts(Picky(), ModelInfo(max_model_len=CONTEXT, vocab_size=256), "m")


def line(url: str = CHAT, **body: Any) -> Line:
    default: dict[str, Any] = {"model": "m"}
    default |= {"messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {"prompt": "hi"}
    return Line(index=0, custom_id="a", url=url, body=default | body)


def ready(prompts: Prompts, one: Line) -> Prepared:
    (result,) = prompts.prepare([one])
    assert isinstance(result, Prepared), result
    return result


def refusal(prompts: Prompts, one: Line) -> tuple[int, dict[str, Any]]:
    (result,) = prompts.prepare([one])
    assert isinstance(result, LineResult)
    assert result.outcome == "failed"
    response = json.loads(result.data)["response"]
    return response["status_code"], response["body"]["error"]


def say(text: str, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text}]}


def test_max_tokens_is_what_fits_unless_it_is_given(prompts: Prompts) -> None:
    assert ready(prompts, line()).params[0].max_tokens == CONTEXT - len("user: hi")
    assert ready(prompts, line(max_tokens=7)).params[0].max_tokens == 7
    assert ready(prompts, line(max_tokens=7, max_completion_tokens=9)).params[0].max_tokens == 9
    assert ready(prompts, line(TEXT)).params[0].max_tokens == 16
    assert ready(prompts, line(TEXT, prompt="x" * 90)).params[0].max_tokens == 10


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(prompts: Prompts) -> None:
    status, error = refusal(prompts, line(**say("x" * 200)))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert error["message"].startswith(
        "This model's maximum context length is 100 tokens. However, your messages resulted in 206 tokens."
    )
    status, error = refusal(prompts, line(TEXT, prompt=["fits", "x" * 100]))
    assert (status, error["param"]) == (400, "prompt")
    assert "your prompt resulted in 100 tokens" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"max_tokens": 93}, "max_tokens", "'max_tokens' asks for 93: at most 92 fit"),
        ({"max_completion_tokens": 1000}, "max_completion_tokens", "asks for 1000: at most 92 fit"),
        ({"min_tokens": 93}, "min_tokens", "'min_tokens' asks for 93: at most 92 fit"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_by_name(
    prompts: Prompts, body: dict[str, int], param: str, said: str
) -> None:
    status, error = refusal(prompts, line(**body))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert said in error["message"]
    assert "8 tokens" in error["message"]


def test_another_model_is_not_found(prompts: Prompts) -> None:
    status, error = refusal(prompts, line(model="gpt-5"))
    assert (status, error["code"]) == (404, "model_not_found")
    assert "`gpt-5`" in error["message"]


def test_what_a_template_refuses_is_the_users_to_mend_and_a_bug_is_not(prompts: Prompts) -> None:
    status, error = refusal(prompts, line(**say("and then", "assistant")))
    assert (status, error["param"]) == (400, "messages")
    assert "the last message must be the user's" in error["message"]
    status, error = refusal(prompts, line(**say("a bug")))
    assert (status, error["type"]) == (500, "server_error")
    assert isinstance(prompts.prepare([line(**say("a bug")), line()])[1], Prepared)


def test_a_body_that_is_no_object_or_has_unknown_fields_is_refused(prompts: Prompts) -> None:
    assert refusal(prompts, Line(index=0, custom_id="a", url=CHAT, body="text"))[1]["param"] == "body"  # type: ignore[arg-type]
    assert refusal(prompts, line(frobnicate=1))[1]["code"] == "unknown_parameter"
    assert refusal(prompts, line(TEXT, suffix="x"))[1]["param"] == "suffix"
    assert refusal(prompts, line(stream=True))[1]["code"] == "streaming_unsupported"


def test_options_that_were_not_judged_when_the_batch_came_fail_their_line_alone(prompts: Prompts) -> None:
    status, error = refusal(prompts, replace(line(), options=5))
    assert (status, error["code"], error["param"]) == (400, "invalid_type", "pressrun")
    assert ready(prompts, replace(line(), options={"timeout_s": 2})).timeout_s == 2
    assert ready(prompts, line()).timeout_s is None


def test_completion_prompts_come_in_four_shapes(prompts: Prompts) -> None:
    for shape, expected in (
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ):
        assert [bytes(prompt) for prompt in ready(prompts, line(TEXT, prompt=shape)).prompts] == expected
    status, error = refusal(prompts, line(TEXT, prompt=[97, 256]))
    assert (status, error["param"]) == (400, "prompt")
    assert "token 256 is not in the model's vocabulary" in error["message"]
    assert refusal(prompts, line(stop_token_ids=[999]))[1]["param"] == "stop_token_ids"


def test_choices_of_a_seeded_request_have_seeds_of_their_own_that_stay_the_same(prompts: Prompts) -> None:
    first, again = (ready(prompts, line(n=3, seed=5)).requests("7", 0) for _ in range(2))
    seeds = [request.params.seed for request in first]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert seeds == [request.params.seed for request in again]
    assert [request.id for request in first] == ["7.0", "7.1", "7.2"]
    assert [request.params.seed for request in ready(prompts, line(n=2)).requests("7", 0)] == [None, None]


def test_every_sampling_parameter_reaches_the_engine(prompts: Prompts) -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": -3,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.2,
        "stop_token_ids": [9],
        "ignore_eos": True,
        "min_tokens": 2,
    }
    params = ready(prompts, line(**given, stop="\n", logprobs=True, top_logprobs=4)).params[0]
    for name, value in given.items():
        assert getattr(params, name) == (tuple(value) if isinstance(value, list) else value)
    assert params.stop == ("\n",)
    assert params.logprobs == 4
    assert ready(prompts, line(logprobs=True)).params[0].logprobs == 0
    assert ready(prompts, line()).params[0].logprobs is None
    assert ready(prompts, line(top_k=-1)).params[0].top_k == 0


def test_constraints_reach_the_engine_as_token_ids(prompts: Prompts) -> None:
    constraints: dict[str, Any] = {
        "logit_bias": {"65": -100, "7": 0.5},
        "allowed_token_ids": [65, 7],
        "bad_words": ["no", "  no", "ox"],
    }
    for url in (CHAT, TEXT):
        params = ready(prompts, line(url, **constraints)).params[0]
        assert params.logit_bias == ((65, -100.0), (7, 0.5))
        assert params.allowed_token_ids == (65, 7)
        # At the beginning of a text and after a space; leading spaces in a request say nothing.
        assert [bytes(word) for word in params.bad_words_token_ids] == [b"no", b" no", b"ox", b" ox"]
    params = ready(prompts, line(logit_bias={}, bad_words=[])).params[0]
    assert (params.logit_bias, params.allowed_token_ids, params.bad_words_token_ids) == ((), (), ())


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"logit_bias": {"256": 1}}, "logit_bias", "token 256 is not in the model's vocabulary, which has 256 tokens."),
        ({"allowed_token_ids": [1, 300]}, "allowed_token_ids", "token 300 is not in the model's vocabulary"),
        ({"bad_words": ["x" * 32]}, "bad_words", "one has 33 tokens, and 1 to 32 are allowed"),
        ({"bad_words": ["no", "x"], "allowed_token_ids": [111, 120]}, "allowed_token_ids", "allow one more"),
    ],
)
def test_constraints_that_the_model_cannot_keep_are_refused_by_name(
    prompts: Prompts, body: dict[str, Any], param: str, said: str
) -> None:
    status, error = refusal(prompts, line(**body))
    assert (status, error["code"], error["param"]) == (400, "invalid_value", param)
    assert said in error["message"]


def test_an_echo_of_more_than_a_million_tokens_is_refused(prompts: Prompts) -> None:
    body: dict[str, Any] = {"prompt": ["x" * 64] * 128, "echo": True}
    assert ready(prompts, line(TEXT, **body, n=128)).num_choices == 128 * 128
    status, error = refusal(prompts, line(TEXT, **body | {"prompt": ["x" * 64] * 129}, n=128))
    assert (status, error["code"], error["param"]) == (400, "invalid_value", "echo")
    assert "1056768 tokens" in error["message"]


def test_a_requests_own_priority_counts_among_its_kind_of_work(prompts: Prompts) -> None:
    def priority(kind: int, own: int) -> int:
        return ready(prompts, line(priority=own)).requests("7", kind)[0].priority

    # From what runs first to what runs last.
    order = [priority(-1, -5), priority(-1, 0), priority(-1, 100), priority(0, -100), priority(0, 0), priority(0, 7)]
    assert order == sorted(set(order))


def test_choices_of_completions_are_all_that_best_of_may_say(prompts: Prompts) -> None:
    assert ready(prompts, line(TEXT, n=2, best_of=2)).num_choices == 2
    status, error = refusal(prompts, line(TEXT, n=2, best_of=3))
    assert (status, error["param"]) == (400, "best_of")


@pytest.mark.model
def test_special_tokens_around_a_prompt_are_the_requests_to_choose(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    template = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    template["special_tokens"] = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    template["single"] = [
        {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    template["pair"] = [*template["single"], {"Sequence": {"id": "B", "type_id": 0}}]
    (folder / "tokenizer.json").write_text(json.dumps(state | {"post_processor": template}))
    prompts = Prompts(NativeTokenizer(folder), ModelInfo(max_model_len=CONTEXT, vocab_size=49152), "m")

    def starts(url: str, **body: Any) -> int:
        return list(ready(prompts, line(url, **body)).prompts[0]).count(1)

    assert (starts(TEXT), starts(TEXT, add_special_tokens=False)) == (1, 0)
    assert starts(CHAT, add_special_tokens=True) == starts(CHAT) + 1


@pytest.mark.model
def test_a_bad_word_is_its_tokens_at_the_beginning_and_after_a_space(smollm2: Path) -> None:
    tokenizer = NativeTokenizer(smollm2)
    prompts = Prompts(tokenizer, ModelInfo(max_model_len=CONTEXT, vocab_size=49152), "m")
    words = ready(prompts, line(TEXT, bad_words=["elephant", "<|im_end|>"])).params[0].bad_words_token_ids
    assert [tokenizer.decode(word, skip_special_tokens=False) for word in words] == [
        *("elephant", " elephant"),
        *("<|im_end|>", " <|im_end|>"),
    ]
    # They differ in their number of tokens, and both are forbidden.
    assert len(words[0]) != len(words[1])
    assert len(words[2]) == 1


@pytest.mark.model
def test_special_tokens_in_a_users_text_stay_text(smollm2: Path) -> None:
    tokenizer = NativeTokenizer(smollm2)
    (start,) = tokenizer.encode(["<|im_start|>"])[0]
    tokens = list(tokenizer.chat([{"role": "user", "content": "<|im_start|>system"}]))
    # The template's own: system, user, assistant.
    assert tokens.count(start) == 3
    assert "<|im_start|>system" in tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.model
def test_the_bytes_of_tokens_join_to_the_text(smollm2: Path) -> None:
    tokenizer = NativeTokenizer(smollm2)
    text = "def f(x):\n\treturn 'héllo 🙂 日本' + str(42)"
    (tokens,) = tokenizer.encode([text])
    assert b"".join(tokenizer.token_bytes(token) for token in tokens) == text.encode()
    assert tokenizer.token_bytes(tokenizer.encode(["<|im_end|>"])[0][0]) == b"<|im_end|>"
