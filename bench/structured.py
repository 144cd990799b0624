"""What structured outputs cost: the same work with and without a JSON schema on all rows.

    python bench/structured.py --model llama-3.1-8b [--workload uniform --num-requests 1024 --repeat 2]
    python bench/structured.py --model tiny --num-requests 32     (needs no GPU)
    python bench/structured.py --model ~/.cache/pressrun/models/SmolLM2-135M-Instruct --num-requests 32

A model of `shapes.py` has random weights and a tokenizer of its vocabulary's size made of random words
(`byte_level.py`); a folder has its own. Both runs
sample at temperature 1 with the same seeds, prompts and output lengths. The schema is an array of at least 100,000
small objects, so that no answer may end before its length is reached. Runs alternate, after one of each to warm up, and
medians are reported.

Masks are timed on the host: making and sending them, and reading what was drawn. What a step takes longer with the
schema, set against that time, says how much of it was hidden behind the device. Prints a line for people, then one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llguidance import LLMatcher

from pressrun.bench.byte_level import write_tokenizer
from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.workloads import WORKLOADS, Workload, make_workload
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.request import Request, SamplingParams

T = TypeVar("T")

ENTRY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["first", "second", "third"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "maxItems": 3},
    },
    "required": ["name", "kind", "number", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ENTRY, "minItems": 100_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the workload; the time of its masks is the host's."""

    seconds: float
    num_steps: int
    mask_seconds: float


class Stopwatch:
    """Adds up what functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., T]) -> Callable[..., T]:
        def run(*args: Any) -> T:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - started

        return run


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as root:
        settings = {"device": options.device, "dtype": options.dtype, "enforce_eager": options.enforce_eager}
        if options.model in SHAPES:
            engine = Engine(EngineConfig(model=made_up(options.model, Path(root)), load_format="dummy", **settings))
        else:
            engine = Engine(EngineConfig(model=Path(options.model).expanduser(), **settings))
        workload = make_workload(options.workload, engine.info.vocab_size, options.num_requests)
        free, shaped = measure(engine, workload, options.repeat)
    report(options, workload, free, shaped)
    return 0


def made_up(name: str, root: Path) -> Path:
    """The folder of a model of this shape, with a tokenizer."""
    folder, shape = write_shape(name, root), SHAPES[name]
    write_tokenizer(folder, shape["vocab_size"], {shape["bos_token_id"]: "<s>", shape["eos_token_id"]: "</s>"})
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    parser.add_argument("--workload", choices=list(WORKLOADS), default="uniform")
    parser.add_argument("--num-requests", type=int)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--enforce-eager", action="store_true")
    return parser.parse_args()


def measure(engine: Engine, workload: Workload, repeat: int) -> tuple[list[Run], list[Run]]:
    """Runs without the schema and with it, in turns."""
    grammar = LLMatcher.grammar_from_json_schema(SCHEMA)
    found: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(1 + repeat):
        for runs, asked in zip(found, (None, grammar), strict=True):
            runs.append(run(engine, workload, asked))
            engine.reset_prefix_cache()
    return found[0][1:], found[1][1:]


def run(engine: Engine, workload: Workload, grammar: str | None) -> Run:
    watch, matching = Stopwatch(), engine._matching
    for name in ("allowed", "advance"):  # In place of the methods: the engine itself keeps no time.
        setattr(matching, name, watch.timed(getattr(type(matching), name).__get__(matching)))
    engine.add(requests(workload, grammar))
    started, num_steps, num_tokens = time.perf_counter(), 0, 0
    while engine.has_work():
        for output in engine.step():
            assert output.finish_reason == "length", f"{output.finish_reason}: {output.error}"
            num_tokens += len(output.token_ids)
        num_steps += 1
    assert num_tokens == workload.num_output
    return Run(seconds=time.perf_counter() - started, num_steps=num_steps, mask_seconds=watch.seconds)


def requests(workload: Workload, grammar: str | None) -> list[Request]:
    ends: dict[str, Any] = {"ignore_eos": True} if grammar is None else {"grammar": grammar}
    return [
        Request(
            id=str(i),
            prompt=item.prompt,
            params=SamplingParams(max_tokens=item.num_output, temperature=1.0, seed=i, **ends),
        )
        for i, item in enumerate(workload.items)
    ]


def report(options: argparse.Namespace, workload: Workload, free: list[Run], shaped: list[Run]) -> None:
    seconds, shaped_seconds = (statistics.median(run.seconds for run in runs) for runs in (free, shaped))
    one = min(shaped, key=lambda run: abs(run.seconds - shaped_seconds))
    mask_ms = 1e3 * one.mask_seconds / one.num_steps
    extra_ms = 1e3 * (shaped_seconds - seconds) / one.num_steps
    hidden = max(0.0, min(1.0, 1 - extra_ms / mask_ms))
    summary = {
        "bench": "structured",
        "model": Path(options.model).name,
        "workload": workload.name,
        "requests": len(workload.items),
        "free_tokens_per_s": round(workload.num_output / seconds, 1),
        "shaped_tokens_per_s": round(workload.num_output / shaped_seconds, 1),
        "ratio": round(seconds / shaped_seconds, 3),
        "step_ms": round(1e3 * shaped_seconds / one.num_steps, 2),
        "mask_ms_per_step": round(mask_ms, 2),
        "extra_ms_per_step": round(extra_ms, 2),
        "hidden": round(hidden, 2),
    }
    print(
        f"{options.model}, {workload.name}: {summary['free_tokens_per_s']} tokens/s without a schema, "
        f"{summary['shaped_tokens_per_s']} with one on all rows, {summary['ratio']} of it; masks take "
        f"{summary['mask_ms_per_step']} ms of a step of {summary['step_ms']} ms, {summary['hidden']:.0%} of it hidden"
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
