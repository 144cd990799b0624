"""Calls that must be made, by the real engine with real weights: a small model makes them, left to chance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.jobs.records import Line
from pressrun.jobs.settings import load_settings
from pressrun.workers.native_tokenizer import NativeTokenizer
from pressrun.workers.parsing.style import style_of
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.responses import answer

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nFunctions: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{# <tool_call> </think> #}{{ '<think>' if thinking else '<think></think>' }}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
Say = Callable[..., ChatCompletion]

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def say(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Say:
    """What the model answers, as a line's body has it."""
    return sayer(smollm2, tmp_path_factory.mktemp("model") / "smollm2", TEMPLATE)


def sayer(smollm2: Path, folder: Path, template: str) -> Say:
    shutil.copytree(smollm2, folder)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = NativeTokenizer(folder)
    engine = Engine(EngineConfig(model=folder, dtype="float32", num_pages=64), decode=tokenizer.decode)
    prompts = Prompts(tokenizer, engine.info, "m", style_of(load_settings({}), tokenizer))

    def ask(**body: Any) -> ChatCompletion:
        asked = {
            "model": "m",
            "messages": [{"role": "user", "content": "Weather in Rome?"}],
            "seed": 3,
            "max_tokens": 60,
        }
        (prepared,) = prompts.prepare([Line(index=0, custom_id="a", url="/v1/chat/completions", body=asked | body)])
        assert isinstance(prepared, Prepared), prepared
        engine.add(prepared.requests("1", 0))
        outputs = []
        while engine.has_work():
            outputs += [output for output in engine.step() if output.finish_reason]
        fields, _ = answer(prepared, outputs, tokenizer)
        return ChatCompletion.model_validate(fields, strict=True)

    return ask


def follows(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"city", "days"} and isinstance(value["city"], str) and value["days"] in (1, 2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_made(say: Say, choice: Any) -> None:
    check_call(say, choice)


def test_a_call_that_must_be_made_between_tags_is_made(smollm2: Path, tmp_path: Path) -> None:
    check_call(sayer(smollm2, tmp_path / "smollm2", TEMPLATE + "{# <function= #}"), "required")


def check_call(say: Say, choice: Any) -> None:
    (said,) = say(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).choices
    assert (said.finish_reason, said.message.content) == ("tool_calls", None)
    assert said.message.tool_calls is not None
    (call,) = said.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert follows(call.function.arguments)


def test_a_shape_holds_for_the_answer_and_not_for_the_thought_before_it(say: Say) -> None:

    thinking = {"response_format": SHAPE, "chat_template_kwargs": {"thinking": True}}
    (said,) = say(**thinking, stop=["</think>"], include_stop_str_in_output=True).choices
    assert said.message.model_extra is not None
    assert not said.message.model_extra["reasoning_content"].startswith("{")
    (said,) = say(response_format=SHAPE, temperature=0, max_tokens=250).choices
    assert said.message.content is not None
    assert follows(said.message.content)
