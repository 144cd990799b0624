"""Embeddings against the hidden states of transformers, alone and in a crowd."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pressrun.engine.errors import EngineError
from pressrun.engine.pooling import Pooling, find_pooling
from pressrun.engine.request import EMBEDDING_PARAMS, Embedding, Output, Request
from pressrun.engine.tokenizer import Tokenizer

Ask = Callable[..., Request]
Make = Callable[..., Any]
KINDS = ("last", "mean")
# Float32 sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def embed(prompt: list[int], id: str = "a", **asked: Any) -> Request:
    return Request(id=id, prompt=prompt, params=EMBEDDING_PARAMS, embedding=Embedding(**asked))


def vector(output: Output) -> np.ndarray[Any, Any]:
    assert output.embedding is not None, output.error
    return np.frombuffer(output.embedding, "<f4")


def theirs(model: Any, prompt: list[int], kind: str) -> np.ndarray[Any, Any]:
    """What transformers' last hidden states come to, normalised."""
    with torch.inference_mode():
        states_TE = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
    pooled_E = states_TE[-1] if kind == "last" else states_TE.mean(0)
    return torch.nn.functional.normalize(pooled_E, dim=0).numpy()


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 256) for _ in range(draw.randint(1, 60))] for _ in range(count)]


@pytest.mark.parametrize("make_engine", [False, True], ids=["at_once", "late"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_transformers_however_prompts_are_cut_and_mixed(
    tiny: Path, make_engine: Make, ask: Ask, kind: str
) -> None:
    """Prompts of up to 60 tokens in steps of 16, beside sequences that generate, preempted, and some repeated."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    wanted = prompts(16)
    wanted += wanted[:4]
    engine = make_engine(tiny, pooling=kind, crowded=True, num_pages=40, page_size=4, max_num_batched_tokens=16)
    requests: list[Request] = [embed(prompt, str(i)) for i, prompt in enumerate(wanted)]
    generating = [ask(prompt[:10], id=f"g{i}", max_tokens=20, ignore_eos=True) for i, prompt in enumerate(wanted[:8])]
    mixed = [one for pair in zip(requests, generating, strict=False) for one in pair] + requests[8:]
    outputs: dict[str, Output] = {}
    arrivals = random.Random(1)
    while mixed or engine.has_work():
        count = arrivals.randint(0, 4)
        engine.add(mixed[:count])
        del mixed[:count]
        outputs |= {output.id: output for output in engine.step()}
    assert engine.load().num_preemptions > 0
    for i, prompt in enumerate(wanted):
        np.testing.assert_allclose(vector(outputs[str(i)]), theirs(model, prompt, kind), **CLOSE)
    alone = make_engine(tiny)
    for request in generating:
        assert outputs[request.id].token_ids == alone.finish([request])[request.id].token_ids
    assert engine.load().num_generated_tokens >= 8 * 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_never_uses_the_cache_and_a_last_token_does(tiny: Path, make_engine: Make, kind: str) -> None:
    engine = make_engine(tiny, pooling=kind, page_size=4)
    prompt = list(range(40, 70))
    first = engine.finish([embed(prompt)])["a"]
    again = engine.finish([embed(prompt)])["a"]
    assert (again.num_cached_tokens > 0) == (kind == "last")
    np.testing.assert_allclose(vector(again), vector(first), **CLOSE)


def test_an_answer_holds_no_tokens_and_does_not_count_as_generation(tiny: Path, make_engine: Make) -> None:
    engine = make_engine(tiny)
    output = engine.finish([embed([5, 6, 7])])["a"]
    assert (output.token_ids, output.finish_reason) == ([], "stop")
    assert engine.load().num_generated_tokens == 0
    assert engine._scheduler.forecast._num_seen == 0
    engine.add([embed([5, 6, 7])])
    (output,) = [output for _ in range(2) for output in engine.step()]
    assert (output.lifetime.num_prompt_tokens, output.lifetime.num_generated_tokens) == (3, 0)


def test_fewer_dimensions_are_the_first_ones_normalised_anew(tiny: Path, make_engine: Make) -> None:
    engine = make_engine(tiny)
    outputs = engine.finish([embed([5, 6, 7], "whole"), embed([5, 6, 7], "short", dimensions=10)])
    whole, short = vector(outputs["whole"]), vector(outputs["short"])
    assert (len(whole), len(short)) == (64, 10)
    np.testing.assert_allclose(short, whole[:10] / np.linalg.norm(whole[:10]), **CLOSE)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dimensions", [0, 65])
def test_dimensions_that_there_are_not_are_refused(tiny: Path, make_engine: Make, dimensions: int) -> None:
    output = make_engine(tiny).finish([embed([5, 6, 7], dimensions=dimensions)])["a"]
    assert output.error == f"dimensions must be from 1 to 64, not {dimensions}"


def test_a_model_that_is_to_give_none_refuses_and_goes_on_generating(tiny: Path, make_engine: Make, ask: Ask) -> None:
    engine = make_engine(tiny, pooling="none")
    assert engine.info.embedding_size == 0
    outputs = engine.finish([embed([5, 6, 7]), ask([5, 6, 7], id="b")])
    assert outputs["a"].error == "the model gives no embeddings (PRESSRUN_POOLING)"
    assert outputs["b"].token_ids


def test_an_unknown_pooling_is_refused_at_the_start(tiny: Path, make_engine: Make) -> None:
    with pytest.raises(EngineError, match="pooling must be auto, last, mean or none, not 'cls'"):
        make_engine(tiny, pooling="cls")


def sentence_transformer(folder: Path, normalise: bool, **modes: bool) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | modes))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)])
    )
    return folder


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        (
            {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
            Pooling(kind="last", is_normalised=False),
        ),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
            Pooling(kind="mean", is_normalised=False),
        ),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
    ],
)
def test_a_folder_says_how_it_is_pooled(tmp_path: Path, modes: dict[str, bool], pooling: Pooling | None) -> None:
    assert find_pooling(sentence_transformer(tmp_path, False, **modes), "auto") == pooling


def test_what_was_asked_for_goes_over_what_the_folder_says(tmp_path: Path) -> None:
    assert find_pooling(tmp_path, "auto") == Pooling(kind="last")
    folder = sentence_transformer(tmp_path, True, pooling_mode_cls_token=True)
    assert find_pooling(folder, "mean") == Pooling(kind="mean")
    assert find_pooling(folder, "none") is None


def test_without_a_normalisation_the_mean_itself_is_told(tiny: Path, make_engine: Make) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    sentence_transformer(tiny, False, pooling_mode_mean_tokens=True)
    output = make_engine(tiny, max_num_batched_tokens=4).finish([embed(list(range(40, 70)))])["a"]
    with torch.inference_mode():
        states = model(torch.tensor([list(range(40, 70))]), output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(vector(output), states.mean(0).numpy(), **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_without_a_head_gives_embeddings(
    make_model: Callable[..., Path], make_engine: Make, ask: Ask, tied: bool
) -> None:
    """As Qwen3-Embedding is saved: its names have no `model.` in front."""
    folder = make_model("qwen3", tie_word_embeddings=tied, head_dim=16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    engine = make_engine(folder)
    prompt = list(range(40, 60))
    outputs = engine.finish([embed(prompt), ask(prompt, id="b")])
    np.testing.assert_allclose(vector(outputs["a"]), theirs(model, prompt, "last"), **CLOSE)
    if tied:
        assert outputs["b"].token_ids
    else:
        assert "gives embeddings only" in outputs["b"].error


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_smollm2_gives_the_embeddings_of_transformers(
    smollm2: Path, humaneval: list[str], make_engine: Make, kind: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    wanted = Tokenizer(smollm2).encode(humaneval[:12])
    engine = make_engine(smollm2, pooling=kind, max_num_batched_tokens=100)
    outputs = engine.finish([embed(list(prompt), str(i)) for i, prompt in enumerate(wanted)])
    for i, prompt in enumerate(wanted):
        np.testing.assert_allclose(vector(outputs[str(i)]), theirs(model, list(prompt), kind), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.model
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_beside_captured_steps(
    smollm2: Path, humaneval: list[str], make_engine: Make, ask: Ask, kind: str
) -> None:
    """Generation runs on by graphs, before, between and after the steps that are pooled."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    wanted = [list(prompt) for prompt in Tokenizer(smollm2).encode(humaneval[:12])]
    generating = [ask(prompt[:20], id=f"g{i}", max_tokens=40, ignore_eos=True) for i, prompt in enumerate(wanted)]
    embedding = [embed(prompt, str(i)) for i, prompt in enumerate(wanted)]
    engine = make_engine(smollm2, pooling=kind, device="cuda", num_pages=512, max_num_batched_tokens=100)
    outputs = engine.finish(generating + embedding, arrivals=random.Random(0))
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for i, prompt in enumerate(wanted):
        # float32 products on a GPU round in another order.
        assert float(vector(outputs[str(i)]) @ theirs(reference, prompt, kind)) > 0.9999
    alone = make_engine(smollm2, device="cuda", num_pages=512, max_num_batched_tokens=100)
    for request in generating:
        assert outputs[request.id].token_ids == alone.finish([request])[request.id].token_ids
