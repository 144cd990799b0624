"""The engine on the CPU against transformers' generate at static batch 32, in one run.

HumanEval's prompts in their own order, a fixed number of tokens each, greedy, float32 on both sides, end of sequence
ignored. Prints a table, then one line of JSON; `ratio` is our output tokens per second over theirs.

    python bench/engine.py --num-prompts 164 --tokens 64 --model smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pressrun.cli.model import SMOLLM2, ensure_model
from pressrun.cli.prompts import humaneval_prompts
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.linear import packed, product
from pressrun.engine.request import Request, SamplingParams

PEER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds for the whole workload, and every prompt's tokens."""

    seconds: float
    tokens: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


def run_engine(folder: Path, prompts: list[list[int]], num_tokens: int) -> Run:
    longest = max(map(len, prompts)) + num_tokens
    engine = Engine(EngineConfig(model=folder, dtype="float32", device="cpu", kv_cache_gb=4.0, max_model_len=longest))
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, min_tokens=num_tokens)
    warm_up(lambda: drain(engine, [Request(id="warm", prompt=prompts[0][::-1], params=params)]))
    start = time.perf_counter()
    outputs = drain(engine, [Request(id=str(i), prompt=p, params=params) for i, p in enumerate(prompts)])
    return Run(seconds=time.perf_counter() - start, tokens=[outputs[str(i)] for i in range(len(prompts))])


def drain(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    engine.add(requests)
    tokens: dict[str, list[int]] = {}
    while engine.has_work():
        tokens |= {output.id: output.token_ids for output in engine.step()}
    return tokens


def run_transformers(folder: Path, prompts: list[list[int]], num_tokens: int) -> Run:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    pad = model.generation_config.pad_token_id or 0

    def generate(batch: list[list[int]]) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
            )
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    warm_up(lambda: generate([prompts[0][::-1]]))
    tokens: list[list[int]] = []
    start = time.perf_counter()
    for i in range(0, len(prompts), PEER_BATCH):
        tokens += generate(prompts[i : i + PEER_BATCH])
    return Run(seconds=time.perf_counter() - start, tokens=tokens)


def warm_up(run: Callable[[], Any]) -> None:
    run()
    gc.collect()


def measure_ceiling() -> float:
    """The most float32 operations a second that any matrix product reaches here."""
    best = 0.0
    for rows, outputs, inputs in ((512, 1536, 576), (1024, 1024, 1024), (2048, 2048, 2048)):
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        weight_packed, is_packed = packed(weight)
        for run in (
            partial(torch.nn.functional.linear, x, weight),
            partial(product, x, weight_packed, None, is_packed=is_packed),
        ):
            run()
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < 0.5:
                run()
                count += 1
            best = max(best, 2 * rows * outputs * inputs * count / (time.perf_counter() - start))
    return best


def needed_operations(folder: Path, prompts: list[list[int]], num_tokens: int) -> float:
    """Of the matrix products with weights: every token once through the layers, every drawn one through the head."""
    config = json.loads((folder / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // heads
    attention = hidden * head_size * (2 * heads + 2 * config["num_key_value_heads"])
    layers = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    num_computed = sum(map(len, prompts)) + len(prompts) * (num_tokens - 1)
    num_drawn = len(prompts) * num_tokens
    return float(2.0 * (num_computed * layers + num_drawn * hidden * config["vocab_size"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=164)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--data-dir", type=Path, default=Path("~/.cache/pressrun").expanduser())
    options = parser.parse_args()

    folder = ensure_model(options.model, options.data_dir)
    texts = list(humaneval_prompts(options.data_dir).values())[: options.num_prompts]
    prompts: list[list[int]] = AutoTokenizer.from_pretrained(folder)(texts).input_ids

    ceiling = measure_ceiling()
    theirs = run_transformers(folder, prompts, options.tokens)
    gc.collect()
    ours = run_engine(folder, prompts, options.tokens)
    operations = needed_operations(folder, prompts, options.tokens)
    same = sum(a == b for a, b in zip(ours.tokens, theirs.tokens, strict=True))

    print(
        f"{len(prompts)} prompts of {sum(map(len, prompts))} tokens, {options.tokens} new tokens each, float32, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':30}{'seconds':>10}{'output tok/s':>14}{'share of matmul ceiling':>26}")
    for name, run in ((f"transformers, batch {PEER_BATCH}", theirs), ("pressrun", ours)):
        share = operations / run.seconds / ceiling
        print(f"{name:30}{run.seconds:10.1f}{run.tokens_per_s:14.1f}{share:26.0%}")
    print(f"ceiling {ceiling / 1e9:.0f} GFLOP/s; {same} of {len(prompts)} completions are the same")
    result = {
        "ratio": round(ours.tokens_per_s / theirs.tokens_per_s, 3),
        "tokens_per_s": round(ours.tokens_per_s, 1),
        "peer_tokens_per_s": round(theirs.tokens_per_s, 1),
        "share_of_ceiling": round(operations / ours.seconds / ceiling, 3),
        "ceiling_gflops": round(ceiling / 1e9, 1),
        "same_completions": same,
        "num_prompts": len(prompts),
        "tokens": options.tokens,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    # Threads that spin while they wait make both sides several times slower when anything else wants the cores. OpenMP
    # reads this when torch is loaded, hence the fresh start.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    main()
