"""What a child process is told to measure, and what an engine must answer to be measured.

`run` takes requests as token ids and returns when the last token is on the host: greedy, end of sequence ignored,
exactly as many tokens as asked for. `forget` empties the prefix cache. `profile` runs requests again whose `run` is
known and tells which kernels some steps in their middle take (bench/profiling.py); None if the engine shows no steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from .workloads import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a child process is to do. `started` is the parent's clock (time.time) just before it began.

    `engine_options` are EngineConfig's and go to our engine alone, `vllm_options` to vLLM's LLM.
    """

    engine: str
    model: str
    is_dummy: bool
    vocab_size: int
    max_model_len: int
    device: str
    dtype: str
    workloads: list[str]
    num_requests: int | None
    repeat: int
    num_warm_up: int
    profile: bool
    engine_options: dict[str, Any]
    vllm_options: dict[str, Any]
    transformers_batch: int
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds for all requests, the tokens of each in their order, and what else an engine can say of them."""

    seconds: float
    tokens: list[list[int]]
    details: dict[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    version: str

    def run(self, items: list[Item]) -> Run: ...

    def forget(self) -> None: ...

    def profile(self, items: list[Item], run: Run) -> dict[str, Any] | None: ...
