"""The lower level of bench/mixed.py: the engine in a process of its own, as a worker has it.

Times are those of the process that asks, from sending a request to its tokens' coming back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressrun.bench.asking import Asking
from pressrun.bench.comparison import MAX_MODEL_LEN
from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.workloads import HIGHEST_TOKEN, Item, Workload
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

    config: EngineConfig
    has_interludes: bool

    def __call__(self) -> Engine:
        if not self.has_interludes:
            interludes.EXPECTED_S = 0.0
        return Engine(self.config)


@contextlib.contextmanager
def engine_level(model: str, root: Path, flags: dict[str, Any], *, has_interludes: bool) -> Iterator[EngineLevel]:
    """An engine that is ready."""
    is_shape = model in SHAPES
    config = EngineConfig(
        **{
            "model": write_shape(model, root) if is_shape else Path(model),
            "load_format": "dummy" if is_shape else "safetensors",
            "max_model_len": MAX_MODEL_LEN,
            **flags,
        }
    )
    engine = EngineProcess(Factory(config=config, has_interludes=has_interludes))
    engine.start()
    try:
        while engine.info is None:
            engine.poll(1.0)
        yield EngineLevel(engine, min(HIGHEST_TOKEN, engine.info.vocab_size))
    finally:
        engine.stop()


class EngineLevel:
    """A `Level`."""

    def __init__(self, engine: EngineProcess, vocab_size: int) -> None:
        self._engine = engine
        self.vocab_size = vocab_size

    def run(self, batch: Workload | None, asking: Asking | None, seconds: float = 0.0) -> float:
        items = batch.items if batch is not None else []
        left = {str(i) for i in range(len(items))}
        self._engine.add([_request(str(i), item) for i, item in enumerate(items)])
        start = time.monotonic()
        ended = None
        urgent = None if asking is None else Urgent(asking=asking, next_at=start)
        while ended is None or (urgent is not None and urgent.open):
            now = time.monotonic()
            if ended is None and not left and now - start >= seconds:
                ended = now
            if urgent is not None and ended is None:
                self._engine.add(list(urgent.due(now)))
            for output in self._engine.poll(POLL_S if urgent is None else min(POLL_S, urgent.until_next(now))):
                if output.error is not None:
                    raise SystemExit(f"request {output.id}: {output.error}")
                if output.id.startswith(URGENT):
                    assert urgent is not None
                    urgent.hear(output, time.monotonic())
                elif output.finish_reason is not None:
                    left.discard(output.id)
        return ended - start


@dataclass(slots=True, kw_only=True)
class Urgent:
    """The requests that are asked meanwhile: those that are open, with the time of their last sign."""

    asking: Asking
    next_at: float
    num_sent: int = 0
    open: dict[str, float] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)

    def until_next(self, now: float) -> float:
        return max(0.0, self.next_at - now)

    def due(self, now: float) -> Iterator[Request]:
        """The requests to send by now."""
        while self.next_at <= now:
            self.next_at = max(self.next_at, now - 1) + self.asking.pause()
            name = f"{URGENT}{self.num_sent}"
            self.num_sent += 1
            self.open[name] = now
            yield _request(name, Item(self.asking.prompt(), self.asking.num_output), urgent=True)

    def hear(self, output: Output, now: float) -> None:
        if output.token_ids:
            times = self.asking.gaps if output.id in self.begun else self.asking.waits
            times.append(now - self.open[output.id])
            if output.passage is not None:
                points = self.open[output.id], output.passage.came_at, output.passage.left_at, now
                parts = zip(("inbox", "engine", "return"), points, points[1:], strict=False)
                self.asking.phases.append({name: (end - start) * 1000 for name, start, end in parts})
            self.begun.add(output.id)
            self.open[output.id] = now
        if output.finish_reason is not None:
            del self.open[output.id]


def _request(name: str, item: Item, *, urgent: bool = False) -> Request:
    params = SamplingParams(max_tokens=item.num_output, temperature=0.0, ignore_eos=True)
    return Request(
        id=name, prompt=item.prompt, params=params, priority=2 * URGENT_PRIORITY if urgent else 0, stream=urgent
    )
