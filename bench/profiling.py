"""Which kernels a step's time goes to, and for which share of it the device has nothing to do.

Looks at some steps in the middle of a run. On a GPU a kernel counts with its time on the device, and idle is what no
kernel or copy of any stream covers between the first and the last; on a CPU an operator counts with its own time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

NUM_STEPS, NUM_KERNELS = 30, 25


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel's time on the device, in microseconds."""

    name: str
    start: float
    end: float


def profile_steps(
    step: Callable[[], Any], has_work: Callable[[], bool], num_steps: int, *, on_gpu: bool
) -> dict[str, Any]:
    """Take steps until some of the middle of `num_steps` are seen; say what they were spent on."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(max(0, (num_steps - NUM_STEPS) // 2)):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    count = 0
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        while count < NUM_STEPS and has_work():
            step()
            count += 1
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        spans = _device_spans(profiler.events() or ())
        return {"num_steps": count, "kernels": by_name(spans), "idle_share": idle_share(spans)}
    kernels = [
        {"name": average.key, "calls": average.count, "total_ms": average.self_cpu_time_total / 1e3}
        for average in profiler.key_averages()
    ]
    return {"num_steps": count, "kernels": with_shares(kernels), "idle_share": None}


def by_name(spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Name, calls, total milliseconds and share of the time in kernels."""
    calls: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        calls[span.name].append(span.end - span.start)
    return with_shares([{"name": name, "calls": len(t), "total_ms": sum(t) / 1e3} for name, t in calls.items()])


def with_shares(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest, each with its share of all."""
    total = sum(kernel["total_ms"] for kernel in kernels) or 1.0
    largest_first = sorted(kernels, key=lambda kernel: -kernel["total_ms"])
    return [kernel | {"share": kernel["total_ms"] / total} for kernel in largest_first[:NUM_KERNELS]]


def idle_share(spans: Iterable[Span]) -> float | None:
    """Of the time from the first start to the last end, what no span covers; None without spans."""
    in_order = sorted(spans, key=lambda span: span.start)
    if not in_order:
        return None
    busy, covered = 0.0, in_order[0].start
    for span in in_order:
        busy += max(0.0, span.end - max(span.start, covered))
        covered = max(covered, span.end)
    return 1 - busy / ((covered - in_order[0].start) or 1.0)


def _device_spans(events: Iterable[Any]) -> list[Span]:
    """Kernels, copies and fills; not the ranges that annotate them, which would cover the gaps."""
    return [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
