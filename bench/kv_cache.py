"""What an 8-bit KV cache changes: greedy answers of a real model with and without it.

    python bench/kv_cache.py [--num-prompts 164 --num-tokens 64 --device auto --dtype auto]

SmolLM2 completes HumanEval's prompts twice, with keys and values in the model's precision and in float8_e4m3fn. As long
as both have drawn the same tokens, their log-probabilities of the drawn token are compared; an answer counts as the
same if all of its tokens are. Prints the figures, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from pressrun.cli.model import SMOLLM2, ensure_model
from pressrun.cli.prompts import humaneval_prompts
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.request import Output, Request, SamplingParams
from pressrun.engine.tokenizer import Tokenizer
from pressrun.jobs.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--num-prompts", type=int, default=164)
    parser.add_argument("--num-tokens", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    data_dir = load_settings().data_dir
    folder = ensure_model(SMOLLM2, data_dir)
    prompts = Tokenizer(folder).encode(list(humaneval_prompts(data_dir).values())[: args.num_prompts])
    full, rounded = (answers(folder, prompts, args, kv_cache_dtype) for kv_cache_dtype in ("auto", "fp8"))
    differences, num_same_tokens = [], []
    for one, other in zip(full, rounded, strict=True):
        same = first_difference(one.token_ids, other.token_ids)
        num_same_tokens.append(same)
        assert one.logprobs is not None
        assert other.logprobs is not None
        pairs = zip(one.logprobs[:same], other.logprobs[:same], strict=True)
        differences += [abs(a.logprob - b.logprob) for a, b in pairs]
    summary = {
        "bench": "kv_cache",
        "answers": len(prompts),
        "same_answers": sum(num == args.num_tokens for num in num_same_tokens),
        "mean_tokens_before_a_difference": round(statistics.fmean(num_same_tokens), 1),
        "mean_logprob_difference": round(statistics.fmean(differences), 4),
        "p99_logprob_difference": round(statistics.quantiles(differences, n=100)[98], 4),
    }
    print(
        f"{summary['same_answers']} of {len(prompts)} answers of {args.num_tokens} tokens are the same; "
        f"{summary['mean_tokens_before_a_difference']} tokens on average before a difference; log-probabilities "
        f"differ by {summary['mean_logprob_difference']} on average, by {summary['p99_logprob_difference']} at the "
        "99th percentile"
    )
    print(json.dumps(summary))


def answers(folder: Path, prompts: list[list[int]], args: argparse.Namespace, kv_cache_dtype: str) -> list[Output]:
    settings = {"device": args.device, "dtype": args.dtype, "kv_cache_dtype": kv_cache_dtype}
    engine = Engine(EngineConfig(model=folder, **settings))
    params = SamplingParams(max_tokens=args.num_tokens, temperature=0.0, ignore_eos=True, logprobs=0)
    engine.add(Request(id=str(i), prompt=prompt, params=params) for i, prompt in enumerate(prompts))
    found: dict[str, Output] = {}
    while engine.has_work():
        found.update({output.id: output for output in engine.step()})
    return [found[str(i)] for i in range(len(prompts))]


def first_difference(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


if __name__ == "__main__":
    main()
