"""A child process of bench/throughput.py: measures one engine, or the machine's ceilings, and says what it found.

    python -P -m pressrun.bench.child TASK.json EVENTS.jsonl

Events are lines of JSON appended to the second file as they happen, because engines print to stdout what they like.
-P keeps the working folder out of the import path: its `kernels` would hide a package that transformers looks for.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pressrun.bench.ceilings import measure_ceilings
from pressrun.bench.tasks import Run, Runner, Task
from pressrun.bench.workloads import LOWEST_TOKEN, Item, Workload, make_workload

Report = Callable[[dict[str, Any]], None]


def make_runner(task: Task) -> Runner:
    """Importing only the engine that is measured: the others' imports would count as its start."""
    if task.engine == "pressrun":
        from pressrun.bench.ours import Pressrun

        return Pressrun(task)
    from pressrun.bench.peers import Transformers, Vllm

    return Vllm(task) if task.engine == "vllm" else Transformers(task)


def measure(task: Task, report: Report) -> None:
    runner = make_runner(task)
    runner.run([Item([LOWEST_TOKEN] * 16, 1)])
    report({"event": "ready", "version": runner.version, "startup_s": time.time() - task.started})
    warm_up = make_workload("uniform", task.vocab_size, task.num_warm_up)
    check_lengths(warm_up, runner.run(warm_up.items))
    for name in task.workloads:
        workload = make_workload(name, task.vocab_size, task.num_requests)
        run = None
        for _ in range(task.repeat):
            runner.forget()
            gc.collect()
            run = runner.run(workload.items)
            check_lengths(workload, run)
            report({"event": "run", "workload": name, "seconds": run.seconds, "details": run.details})
        if task.profile and run is not None:
            runner.forget()
            found = runner.profile(workload.items, run)
            if found is not None:
                report({"event": "profile", "workload": name, "profile": found})


def check_lengths(workload: Workload, run: Run) -> None:
    """Raise RuntimeError unless every request has exactly as many tokens as it asked for."""
    for i, (item, tokens) in enumerate(zip(workload.items, run.tokens, strict=True)):
        if len(tokens) != item.num_output:
            raise RuntimeError(f"{workload.name}: request {i} has {len(tokens)} tokens instead of {item.num_output}")


def main() -> int:
    task, events = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])

    def report(event: dict[str, Any]) -> None:
        with events.open("a") as file:
            file.write(json.dumps(event) + "\n")

    try:
        if task["engine"] == "ceilings":
            ceilings = measure_ceilings(task["device"], task["attention_tflops"])
            report({"event": "ceilings", "ceilings": asdict(ceilings)})
        else:
            measure(Task(**task), report)
    except Exception as e:
        traceback.print_exc()
        report({"event": "failed", "error": f"{type(e).__name__}: {e}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
