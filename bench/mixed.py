"""Requests that somebody waits for beside a batch that fills the engine: what each costs the other.

    python bench/mixed.py --model llama-3.1-8b
    python bench/mixed.py --model tiny --num-requests 200 --prompt-tokens 64      needs no GPU

The engine runs in a process of its own, as a worker has it; times are those of the process that asks, from sending a
request to the first token's coming back. Interactive requests come at random times, `--rate` a second on average, while
the engine is idle but for them, and then while it runs the sharegpt workload, which is also run alone. Prints a table,
then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pressrun.bench.comparison import MAX_MODEL_LEN
from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.tables import print_table, show
from pressrun.bench.workloads import HIGHEST_TOKEN, LOWEST_TOKEN, Item, make_workload
from pressrun.engine import interludes
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.request import URGENT as URGENT_PRIORITY
from pressrun.engine.request import Output, Request, SamplingParams
from pressrun.workers.engine_process import EngineProcess

URGENT = "u"
POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """Builds the engine in its process; it needs no text, and so no tokenizer."""

    folder: Path
    load_format: Literal["dummy", "safetensors"]
    has_interludes: bool

    def __call__(self) -> Engine:
        if not self.has_interludes:
            interludes.EXPECTED_S = 0.0
        return Engine(EngineConfig(model=self.folder, load_format=self.load_format, max_model_len=MAX_MODEL_LEN))


@dataclass(slots=True)
class Asking:
    """Interactive requests at random times, and when their tokens came."""

    rate: float
    num_prompt: int
    num_output: int
    vocab_size: int
    random: random.Random
    next_at: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    gaps: list[float] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)

    def due(self, now: float) -> Iterator[Request]:
        """The requests to send by now."""
        while self.next_at <= now:
            self.next_at = max(self.next_at, now - 1) + self.random.expovariate(self.rate)
            name = f"{URGENT}{len(self.sent)}"
            prompt = [self.random.randrange(LOWEST_TOKEN, self.vocab_size) for _ in range(self.num_prompt)]
            self.sent[name] = now
            self.open.add(name)
            yield _request(name, Item(prompt, self.num_output), urgent=True)

    def hear(self, output: Output, now: float) -> None:
        if output.token_ids:
            self.first.setdefault(output.id, now)
            if output.id in self.last:
                self.gaps.append(now - self.last[output.id])
            self.last[output.id] = now
        if output.finish_reason is not None:
            self.open.discard(output.id)

    def figures(self) -> dict[str, float]:
        """Milliseconds to the first token, and between tokens."""
        waits = sorted(self.first[name] - self.sent[name] for name in self.first)
        gaps = sorted(self.gaps)
        found = {"ttft": waits, "gap": gaps}
        shares = {"p50": 0.5, "p95": 0.95, "max": 1.0}
        return {
            f"{name}_{label}_ms": 1e3 * times[min(len(times) - 1, int(share * len(times)))]
            for name, times in found.items()
            for label, share in shares.items()
            if times
        } | {"requests": len(waits)}


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as name:
        engine = _started(options, Path(name))
        assert engine.info is not None
        vocab_size = min(HIGHEST_TOKEN, engine.info.vocab_size)
        workload = make_workload(options.workload, engine.info.vocab_size, options.num_requests)

        def asking(seed: int) -> Asking:
            return Asking(options.rate, options.prompt_tokens, options.output_tokens, vocab_size, random.Random(seed))

        try:
            run(engine, workload.items[: len(workload.items) // 8], None)  # Warms up.
            run(engine, [], asking(0), seconds=3.0)
            idle, beside = asking(1), asking(2)
            run(engine, [], idle, seconds=options.idle_seconds)
            alone_s = run(engine, workload.items, None)
            mixed_s = run(engine, workload.items, beside)
        finally:
            engine.stop()
    rows: list[dict[str, Any]] = [
        {"run": "interactive alone", "batch_s": None, **idle.figures()},
        {"run": "batch alone", "batch_s": alone_s},
        {"run": "both", "batch_s": mixed_s, **beside.figures()},
    ]
    _print(rows)
    ratios = {
        "ttft_p95_ratio": rows[2]["ttft_p95_ms"] / rows[0]["ttft_p95_ms"],
        "batch_throughput_share": alone_s / mixed_s,
    }
    print(
        f"\np95 to the first token beside the batch is {ratios['ttft_p95_ratio']:.2f} times that alone; "
        f"the batch keeps {ratios['batch_throughput_share']:.1%} of its throughput"
    )
    print(json.dumps({"model": options.model, "workload": options.workload, "runs": rows, **ratios}))
    return 0


def run(engine: EngineProcess, batch: list[Item], asking: Asking | None, seconds: float = 0.0) -> float:
    """Seconds until the batch was done, or until so much time is over; interactive requests are then let end."""
    left = {str(i) for i in range(len(batch))}
    engine.add([_request(str(i), item) for i, item in enumerate(batch)])
    start = time.perf_counter()
    ended = None
    if asking is not None:
        asking.next_at = start
    while ended is None or (asking is not None and asking.open):
        now = time.perf_counter()
        if ended is None and not left and now - start >= seconds:
            ended = now
        if asking is not None and ended is None:
            engine.add(list(asking.due(now)))
        until_next = POLL_S if asking is None else min(POLL_S, max(0.0, asking.next_at - now))
        for output in engine.poll(until_next):
            if output.error is not None:
                raise SystemExit(f"request {output.id}: {output.error}")
            if output.id.startswith(URGENT):
                assert asking is not None
                asking.hear(output, time.perf_counter())
            elif output.finish_reason is not None:
                left.discard(output.id)
    return ended - start


def _request(name: str, item: Item, *, urgent: bool = False) -> Request:
    params = SamplingParams(max_tokens=item.num_output, temperature=0.0, ignore_eos=True)
    return Request(
        id=name, prompt=item.prompt, params=params, priority=2 * URGENT_PRIORITY if urgent else 0, stream=urgent
    )


def _started(options: argparse.Namespace, root: Path) -> EngineProcess:
    is_shape = options.model in SHAPES
    folder = write_shape(options.model, root) if is_shape else Path(options.model)
    load_format: Literal["dummy", "safetensors"] = "dummy" if is_shape else "safetensors"
    factory = Factory(folder=folder, load_format=load_format, has_interludes=not options.no_interludes)
    engine = EngineProcess(factory)
    engine.start()
    while engine.info is None:
        engine.poll(1.0)
    return engine


def _print(rows: list[dict[str, Any]]) -> None:
    def milliseconds(name: str) -> Any:
        return lambda row: show(row.get(name), ".1f")

    print_table(
        [
            ("run", lambda row: row["run"]),
            ("batch s", lambda row: show(row["batch_s"], ".2f")),
            ("requests", lambda row: show(row.get("requests"), ",")),
            ("first token p50 ms", milliseconds("ttft_p50_ms")),
            ("p95 ms", milliseconds("ttft_p95_ms")),
            ("max ms", milliseconds("ttft_max_ms")),
            ("next token p50 ms", milliseconds("gap_p50_ms")),
            ("p95 ms", milliseconds("gap_p95_ms")),
        ],
        rows,
        num_left=1,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", help=f"one of {', '.join(SHAPES)}, or a folder")
    parser.add_argument("--workload", default="sharegpt", help="of the batch (bench/workloads.py)")
    parser.add_argument("--num-requests", type=int, help="of the batch; its own number if not given")
    parser.add_argument("--rate", type=float, default=4.0, help="interactive requests a second")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--idle-seconds", type=float, default=12.0)
    parser.add_argument("--no-interludes", action="store_true", help="urgent requests wait for the next step")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
