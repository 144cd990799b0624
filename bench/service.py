"""The service without a model: lines a second from POST to the finished output file, and flat memory.

A stand-in engine answers every line at once with its prompt, so what is measured is the API, Valkey, RQ, the worker and
the blob store. Every round uploads a file of chat lines, creates a batch of it with the `openai` SDK and waits for the
output; every custom_id must come back once, in order. What processors spent on a line is told beside the time on the
clock, because it is much the same on a machine that others use too. Prints a table, then one JSON line.

usage: python bench/service.py [--lines 10000 --more-lines 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from redis import Redis

from pressrun.bench.serving import Service, run_batch, running_service
from pressrun.jobs.embedded import EmbeddedValkey

MODEL = "echo"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One batch. Memory is the peak in MiB until its end: of the API process and of the worker's processes what was
    resident, of Valkey what it had in use. Microseconds of processors that a line took are those of all three together.
    """

    lines: int
    upload_s: float
    batch_s: float
    api_mib: float
    worker_mib: float
    valkey_mib: float
    cpu_us: float

    @property
    def lines_per_s(self) -> float:
        return self.lines / self.batch_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--more-lines", type=int, default=100_000, help="0 leaves the memory comparison out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = {"max_batch_lines": 10**8, "max_batch_bytes": 2**40, "max_file_bytes": 2**40}
        settings: dict[str, Any] = {"data_dir": folder, "engine": "echo", "model": MODEL} | limits
        with running_service(START_TIMEOUT_S, **settings) as service:
            run_round(service, 1000, folder)  # warm-up: imports, connections, first scripts
            rounds = [run_round(service, lines, folder) for lines in (args.lines, args.more_lines) if lines]
    print_table(rounds)
    small, large = rounds[0], rounds[-1]
    print(
        json.dumps(
            {
                "bench": "service",
                "lines": small.lines,
                "lines_per_s": round(small.lines_per_s, 1),
                "lines_per_s_large": round(large.lines_per_s, 1),
                "cpu_us_a_line": round(small.cpu_us, 1),
                "cpu_us_a_line_large": round(large.cpu_us, 1),
                "api_memory_ratio": round(large.api_mib / small.api_mib, 3),
                "worker_memory_ratio": round(large.worker_mib / small.worker_mib, 3),
                "valkey_memory_ratio": round(large.valkey_mib / small.valkey_mib, 3),
                "cores": os.cpu_count(),
            }
        )
    )


def run_round(service: Service, lines: int, folder: Path) -> Round:
    path = folder / f"in-{lines}.jsonl"
    write_input(path, lines)
    spent_s = cpu_seconds(service.pid)
    run = run_batch(service.client, path, "/v1/chat/completions")
    spent_s = cpu_seconds(service.pid) - spent_s
    check_output(service.client, run.output_file_id, lines)
    memory = peak_memory(service.pid)
    return Round(
        lines=lines,
        upload_s=run.upload_s,
        batch_s=run.batch_s,
        api_mib=memory["api"],
        worker_mib=memory["worker"],
        valkey_mib=valkey_peak_mib(folder),
        cpu_us=spent_s / lines * 1e6,
    )


def write_input(path: Path, lines: int) -> None:
    with open(path, "w") as out:
        for i in range(lines):
            messages = [{"role": "user", "content": f"What is {i} plus {i + 1}? Answer with the number only."}]
            body = {"model": MODEL, "messages": messages, "max_tokens": 16}
            line = {"custom_id": f"line-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


def check_output(client: OpenAI, output_file_id: str, lines: int) -> None:
    count = 0
    with client.files.with_streaming_response.content(output_file_id) as response:
        for line in response.iter_lines():
            if json.loads(line)["custom_id"] != f"line-{count}":
                raise SystemExit(f"output line {count} is not the answer to input line {count}")
            count += 1
    if count != lines:
        raise SystemExit(f"{count} output lines for {lines} input lines")


def peak_memory(pid: int) -> dict[str, float]:
    """Peak resident MiB of what `pressrun up` started, by role; an engine process counts to its worker."""
    totals = {"api": 0.0, "worker": 0.0}
    for child in psutil.Process(pid).children():
        role = next((role for role in totals if role in child.cmdline()), None)
        if role is not None:
            totals[role] += sum(peak_resident_mib(process.pid) for process in (child, *child.children(recursive=True)))
    return totals


def cpu_seconds(pid: int) -> float:
    """What all that `pressrun up` started has spent so far, itself among them."""
    started = psutil.Process(pid)
    times = [process.cpu_times() for process in (started, *started.children(recursive=True))]
    return float(sum(spent.user + spent.system for spent in times))


def peak_resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def valkey_peak_mib(data_dir: Path) -> float:
    with Redis.from_url(EmbeddedValkey(data_dir).url) as client:
        return int(client.info("memory")["used_memory_peak"]) / 2**20


def print_table(rounds: list[Round]) -> None:
    heads = ("lines", "upload s", "batch s", "lines/s", "CPU us", "API MiB")
    print(*(f"{head:>9}" for head in heads), f"{'worker MiB':>11} {'Valkey MiB':>11}")
    for r in rounds:
        print(
            f"{r.lines:>9} {r.upload_s:>9.2f} {r.batch_s:>9.2f} {r.lines_per_s:>9.0f} {r.cpu_us:>9.0f} "
            f"{r.api_mib:>9.1f} {r.worker_mib:>11.1f} {r.valkey_mib:>11.1f}"
        )


if __name__ == "__main__":
    main()
