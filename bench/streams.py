"""Online streams without a model: what Redis and the API add to a first token, and many streams at once.

A stand-in engine gives every stream a token a step. First one request after another is asked of the engine's own
process, in this one, and then the same over HTTP, with no pause between steps; the difference is what HTTP, the API,
Redis and the worker add, and a page that needs no Redis tells how much of it is HTTP. Then as many streams as are
wanted run at once through one API process, with a pause between steps. Every stream must come whole. Prints a table,
then one JSON line.

usage: python bench/streams.py [--streams 500 --tokens 100 --step-ms 50 --requests 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from pressrun.bench.streaming import Streamed, first_byte_s, stream
from pressrun.engine.request import Request, SamplingParams
from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.settings import Settings, load_settings
from pressrun.workers.echo_engine import EchoFactory
from pressrun.workers.engine_process import EngineProcess

MODEL = "echo"
START_S = 60.0
PROMPT = "The quick brown fox jumps over the lazy dog. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--requests", type=int, default=200, help="one after another, for the time to the first token")
    args = parser.parse_args()
    direct = direct_first_s(args.requests)
    with serving(step_s=0.0, rows=8) as port:
        alone, pages = [], []
        for i in range(args.requests):
            alone.append(asyncio.run(asked(port, i, 8)))
            pages.append(asyncio.run(first_byte_s("127.0.0.1", port, "/docs")))
    with serving(step_s=args.step_ms / 1000, rows=args.streams) as port:
        asyncio.run(asked(port, 0, 2))
        started = time.perf_counter()
        many = asyncio.run(all_at_once(port, args.streams, args.tokens))
        took_s = time.perf_counter() - started
    report(direct, pages, alone, many, took_s, args)


def report(
    direct: Sequence[float],
    pages: Sequence[float],
    alone: Sequence[Streamed],
    many: Sequence[Streamed],
    took_s: float,
    args: argparse.Namespace,
) -> None:
    """Print it all. Raises SystemExit where a stream did not come whole."""
    broken = [one.error for one in (*alone, *many) if one.error is not None]
    if broken:
        raise SystemExit(f"{len(broken)} streams failed, such as: {broken[0]}")
    over_http = [one.first_s for one in alone]
    added = {p: (quantile(over_http, p) - quantile(direct, p)) * 1000 for p in (50, 95)}
    firsts = [one.first_s for one in many]
    parts = {name: [one.phases.get(name, 0.0) for one in alone] for name in alone[0].phases}
    rates = [args.tokens / one.whole_s for one in many]
    gaps = [one.longest_gap_s for one in many]
    rows = [
        ("first token, engine process alone, ms", [quantile(direct, p) * 1000 for p in (50, 95, 100)]),
        ("a page of the API that needs no Redis, ms", [quantile(pages, p) * 1000 for p in (50, 95, 100)]),
        ("first token, over HTTP, ms", [quantile(over_http, p) * 1000 for p in (50, 95, 100)]),
        *((f"  of it {name}, ms", [quantile(times, p) for p in (50, 95, 100)]) for name, times in parts.items()),
        (f"first token, {args.streams} at once, ms", [quantile(firsts, p) * 1000 for p in (50, 95, 100)]),
        ("longest pause in a stream, ms", [quantile(gaps, p) * 1000 for p in (50, 95, 100)]),
        ("tokens a second of a stream", [quantile(rates, p) for p in (50, 5, 0)]),
    ]
    print(f"{'':<44}{'median':>9}{'worst 5%':>10}{'worst':>9}")
    for name, values in rows:
        print(f"{name:<44}{values[0]:>9.2f}{values[1]:>10.2f}{values[2]:>9.2f}")
    fields = {
        "bench": "streams",
        "streams": len(many),
        "errors": 0,
        "added_first_token_ms_p50": round(added[50], 2),
        "added_first_token_ms_p95": round(added[95], 2),
        "of_it_http_ms_p50": round(quantile(pages, 50) * 1000, 2),
        "parts_ms_p50": {name: round(quantile(times, 50), 2) for name, times in parts.items()},
        "first_token_ms_p95": round(quantile(firsts, 95) * 1000, 1),
        "tokens_per_s": round(args.tokens * len(many) / took_s, 1),
        "slowest_to_fastest_stream": round(min(rates) / max(rates), 3),
        "chunks_per_token": round(sum(len(one.times) for one in many) / (args.tokens * len(many)), 3),
        "cores": os.cpu_count(),
    }
    print(json.dumps(fields))


def quantile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[round(percent / 100 * (len(values) - 1))]


def direct_first_s(number: int) -> list[float]:
    """Seconds to the first token of requests made to an engine's process, one after another."""
    engine = EngineProcess(EchoFactory(max_num_seqs=8))
    engine.start()
    while engine.info is None:
        engine.poll(1.0)
    try:
        return [_one_direct(engine, f"{i}.0", _prompt(i, 8).encode()) for i in range(number)]
    finally:
        engine.stop()


def _one_direct(engine: EngineProcess, name: str, prompt: bytes) -> float:
    started = time.perf_counter()
    engine.add([Request(id=name, prompt=prompt, params=SamplingParams(max_tokens=len(prompt)), stream=True)])
    outputs = engine.poll(5.0)
    while not outputs:
        outputs = engine.poll(5.0)
    took_s = time.perf_counter() - started
    while outputs[-1].finish_reason is None:
        outputs += engine.poll(5.0)
    return took_s


async def asked(port: int, number: int, tokens: int) -> Streamed:
    """One stream, read to its end and compared with what it must say."""
    prompt = _prompt(number, tokens)
    one = await stream("127.0.0.1", port, {"model": MODEL, "prompt": prompt, "max_tokens": tokens})
    if one.error is None and one.text != prompt:
        one.error = f"it said {one.text!r} instead of {prompt!r}"
    return one


async def all_at_once(port: int, number: int, tokens: int) -> list[Streamed]:
    return await asyncio.gather(*(asked(port, i, tokens) for i in range(number)))


def _prompt(number: int, tokens: int) -> str:
    """So many tokens, other ones for every number."""
    return (f"{number} " + PROMPT * (tokens // len(PROMPT) + 1))[:tokens]


@contextmanager
def serving(*, step_s: float, rows: int) -> Iterator[int]:
    """A Valkey, one API process and one worker; yields the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name, EmbeddedValkey(Path(name)) as valkey:
        settings = load_settings(
            {}, data_dir=Path(name), redis_url=valkey.url, model=MODEL, engine="echo", port=port, log_level="warning"
        )
        worker = [sys.executable, str(Path(__file__).with_name("stream_worker.py")), str(step_s), str(rows)]
        api = [sys.executable, "-P", "-m", "pressrun.cli", "api"]
        processes = [_started(command, settings) for command in (api, worker)]
        try:
            _wait_until_ready(port)
            yield port
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(timeout=60)


def _started(command: list[str], settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=os.environ | settings.environment(), stdout=sys.stderr)


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + START_S
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    while time.monotonic() < deadline:
        try:
            if httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service did not become ready")


if __name__ == "__main__":
    main()
