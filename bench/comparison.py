"""Runs the engines one after another, each in a child process, and brings together what they say.

Knows nothing of any engine, nor of how results are printed in the end.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .ceilings import Ceilings
from .children import Ended, run_child
from .limits import limits_of, sizes_of
from .options import ENGINES
from .shapes import SHAPES, write_shape
from .tables import print_ceilings
from .tasks import Task
from .workloads import Workload, make_workload

# What is measured fits; a model's own context may be so long that tables for it take memory from the KV cache.
MAX_MODEL_LEN = 4096
GIB = 1 << 30


class Comparison:
    """Runs the children in turn and gathers what they say."""

    def __init__(self, options: Namespace, flags: dict[str, Any], root: Path) -> None:
        self.errors: dict[str, str] = {}
        self.absent = [engine for engine in options.engines if find_spec(ENGINES[engine]) is None]
        self._options, self._flags, self._root = options, flags, root
        self._folder = write_shape(options.model, root) if options.model in SHAPES else Path(options.model).resolve()
        self._shape = json.loads((self._folder / "config.json").read_text())
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._ended: dict[str, Ended] = {}
        self.ceilings: Ceilings | None = None
        self._workloads = [
            make_workload(name, self._shape["vocab_size"], options.num_requests) for name in options.workload
        ]

    def run(self) -> None:
        device = self._flags.get("device", "auto")
        self._child("ceilings", {"device": device, "attention_tflops": self._options.attention_tflops})
        for event in self._events["ceilings"]:
            self.ceilings = Ceilings(**event["ceilings"])
        if self.ceilings is None:
            return
        print_ceilings(self.ceilings)
        for engine in self._options.engines:
            if engine in self.absent:
                print(f"{engine}: not installed, left out", flush=True)
            else:
                self._child(engine, asdict(self._task(engine, self.ceilings)))

    def results(self) -> list[dict[str, Any]]:
        """One for each engine and workload that was measured to its end."""
        found = [
            result
            for engine in self._options.engines
            for workload in self._workloads
            if (result := self._result(engine, workload)) is not None
        ]
        for result in found:
            others = [other for other in found if other["workload"] == result["workload"] and other is not result]
            result["ratio"] = {
                other["engine"]: result["output_tokens_per_s"] / other["output_tokens_per_s"] for other in others
            }
        return found

    def limits(self) -> dict[str, dict[str, Any] | None]:
        """By workload, in seconds; None where the model does not fit."""
        assert self.ceilings is not None
        is_float32 = self._dtype(self.ceilings) == "float32"
        weight_bytes = 4 if is_float32 else 2
        kv_bytes = 1 if "8" in str(self._flags.get("kv_cache_dtype", "")) else weight_bytes
        sizes = sizes_of(self._shape, weight_bytes, kv_bytes)
        all_limits = {workload.name: limits_of(sizes, workload, self.ceilings) for workload in self._workloads}
        return {name: None if limits is None else asdict(limits) for name, limits in all_limits.items()}

    def profiles(self) -> dict[str, dict[str, Any]]:
        events = self._events.get("pressrun", [])
        return {event["workload"]: event["profile"] for event in events if event["event"] == "profile"}

    def _child(self, name: str, task: dict[str, Any]) -> None:
        events: list[dict[str, Any]] = []
        self._events[name] = events

        def on_event(event: dict[str, Any]) -> None:
            events.append(event)
            if event["event"] == "ready":
                print(f"{name} {event['version']}: first token {event['startup_s']:.1f} s after its start", flush=True)
            elif event["event"] == "run":
                print(f"{name}, {event['workload']}: {event['seconds']:.2f} s", flush=True)

        ended = self._ended[name] = run_child({"engine": name, **task}, self._root / f"child-{name}", on_event)
        if ended.error is not None:
            self.errors[name] = ended.error
            print(f"{name} failed: {ended.error}", flush=True)
            print(ended.log_tail, file=sys.stderr, flush=True)

    def _task(self, engine: str, ceilings: Ceilings) -> Task:
        options = self._options
        longest = min(MAX_MODEL_LEN, self._shape.get("max_position_embeddings", MAX_MODEL_LEN))
        return Task(
            engine=engine,
            model=str(self._folder),
            is_dummy=not any(self._folder.glob("*.safetensors")),
            vocab_size=self._shape["vocab_size"],
            max_model_len=self._flags.get("max_model_len", longest),
            device=ceilings.device,
            dtype=self._dtype(ceilings),
            workloads=options.workload,
            num_requests=options.num_requests,
            repeat=options.repeat,
            num_warm_up=min(options.num_warm_up, options.num_requests or options.num_warm_up),
            profile=options.profile,
            engine_options={name: value for name, value in self._flags.items() if name != "device"},
            vllm_options=options.vllm_args,
            transformers_batch=options.transformers_batch,
            started=time.time(),
        )

    def _dtype(self, ceilings: Ceilings) -> str:
        """On a CPU the same for all: engines differ in what they take for its best."""
        return str(self._flags.get("dtype", "float32" if ceilings.device == "cpu" else "auto"))

    def _result(self, engine: str, workload: Workload) -> dict[str, Any] | None:
        events = self._events.get(engine, [])
        ready = next((event for event in events if event["event"] == "ready"), None)
        runs = [event for event in events if event["event"] == "run" and event["workload"] == workload.name]
        if ready is None or len(runs) < self._options.repeat:
            return None
        seconds = statistics.median_low(event["seconds"] for event in runs)
        median = next(event for event in runs if event["seconds"] == seconds)
        limits, peak = self.limits()[workload.name] or {}, self._ended[engine].peak_gpu_bytes
        return {
            "engine": engine,
            "version": ready["version"],
            "workload": workload.name,
            "num_requests": len(workload.items),
            "input_tokens": workload.num_input,
            "output_tokens": workload.num_output,
            "seconds": seconds,
            "all_seconds": [event["seconds"] for event in runs],
            "output_tokens_per_s": workload.num_output / seconds,
            "total_tokens_per_s": (workload.num_input + workload.num_output) / seconds,
            "share_of_sequential_limit": limits["sequential"] / seconds if limits else None,
            "share_of_overlap_limit": limits["overlap"] / seconds if limits else None,
            "startup_s": ready["startup_s"],
            "peak_gpu_gib": None if peak is None else peak / GIB,
            **median["details"],
        }
