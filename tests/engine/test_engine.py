"""The engine's promises to its callers, on a tiny model with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.errors import EngineError, OutOfMemory
from pressrun.engine.expand import expand
from pressrun.engine.request import Request

Ask = Callable[..., Request]
Make = Callable[..., Any]
PROMPT = list(range(40, 60))


def letters(token_ids: list[int]) -> str:
    """A stand-in for a tokenizer: one letter a token."""
    return "".join(chr(ord("a") + token % 26) for token in token_ids)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 256) for _ in range(draw.randint(3, 40))] for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_tokens_are_the_same_alone_together_and_after_preemption(
    tiny: Path, make_engine: Make, ask: Ask, dtype: str
) -> None:
    requests = [ask(p, id=str(i), max_tokens=20, ignore_eos=True) for i, p in enumerate(prompts(12))]
    roomy = make_engine(tiny, dtype=dtype)
    alone = {request.id: roomy.finish([request])[request.id].token_ids for request in requests}
    small = make_engine(tiny, crowded=True, dtype=dtype, num_pages=40, page_size=4, max_num_batched_tokens=32)
    crowd = small.finish(requests, arrivals=random.Random(1))
    assert small.load().num_preemptions > 0
    if dtype == "float32":
        assert {id: output.token_ids for id, output in crowd.items()} == alone
    assert all(len(output.token_ids) == 20 and output.finish_reason == "length" for output in crowd.values())


@pytest.mark.parametrize("caching", [True, False])
def test_seeded_draws_are_the_same_alone_together_and_after_preemption(
    tiny: Path, make_engine: Make, ask: Ask, caching: bool
) -> None:
    styles: list[dict[str, Any]] = [
        {},
        {"top_p": 0.9},
        {"top_k": 7, "frequency_penalty": 0.5},
        {"min_p": 0.05, "repetition_penalty": 1.3},
        {"temperature": 0.0, "presence_penalty": 1.0},
    ]
    requests = [
        ask(p, id=str(i), ignore_eos=True, **{"max_tokens": 24, "temperature": 1.0, "seed": i} | styles[i % 5])
        for i, p in enumerate(prompts(15))
    ]
    roomy = make_engine(tiny)
    alone = {request.id: roomy.finish([request])[request.id].token_ids for request in requests}
    small = make_engine(
        tiny,
        crowded=True,
        num_pages=45,
        page_size=4,
        enable_prefix_caching=caching,
        max_num_batched_tokens=40,
    )
    crowd = small.finish(requests, arrivals=random.Random(2))
    assert small.load().num_preemptions > 0
    assert {id: output.token_ids for id, output in crowd.items()} == alone


def test_unseeded_draws_differ_and_follow_from_the_engines_seed(tiny: Path, make_engine: Make, ask: Ask) -> None:
    def drawn(seed: int) -> list[list[int]]:
        requests = [ask(PROMPT, id=str(i), temperature=1.0, max_tokens=16, ignore_eos=True) for i in range(3)]
        outputs = make_engine(tiny, seed=seed).finish(requests)
        return [outputs[request.id].token_ids for request in requests]

    first = drawn(0)
    assert len({tuple(tokens) for tokens in first}) == 3
    assert drawn(0) == first
    assert drawn(1) != first


def test_choices_share_the_prompts_pages_and_have_their_own_draws(tiny: Path, make_engine: Make, ask: Ask) -> None:
    request = ask(PROMPT, temperature=1.0, seed=11, max_tokens=16, ignore_eos=True)
    engine = make_engine(tiny, page_size=4)
    choices = engine.finish(expand(request, 4))
    assert list(choices) == ["a.0", "a.1", "a.2", "a.3"]
    assert len({tuple(output.token_ids) for output in choices.values()}) == 4
    assert [output.num_cached_tokens for output in choices.values()] == [0, 16, 16, 16]
    assert choices["a.0"].token_ids == engine.finish([request])["a"].token_ids


def test_length_stop_tokens_and_end_of_sequence_end_a_sequence(make_model: Make, make_engine: Make, ask: Ask) -> None:
    free = make_engine(make_model()).finish([ask(PROMPT, max_tokens=12, ignore_eos=True)])["a"]
    assert (free.finish_reason, free.stop_reason, len(free.token_ids)) == ("length", None, 12)
    third = free.token_ids[2]
    assert third not in free.token_ids[:2]
    engine = make_engine(make_model(eos_token_id=[third, 255]))
    assert engine.info.eos_token_ids == (third, 255)
    ended = engine.finish([ask(PROMPT, max_tokens=12)])["a"]
    assert (ended.finish_reason, ended.stop_reason, ended.token_ids) == ("stop", None, free.token_ids[:3])
    stopped = engine.finish([ask(PROMPT, max_tokens=12, ignore_eos=True, stop_token_ids=(third,))])["a"]
    assert (stopped.finish_reason, stopped.stop_reason, len(stopped.token_ids)) == ("stop", third, 3)
    kept = engine.finish([ask(PROMPT, max_tokens=12, ignore_eos=True)])["a"]
    assert kept.token_ids == free.token_ids
    longer = engine.finish([ask(PROMPT, max_tokens=12, min_tokens=6)])["a"]
    assert len(longer.token_ids) >= 6
    assert third not in longer.token_ids[:6]


def test_end_of_sequence_comes_from_both_configuration_files(tiny: Path, make_engine: Make) -> None:
    (tiny / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert make_engine(tiny).info.eos_token_ids == (2, 7)


def test_stop_strings_end_a_sequence_with_the_token_that_completes_them(
    tiny: Path, make_engine: Make, ask: Ask
) -> None:
    engine = make_engine(tiny, decode=letters)
    free = engine.finish([ask(PROMPT, max_tokens=30, ignore_eos=True)])["a"]
    text = letters(free.token_ids)
    stop = text[10:13]
    end = text.index(stop) + 3
    found = engine.finish([ask(PROMPT, max_tokens=30, ignore_eos=True, stop=("?", stop, "??"))])["a"]
    assert (found.finish_reason, found.stop_reason) == ("stop", stop)
    assert letters(found.token_ids) == text[:end]
    # What was complete before min_tokens does not count later either.
    late = engine.finish([ask(PROMPT, max_tokens=30, min_tokens=end, ignore_eos=True, stop=(stop,))])["a"]
    assert len(late.token_ids) > end


def test_only_requests_with_stop_strings_are_decoded_and_only_their_tail(
    tiny: Path, make_engine: Make, ask: Ask
) -> None:
    lengths: list[int] = []

    def decode(token_ids: list[int]) -> str:
        lengths.append(len(token_ids))
        return letters(token_ids)

    engine = make_engine(tiny, decode=decode)
    engine.finish([ask(PROMPT, max_tokens=30, ignore_eos=True)])
    assert lengths == []
    engine.finish([ask(PROMPT, max_tokens=100, ignore_eos=True, stop=("???",))])
    assert len(lengths) == 100
    assert max(lengths) < 20


def test_streams_report_every_token_once_with_its_logprob(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, crowded=True, num_pages=20, page_size=4)
    requests = [
        ask(p, id=str(i), stream=i % 2 == 0, logprobs=2, max_tokens=15, ignore_eos=True)
        for i, p in enumerate(prompts(5))
    ]
    engine.add(requests)
    counts: dict[str, list[int]] = {request.id: [] for request in requests}
    while engine.has_work():
        for output in engine.step():
            counts[output.id].append(len(output.token_ids))
            assert [entry.token_id for entry in output.logprobs] == output.token_ids
            assert all(len(entry.top) == 2 for entry in output.logprobs)
    assert engine.load().num_preemptions > 0
    assert counts["0"] == [1] * 15
    assert counts["1"] == [15]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [3, 256]}, "token ids from 0 to 255"),
        ({"prompt": [-1]}, "token ids"),
        ({"prompt": ["x"]}, "token ids"),
        ({"prompt": [1 << 70]}, "token ids"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": [3] * 200, "max_tokens": 57}, "context length of 256"),
        ({"prompt": [3] * 70, "max_tokens": 12}, "KV cache of 80 tokens"),
        ({"stop": ("x",)}, "tokenizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_served_is_answered_alone(
    tiny: Path, make_engine: Make, ask: Ask, fields: dict[str, Any], message: str
) -> None:
    engine = make_engine(tiny, num_pages=5)
    bad = ask(**{"prompt": PROMPT, "id": "bad", **fields})
    outputs = engine.finish([ask(PROMPT, id="good"), bad])
    assert outputs["bad"].finish_reason == "error"
    assert message in outputs["bad"].error
    assert outputs["good"].finish_reason in ("length", "stop")


def test_a_request_that_just_fits_the_pool_is_served(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, num_pages=5)
    outputs = engine.finish([ask([3] * 70, id=id, max_tokens=11, ignore_eos=True) for id in "ab"])
    assert [len(output.token_ids) for output in outputs.values()] == [11, 11]


def test_an_id_that_is_running_is_refused_and_free_again_afterwards(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny)
    engine.add([ask(PROMPT), ask(PROMPT)])
    outputs = [output for _ in range(20) for output in engine.step()]
    assert sorted(output.finish_reason for output in outputs) == ["error", "length"]
    assert engine.finish([ask(PROMPT)])["a"].finish_reason == "length"


def test_aborted_requests_are_answered_with_what_they_have(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, max_num_seqs=2)
    engine.add([ask(PROMPT, id=id, max_tokens=50, ignore_eos=True) for id in "abc"])
    for _ in range(5):
        assert engine.step() == []
    engine.abort(["b", "c", "unknown"])
    outputs = {output.id: output for output in engine.step()}
    assert {id: (o.finish_reason, len(o.token_ids)) for id, o in outputs.items()} == {
        "b": ("abort", 3 if engine._is_async else 4),
        "c": ("abort", 0),
    }
    assert len(engine.finish()["a"].token_ids) == 50


def test_an_urgent_request_overtakes_and_the_preempted_lose_nothing(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, max_num_seqs=2)
    batch = [ask(PROMPT[:n], id=str(n), priority=10, max_tokens=20, ignore_eos=True) for n in (5, 6, 7)]
    alone = {request.id: engine.finish([request])[request.id].token_ids for request in batch}
    engine.add(batch)
    engine.step()
    engine.step()
    engine.add([ask(PROMPT, id="urgent", max_tokens=3)])
    ended = []
    while engine.has_work():
        ended += engine.step()
    assert engine.load().num_preemptions == 1
    assert [output.id for output in ended] == ["urgent", "5", "6", "7"]
    assert {output.id: output.token_ids for output in ended if output.id in alone} == alone


def test_the_load_counts_tokens_and_pages(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, num_pages=30, page_size=8)
    engine.add([ask(PROMPT, id=id, max_tokens=4, ignore_eos=True) for id in "ab"])
    engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_pages, load.num_free_pages) == (1, 1, 30, 27)
    engine.finish()
    load = engine.load()
    assert (load.num_prompt_tokens, load.num_cached_tokens, load.num_generated_tokens) == (40, 16, 8)


def test_the_pool_is_sized_from_the_settings_and_too_much_is_a_clear_error(
    tiny: Path, make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_bytes = 2 * 2 * 2 * 16 * 16 * 4  # keys and values, layers, kv heads, tokens, head size, float32
    engine = make_engine(tiny, device="cpu", num_pages=None, kv_cache_gb=0.001)
    assert engine.load().num_pages == int(0.001 * (1 << 30)) // page_bytes
    with pytest.raises(OutOfMemory, match="kv_cache_gb"):
        Engine(EngineConfig(model=tiny, device="cpu", kv_cache_gb=1e-6))
    with pytest.raises(OutOfMemory, match="kv_cache_gb"):
        Engine(EngineConfig(model=tiny, device="cpu", kv_cache_gb=1e6))
    with pytest.raises(OutOfMemory, match="num_pages"):
        Engine(EngineConfig(model=tiny, device="cpu", num_pages=1 << 40))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_num_seqs": 0},
        {"page_size": 0},
        {"num_pages": 0},
        {"kv_cache_gb": 0.0},
        {"gpu_memory_utilization": 1.5},
        {"dtype": "int8"},
        {"load_format": "gguf"},
        {"max_model_len": 257},
        {"device": "mps"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_settings_that_make_no_sense_are_refused_by_name(tiny: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=next(iter(fields))):
        Engine(EngineConfig(model=tiny, **fields))


def test_auto_dtype_is_bfloat16_only_where_it_is_fast(
    tiny: Path, make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    for fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("pressrun.engine.loading._has_fast_bfloat16", lambda fast=fast: fast)
        assert make_engine(tiny, dtype="auto", device="cpu").info.dtype == dtype


def out_of_memory_above(
    engine: Any, monkeypatch: pytest.MonkeyPatch, *, num_rows: int = 1000, num_tokens: int = 1000
) -> None:
    """A device that has no room for larger steps."""
    forward = engine._runner._forward

    def fail(plan: Any, *rest: Any) -> Any:
        if len(plan.rows) > num_rows or len(plan.token_ids) > num_tokens:
            raise torch.OutOfMemoryError("so it is")
        return forward(plan, *rest)

    monkeypatch.setattr(engine._runner, "_forward", fail)


@pytest.mark.parametrize("limit", [{"num_rows": 3}, {"num_tokens": 25}, {"num_rows": 1, "num_tokens": 1}])
@pytest.mark.parametrize("caching", [True, False])
def test_a_step_without_room_leaves_all_answers_as_they_are(
    tiny: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch, caching: bool, limit: dict[str, int]
) -> None:
    requests = [
        ask(p + p, id=str(i), max_tokens=20, temperature=i % 2, seed=i, frequency_penalty=i % 3 / 3)
        for i, p in enumerate(prompts(20))
    ]
    expected = make_engine(tiny).finish(requests)
    engine = make_engine(tiny, enable_prefix_caching=caching)
    out_of_memory_above(engine, monkeypatch, **limit)
    # They trickle in, so that steps succeed before one fails.
    outputs = engine.finish(requests, arrivals=random.Random(2))
    assert {id: output.token_ids for id, output in outputs.items()} == {
        id: output.token_ids for id, output in expected.items()
    }
    assert 1 <= engine.load().num_rows <= limit.get("num_rows", 256)


def test_one_token_without_room_is_an_error_that_names_the_settings(
    tiny: Path, make_engine: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tiny)
    out_of_memory_above(engine, monkeypatch, num_tokens=0)
    with pytest.raises(OutOfMemory, match=r"gpu_memory_utilization.*max_num_seqs.*max_num_batched_tokens.*so it is"):
        engine.finish([ask(PROMPT)])
    monkeypatch.undo()
    engine.abort(["a"])
    engine.finish()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_pool_on_a_gpu_is_sized_from_a_measured_peak(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, dtype="bfloat16", num_pages=None, gpu_memory_utilization=0.3)
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0.2 * total < torch.cuda.memory_allocated() < 0.31 * total
    assert engine.finish([ask(PROMPT)])["a"].finish_reason in ("length", "stop")
    with pytest.raises(OutOfMemory, match="gpu_memory_utilization"):
        Engine(EngineConfig(model=tiny, gpu_memory_utilization=1e-4))
