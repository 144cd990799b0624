"""What penalties cost: the same work without any, with a repetition penalty on all rows, and with all three.

    python bench/penalties.py --model llama-3.1-8b [--workload uniform --num-requests 1024 --repeat 2]
    python bench/penalties.py --model tiny --num-requests 32     (needs no GPU)

A model of `shapes.py` has random weights. All runs sample as Qwen2.5's `generation_config.json` asks (temperature 0.7,
top_p 0.8, top_k 20, and the repetition penalty of 1.05), with the same seeds, prompts and output lengths. Runs
alternate, after one of each to warm up, and medians are reported; on a GPU also the most memory that torch has held in
runs of each kind. Prints a line of each kind for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.workloads import WORKLOADS, Workload, make_workload
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.request import Request, SamplingParams

KINDS: dict[str, dict[str, float]] = {
    "free": {},
    "repetition": {"repetition_penalty": 1.05},
    "all": {"repetition_penalty": 1.05, "presence_penalty": 0.5, "frequency_penalty": 0.2},
}


@dataclass(frozen=True, slots=True)
class Runs:
    """Of one kind."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as root:
        settings = {"device": options.device, "dtype": options.dtype}
        if options.model in SHAPES:
            folder = write_shape(options.model, Path(root))
            engine = Engine(EngineConfig(model=folder, load_format="dummy", **settings))
        else:
            engine = Engine(EngineConfig(model=Path(options.model).expanduser(), **settings))
        workload = make_workload(options.workload, engine.info.vocab_size, options.num_requests)
        report(options, workload, measure(engine, workload, options.repeat))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    parser.add_argument("--workload", choices=list(WORKLOADS), default="uniform")
    parser.add_argument("--num-requests", type=int)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


def measure(engine: Engine, workload: Workload, repeat: int) -> dict[str, Runs]:
    """All kinds in turns; the first runs only warm up."""
    found = {kind: Runs() for kind in KINDS}
    for turn in range(1 + repeat):
        for kind, asked in KINDS.items():
            seconds, peak_bytes = run(engine, workload, asked)
            engine.reset_prefix_cache()
            if turn:
                found[kind].seconds.append(seconds)
                found[kind].peak_bytes.append(peak_bytes)
    return found


def run(engine: Engine, workload: Workload, asked: dict[str, float]) -> tuple[float, int]:
    """Seconds, and bytes at most."""
    on_gpu = engine.info.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started, num_tokens = time.perf_counter(), 0
    engine.add(requests(workload, asked))
    while engine.has_work():
        for output in engine.step():
            assert output.finish_reason == "length", f"{output.finish_reason}: {output.error}"
            num_tokens += len(output.token_ids)
    assert num_tokens == workload.num_output
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() if on_gpu else 0


def requests(workload: Workload, asked: dict[str, float]) -> list[Request]:
    common: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "ignore_eos": True, **asked}
    return [
        Request(id=str(i), prompt=item.prompt, params=SamplingParams(max_tokens=item.num_output, seed=i, **common))
        for i, item in enumerate(workload.items)
    ]


def report(options: argparse.Namespace, workload: Workload, found: dict[str, Runs]) -> None:
    free_seconds = statistics.median(found["free"].seconds)
    kinds: dict[str, dict[str, float]] = {}
    for kind, runs in found.items():
        seconds = statistics.median(runs.seconds)
        kinds[kind] = {
            "tokens_per_s": round(workload.num_output / seconds, 1),
            "ratio": round(free_seconds / seconds, 3),
            "peak_gib": round(max(runs.peak_bytes) / 2**30, 3),
        }
        print(f"{options.model}, {workload.name}, {kind}: {kinds[kind]}")
    summary = {"bench": "penalties", "model": Path(options.model).name, "workload": workload.name, "kinds": kinds}
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
