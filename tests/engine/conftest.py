"""Every engine in these tests is checked after every step, and left with no page owned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pressrun.bench.byte_level import write_tokenizer
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.forecast import LengthForecast
from pressrun.engine.request import Attend, Output, Request, SamplingParams

TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models spend more time waking threads than computing; only tests of the real model use all."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("model") else 1)
    yield
    torch.set_num_threads(before)


class CheckedEngine(Engine):
    """An engine whose page pool is checked against its rows after every step and every abort."""

    def step(self, attend: Attend | None = None) -> list[Output]:
        outputs = super().step(attend)
        self.check()
        return outputs

    def abort(self, ids: Iterable[str]) -> None:
        super().abort(ids)
        self.check()

    def finish(self, requests: Iterable[Request] = (), *, arrivals: random.Random | None = None) -> dict[str, Output]:
        """Run to the end; the merged output of every request. With `arrivals` requests trickle in between steps."""
        coming = list(requests)
        merged: dict[str, Output] = {}
        while coming or self.has_work():
            count = len(coming) if arrivals is None else arrivals.randint(0, 5)
            self.add(coming[:count])
            del coming[:count]
            for output in self.step():
                merged[output.id] = merge(merged.get(output.id), output)
        return merged


class NoForesight(LengthForecast):
    """Believes that every sequence is about to end."""

    def remaining(self, generated_S: Any, most_S: Any, may_end_early_S: Any) -> Any:
        return np.zeros(len(generated_S))


def merge(before: Output | None, output: Output) -> Output:
    """Two outputs of one request as one."""
    if before is None:
        return output
    assert before.finish_reason is None, "an output came after the last"
    return Output(
        id=output.id,
        token_ids=before.token_ids + output.token_ids,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        logprobs=None if output.logprobs is None else (before.logprobs or []) + output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
        num_cached_tokens=output.num_cached_tokens,
        error=output.error,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of the engine's promises is run with results that come at once, and one step late."""
    if metafunc.module.__name__.endswith("test_engine") and "make_engine" in metafunc.fixturenames:
        metafunc.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)


@pytest.fixture
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., CheckedEngine]]:
    """Build checked engines: `make_engine(model, decode=…, **settings)`, in float32 unless told otherwise.

    A `crowded` one takes sequences in for which there will not be room, so that it must preempt. A parameter of the
    fixture says whether they schedule asynchronously.
    """
    is_async: bool | None = getattr(request, "param", None)
    made: list[CheckedEngine] = []

    def make(
        model: Path,
        *,
        decode: Callable[[list[int]], str] | None = None,
        crowded: bool = False,
        **settings: Any,
    ) -> CheckedEngine:
        settings = {"dtype": "float32", "num_pages": 256, "async_scheduling": is_async, **settings}
        made.append(CheckedEngine(EngineConfig(model=model, **settings), decode))
        if crowded:
            made[-1]._scheduler.forecast = NoForesight()
        return made[-1]

    yield make
    for engine in made:
        assert not engine.has_work()
        load = engine.load()
        assert (load.num_free_pages, load.num_running, load.num_waiting) == (load.num_pages, 0, 0)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save transformers' own model with random weights: `make_model(model_type, **fields of config.json)`."""

    def make(model_type: str = "llama", *, shard_size: str = "1GB", **fields: Any) -> Path:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **{**TINY, **fields})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Larger than by default, so that the tokens differ in likelihood; biases and norms are no exception.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
        folder = tmp_path / f"{model_type}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder

    return make


@pytest.fixture
def tiny(make_model: Callable[..., Path]) -> Path:
    """A small Llama with random weights."""
    return make_model()


@pytest.fixture
def speller(make_model: Callable[..., Path]) -> Path:
    """A small Llama with random weights and a tokenizer; its last 20 tokens are padding."""
    folder = make_model(vocab_size=320, max_position_embeddings=512)
    write_tokenizer(folder, 300, {0: "<unk>", 1: "<s>", 2: "</s>"})
    return folder


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Build requests: `ask(prompt, id=…, priority=…, stream=…, **sampling parameters)`, greedy by default."""

    def make(prompt: list[int], *, id: str = "a", priority: int = 0, stream: bool = False, **params: Any) -> Request:
        params = {"max_tokens": 8, "temperature": 0.0, **params}
        return Request(id=id, prompt=prompt, params=SamplingParams(**params), priority=priority, stream=stream)

    return make
