"""Requests of every kind at once in small crowded engines: urgent ones, aborts and lack of memory at any moment.

Each must give what it gives alone, and nothing may be left behind.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pressrun.bench.byte_level import write_tokenizer
from pressrun.engine.errors import GrammarRefused
from pressrun.engine.expand import expand
from pressrun.engine.request import (
    EMBEDDING_PARAMS,
    Embedding,
    Output,
    PromptLogprob,
    Request,
    SamplingParams,
    TokenLogprob,
)

from .conftest import CheckedEngine, merge
from .slow_device import SlowDevice
from .spelling import CHOICE, EOS, JSON, SUM, WORD

Make = Callable[..., CheckedEngine]
NUM_TOKENS = 300
STYLES: list[dict[str, Any]] = [
    {},
    {"ignore_eos": True, "logprobs": 0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.01, "logprobs": 3},
    {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "ignore_eos": True},
    {"temperature": 1.0, "presence_penalty": 1.0, "ignore_eos": True},
    {"bad_words_token_ids": (*((7, i) for i in range(5, 90)), (40,), (9, 8, 7)), "ignore_eos": True},
    {"temperature": 1.0, "allowed_token_ids": tuple(range(20, 60)), "logit_bias": ((33, 2.0), (50, -3.0))},
    {"temperature": 1.0, "min_tokens": 6, "logit_bias": ((EOS, 4.0),)},
    {"temperature": 1.0, "stop": ("e", "th"), "stop_token_ids": (77, 99)},
    {"prompt_logprobs": 2},
    {"prompt_logprobs": 0, "temperature": 1.0, "frequency_penalty": 0.4, "logprobs": 1},
    {"grammar": JSON},
    {"grammar": WORD, "temperature": 1.0, "logprobs": 2},
    {"grammar": SUM, "temperature": 0.8, "logit_bias": ((EOS, 5.0),), "stop": ("=",)},
    {"grammar": CHOICE, "prompt_logprobs": 1, "presence_penalty": 0.5},
]
# More than run at once, fewer than wait; pages for few of them; steps that cut prompts up.
SETTINGS: list[dict[str, Any]] = [
    {"num_pages": 300},
    {"num_pages": 40, "crowded": True, "max_num_batched_tokens": 48},
    {"num_pages": 60, "max_num_seqs": 12, "max_num_batched_tokens": 24},
    {"num_pages": 45, "crowded": True, "enable_prefix_caching": False, "max_num_seqs": 20},
    {"num_pages": 30, "max_num_seqs": 3},
]


def everyone(seed: int) -> list[Request]:
    """Requests of all kinds, in any order. Some prompts begin alike, and some are the same."""
    draw = random.Random(seed)
    common = [draw.randrange(3, NUM_TOKENS) for _ in range(22)]
    made: list[Request] = []
    for i in range(2 * len(STYLES)):
        own = [draw.randrange(3, NUM_TOKENS) for _ in range(draw.choice([1, 5, 8, 17, 40]))]
        length = {"temperature": 0.0, "max_tokens": draw.choice([1, 2, 7, 20]), "seed": draw.randrange(9999)}
        one = Request(
            id=f"{seed}-{i}",
            prompt=draw.choice([own, common + own[:3], common]),
            params=SamplingParams(**length | STYLES[i % len(STYLES)]),
            priority=draw.choice([-1000, -1000, 0, 0, 5]),
            stream=draw.random() < 0.3,
        )
        made += expand(one, 3) if draw.random() < 0.1 else [one]
        if draw.random() < 0.3:
            asked = Embedding(dimensions=draw.choice([None, 8]))
            made.append(replace(one, id=f"{one.id}e", params=EMBEDDING_PARAMS, embedding=asked))
    draw.shuffle(made)
    return made


class AtOnce(Executor):
    """Compiles grammars without a thread, so that a seed always leads to the same steps."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except GrammarRefused as refusal:
            future.set_exception(refusal)
        return future


class Chaos:
    """Feeds an engine, aborts at random, takes its memory away now and then, and gathers all that comes out."""

    def __init__(self, engine: CheckedEngine, coming: list[Request], draw: random.Random, num_failures: int) -> None:
        self.engine, self.coming, self.draw = engine, coming, draw
        self.merged: dict[str, Output] = {}
        self.seen: Counter[str] = Counter()
        self._num_failures, self._num_step_tokens = num_failures, 0
        engine._grammars._thread = AtOnce()  # type: ignore[assignment]
        runner, sampler = engine._runner, engine._runner._sampler
        self._sabotage(runner, "_launch")
        self._sabotage(sampler, "amend")
        self._sabotage(sampler._penalties, "_free_slot")
        self._watch_launches()

    def run(self) -> dict[str, Output]:
        while self.coming or self.engine.has_work():
            self._arrive(3)
            self._take(self.engine.step(self._attend))
        return self.merged

    def _attend(self, outputs: list[Output]) -> None:
        self._take(outputs)
        self._arrive(2)
        self.engine.check()
        if self.draw.random() < 0.03 and self.engine._live:
            self.engine.abort([self.draw.choice(sorted(self.engine._live))])

    def _arrive(self, most: int) -> None:
        self.engine.add([self.coming.pop() for _ in range(min(self.draw.randint(0, most), len(self.coming)))])

    def _take(self, outputs: list[Output]) -> None:
        for output in outputs:
            merged = merge(self.merged.get(output.id), output)
            self.merged[output.id] = replace(merged, embedding=output.embedding, lifetime=output.lifetime)
            self.seen[str(output.finish_reason)] += 1

    def _sabotage(self, owner: Any, name: str) -> None:
        """Have a method fail for lack of memory, before it does its work or after."""
        method = getattr(owner, name)

        def failing(*arguments: Any) -> Any:
            # Later steps are half as large, and an engine that cannot compute one token gives up.
            fails = self._num_failures > 0 and self._num_step_tokens > 12 and self.draw.random() < 0.2
            if fails:
                self._num_failures -= 1
                self.seen["failures"] += 1
            # One that has taken a slot has not failed.
            result = None if fails and (name == "_free_slot" or self.draw.random() < 0.5) else method(*arguments)
            if fails:
                raise torch.OutOfMemoryError("no room")
            return result

        setattr(owner, name, failing)

    def _watch_launches(self) -> None:
        """Note how large steps are, and which are launched in the middle of another."""
        runner, launching = self.engine._runner, 0
        launch = runner._launch

        def noting(plan: Any, *arguments: Any) -> Any:
            nonlocal launching
            self._num_step_tokens = len(plan.token_ids)
            self.seen["interludes"] += launching
            launching += 1
            try:
                return launch(plan, *arguments)
            finally:
                launching -= 1

        runner._launch = noting  # type: ignore[method-assign]


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "late"])
@pytest.mark.parametrize("seed", range(len(SETTINGS)))
def test_everyone_gets_what_they_would_get_alone(
    make_model: Callable[..., Path], make_engine: Make, monkeypatch: pytest.MonkeyPatch, seed: int, late: bool
) -> None:
    model = make_model(vocab_size=320, max_position_embeddings=128, num_hidden_layers=4)
    write_tokenizer(model, NUM_TOKENS, {0: "<unk>", 1: "<s>", 2: "</s>"})
    decode = Tokenizer.from_file(str(model / "tokenizer.json")).decode
    common: dict[str, Any] = {"decode": decode, "pooling": ("last", "mean")[seed % 2]}
    roomy = make_engine(model, async_scheduling=False, **common)
    requests, draw = everyone(seed), random.Random(seed)
    alone = {one.id: roomy.finish([one])[one.id] for one in requests}
    with monkeypatch.context() as patches:
        SlowDevice(draw, patches)
        engine = make_engine(model, page_size=4, async_scheduling=late, **common, **SETTINGS[seed])
        chaos = Chaos(engine, [*requests], draw, num_failures=seed % 3)
        together = chaos.run()
    assert together.keys() == alone.keys()
    for id, output in together.items():
        assert_same(output, alone[id])
        assert_lived(output)
    assert_nothing_is_left(engine)
    assert all(chaos.seen[what] for what in ("abort", "stop", "length")), chaos.seen
    # Where all rows are taken, none is free in the middle of a step.
    assert chaos.seen["interludes"] > 0 or SETTINGS[seed].get("max_num_seqs") == 3, chaos.seen
    assert (chaos.seen["failures"] > 0) == (seed % 3 > 0), chaos.seen
    assert engine.load().num_preemptions > 0 or "crowded" not in SETTINGS[seed]


def assert_same(output: Output, alone: Output) -> None:
    """The same; of what was aborted, a beginning of it."""
    num = len(output.token_ids)
    assert output.token_ids == alone.token_ids[:num], output.id
    assert (output.logprobs is None) == (alone.logprobs is None)
    assert flat(output.logprobs or []) == close(flat((alone.logprobs or [])[:num])), output.id
    scores, scores_alone = output.prompt_logprobs, alone.prompt_logprobs
    assert (scores is None) == (scores_alone is None)
    assert flat(scores or []) == close(flat((scores_alone or [])[: len(scores or [])])), output.id
    if output.finish_reason != "abort":
        assert (num, output.finish_reason, output.stop_reason, output.error) == (
            *(len(alone.token_ids), alone.finish_reason, alone.stop_reason, alone.error),
        ), output.id
        assert len(scores or []) == len(scores_alone or [])
        vectors = [np.frombuffer(one.embedding or b"", "<f4") for one in (output, alone)]
        np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-4, err_msg=output.id)


def close(values: list[float]) -> Any:
    """Float32 sums in another order."""
    return pytest.approx(values, abs=1e-3)


def flat(entries: Sequence[TokenLogprob | PromptLogprob]) -> list[float]:
    """Those of the tokens themselves; what is next to them may change places with its like."""
    return [number for entry in entries for number in (entry.token_id, entry.logprob, *(p for _, p in entry.top))]


def assert_lived(output: Output) -> None:
    life = output.lifetime
    assert life is not None
    times = [life.arrived_at, life.admitted_at, life.first_token_at, life.ended_at]
    known = [time for time in times if time is not None]
    assert known == sorted(known)
    assert len(known) == 4 or output.finish_reason in ("abort", "error")
    assert life.num_generated_tokens == len(output.token_ids)


def assert_nothing_is_left(engine: CheckedEngine) -> None:
    """Beside what the fixture looks at: nobody is remembered, and every slot for counts has one owner."""
    assert not engine._live
    assert not engine._scheduler._cache._coming
    assert not +engine._scheduler._waiting._num_begun
    penalties = engine._runner._sampler._penalties
    slots = [*penalties._free, *penalties._slot_R[penalties._slot_R >= 0].tolist()]
    assert sorted(slots) == list(range(len(penalties.rows.counts_CV)))
    assert penalties.rows.slots_R[:-1].tolist() == penalties._slot_R.tolist()
