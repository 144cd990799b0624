"""What counting costs: the engine each step, the worker each request and each line, each telling of it all, and the
API each reading of how many batches stand.

Prints two lines and their numbers as JSON.

usage: python bench/metrics.py [--rows 2048 --batches 10000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
from prometheus_client import generate_latest
from redis import Redis

from pressrun.bench.housekeeping import add_batch
from pressrun.engine.lifetimes import note_first_tokens
from pressrun.engine.request import Lifetime, Output
from pressrun.engine.rows import Rows
from pressrun.jobs.backend import backend_on
from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.metrics import _packed
from pressrun.jobs.records import LineResult
from pressrun.jobs.settings import load_settings
from pressrun.jobs.standing import Standing
from pressrun.workers.metrics import WorkerMetrics

AT_ONCE = 16  # Requests that end in one step, and lines that are committed together.


def microseconds(action: Callable[[], object], number: int) -> float:
    """The best of five rounds."""
    return 1e6 * min(timeit.repeat(action, number=number, repeat=5)) / number


def standing_ms(num_batches: int) -> float:
    """CPU of this process for one reading, the best of three, on a Valkey of its own."""
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedValkey(Path(name)) as valkey,
        Redis.from_url(valkey.url) as redis,
    ):
        backend = backend_on(load_settings({}, data_dir=Path(name)), redis)
        redis.config_set("appendonly", "no")  # Nothing here has to outlive the measurement.
        for number in range(num_batches):
            add_batch(backend, number, f"tenant-{number % 1000}")
        clock = time.process_time
        return 1000 * min(timeit.repeat(lambda: Standing(backend).read(), number=1, repeat=3, timer=clock))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=10_000)
    args = parser.parse_args()
    rows = Rows(args.rows, 64, 16)
    rows_D = np.arange(len(rows.sequences))
    rows.num_prompt_R[:], rows.num_known_R[:] = 10, 20  # Nobody draws a first token, as in nearly every step.
    life = Lifetime(
        arrived_at=0.0,
        admitted_at=1.0,
        first_token_at=1.5,
        ended_at=9.0,
        num_prompt_tokens=200,
        num_generated_tokens=200,
    )
    outputs = [Output(id="a", token_ids=[1], finish_reason="stop", lifetime=life)] * AT_ONCE
    results = [LineResult(index=0, outcome="succeeded", data=b"{}")] * AT_ONCE
    counting = WorkerMetrics()
    found = {
        "step_us": microseconds(lambda: note_first_tokens(rows, rows_D), 2000),
        "request_us": microseconds(lambda: counting.engine.note_outputs(outputs), 500) / AT_ONCE,
        "line_us": microseconds(lambda: counting.note_committed(results), 500) / AT_ONCE,
        "publish_us": microseconds(lambda: json.dumps(_packed(counting.registry)), 20),
    }
    size = len(json.dumps(_packed(counting.registry)))
    print(
        f"a step of {len(rows_D)} rows: {found['step_us']:.1f} µs; a request {found['request_us']:.1f} µs, a line "
        f"{found['line_us']:.1f} µs, {AT_ONCE} at a time; telling {found['publish_us'] / 1000:.1f} ms, {size} bytes "
        f"({len(generate_latest(counting.registry))} as text)"
    )
    found["standing_ms"] = standing_ms(args.batches)
    print(f"reading how {args.batches} batches stand: {found['standing_ms']:.0f} ms of this process' CPU")
    print(json.dumps({"bench": "metrics", "bytes": size} | {name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
