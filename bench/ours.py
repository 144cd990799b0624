"""Our engine as it is measured: with the times of its steps, its counters and, if asked, its kernels."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pressrun
from pressrun.engine.config import EngineConfig
from pressrun.engine.engine import Engine
from pressrun.engine.request import Request, SamplingParams

from .options import engine_kinds
from .profiling import profile_steps
from .tasks import Run, Task
from .workloads import Item


class Pressrun:
    def __init__(self, task: Task) -> None:
        settings: dict[str, Any] = {
            "load_format": "dummy" if task.is_dummy else "safetensors",
            "device": task.device,
            "dtype": task.dtype,
            "max_model_len": task.max_model_len,
        }
        self.version, self._on_gpu = pressrun.__version__, task.device.startswith("cuda")
        # They came as JSON, which has no paths.
        kinds = engine_kinds()
        options = {name: Path(value) if kinds[name] is Path else value for name, value in task.engine_options.items()}
        self._engine = Engine(EngineConfig(model=Path(task.model), **settings | options))

    def run(self, items: list[Item]) -> Run:
        before = self._engine.load()
        requests = self._requests(items)
        finished: dict[str, list[int]] = {}
        clock = [time.perf_counter()]
        self._engine.add(requests)
        clock.append(time.perf_counter())
        while self._engine.has_work():
            for output in self._engine.step():
                if output.error is not None:
                    raise RuntimeError(f"request {output.id}: {output.error}")
                finished[output.id] = output.token_ids
            clock.append(time.perf_counter())
        after = self._engine.load()
        milliseconds = [1e3 * (end - start) for start, end in pairwise(clock[1:])]
        return Run(
            seconds=clock[-1] - clock[0],
            tokens=[finished[request.id] for request in requests],
            details={
                "num_steps": len(milliseconds),
                "step_ms_mean": statistics.fmean(milliseconds),
                "step_ms_p50": statistics.median(milliseconds),
                "step_ms_max": max(milliseconds),
                "preemptions": after.num_preemptions - before.num_preemptions,
                "cached_tokens": after.num_cached_tokens - before.num_cached_tokens,
                "kv_cache_tokens": after.num_pages * after.page_size,
                "dtype": self._engine.info.dtype,
            },
        )

    def forget(self) -> None:
        self._engine.reset_prefix_cache()

    def profile(self, items: list[Item], run: Run) -> dict[str, Any] | None:
        self._engine.add(self._requests(items))
        num_steps = run.details["num_steps"]
        found = profile_steps(self._engine.step, self._engine.has_work, num_steps, on_gpu=self._on_gpu)
        self._engine.abort([str(i) for i in range(len(items))])
        while self._engine.has_work():
            self._engine.step()
        return found

    def _requests(self, items: list[Item]) -> list[Request]:
        return [
            Request(
                id=str(i),
                prompt=item.prompt,
                params=SamplingParams(max_tokens=item.num_output, temperature=0.0, ignore_eos=True),
            )
            for i, item in enumerate(items)
        ]
