"""Requests that somebody waits for beside a batch that fills the engine: what each costs the other.

    python bench/mixed.py --model llama-3.1-8b                       the whole service
    python bench/mixed.py --model llama-3.1-8b --engine              the engine's process alone
    python bench/mixed.py --model llama-3.1-8b --stand-in            the service with a stand-in for a full GPU
    python bench/mixed.py --model tiny --num-requests 200 --prompt-tokens 64 --rate 2      needs no GPU

Interactive requests come at random times, `--rate` a second on average, while the engine is idle but for them, and
then while it runs the batch, which is also run alone. Pages are not kept for later requests, because the batch runs
twice and is to be the same work. A model without weights is given SmolLM2's tokenizer, made as large as its vocabulary.
Prints a table, another of what the times to first tokens are made of, then one JSON line. The phases are those of the
answers' Server-Timing header, and `http` is the rest of what the client waited.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pressrun.bench.asking import SHARES, Asking, Level
from pressrun.bench.mixed_engine import engine_level
from pressrun.bench.mixed_service import service_level
from pressrun.bench.options import add_engine_flags, engine_flags
from pressrun.bench.shapes import SHAPES
from pressrun.bench.tables import print_table, show
from pressrun.bench.workloads import WORKLOADS, make_workload

WARM_UP_S = 3.0


def main() -> int:
    options, flags = _options()
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as name, _level(options, flags, Path(name)) as level:
        rows = measure(level, options)
    _print(rows)
    alone, batch, both = rows
    ratios = {
        "ttft_p95_ratio": both["ttft_p95_ms"] / alone["ttft_p95_ms"],
        "batch_throughput_share": batch["batch_s"] / both["batch_s"],
    }
    print(
        f"\np95 to the first token beside the batch is {ratios['ttft_p95_ratio']:.2f} times that alone; "
        f"the batch keeps {ratios['batch_throughput_share']:.1%} of its throughput"
    )
    what = {"model": options.model, "workload": options.workload, "level": "engine" if options.engine else "service"}
    print(json.dumps({**what, "runs": rows, **ratios}))
    return 0


def measure(level: Level, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The requests alone, the batch alone, and both."""
    workload = make_workload(options.workload, level.vocab_size, options.num_requests)
    level.run(replace(workload, name="warm-up", items=workload.items[: len(workload.items) // 8 or 1]), None)

    def asking(seed: int) -> Asking:
        return Asking(
            rate=options.rate,
            num_prompt=options.prompt_tokens,
            num_output=options.output_tokens,
            vocab_size=level.vocab_size,
            random=random.Random(seed),
        )

    level.run(None, asking(0), WARM_UP_S)
    idle, beside = asking(1), asking(2)
    level.run(None, idle, options.idle_seconds)
    alone_s = level.run(workload, None)
    both_s = level.run(workload, beside)
    for one, what in ((idle, "an idle engine"), (beside, "the batch")):
        if not one.waits:
            raise SystemExit(f"no request was asked beside {what}: make --rate or --num-requests larger")
    return [
        {"run": "interactive alone", "batch_s": None, **idle.figures(), "phases": idle.phase_figures()},
        {"run": "batch alone", "batch_s": alone_s},
        {"run": "both", "batch_s": both_s, **beside.figures(), "phases": beside.phase_figures()},
    ]


def _level(options: argparse.Namespace, flags: dict[str, Any], root: Path) -> AbstractContextManager[Level]:
    flags = {"enable_prefix_caching": False, **flags}
    if options.engine:
        return engine_level(options.model, root, flags, has_interludes=not options.no_interludes)
    return service_level(options.model, root, flags, has_stand_in=options.stand_in)


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
    print()
    phases = [{"run": row["run"], **phase} for row in rows for phase in row.get("phases", ())]
    shares = [(f"{label} ms", milliseconds(f"{label}_ms")) for label in SHARES]
    print_table([("run", lambda row: row["run"]), ("phase", lambda row: row["phase"]), *shares], phases, num_left=2)


def _options() -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="llama-3.1-8b", help=f"one of {', '.join(SHAPES)}, or a folder")
    parser.add_argument("--workload", default="sharegpt", choices=list(WORKLOADS), help="of the batch")
    parser.add_argument("--num-requests", type=int, help="of the batch; its own number if not given")
    parser.add_argument("--rate", type=float, default=4.0, help="interactive requests a second")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--idle-seconds", type=float, default=12.0)
    parser.add_argument("--engine", action="store_true", help="the engine's process alone, without the service")
    parser.add_argument("--stand-in", action="store_true", help="a stand-in for the engine, which needs no GPU")
    parser.add_argument("--no-interludes", action="store_true", help="urgent requests wait for the next step")
    add_engine_flags(parser, "EngineConfig's fields")
    options = parser.parse_args()
    if options.no_interludes and not options.engine:
        parser.error("--no-interludes is no setting of the service: it needs --engine")
    if options.stand_in and options.engine:
        parser.error("--stand-in and --engine exclude each other: what is left of the engine's process is a pipe")
    return options, engine_flags(options)


if __name__ == "__main__":
    sys.exit(main())
