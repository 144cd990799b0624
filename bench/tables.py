"""How bench/throughput.py's results read: aligned tables, with a dash for what is not known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .ceilings import Ceilings

PARTS = ("product", "attention", "kv_reads", "weight_reads")
Column = tuple[str, Callable[[dict[str, Any]], str]]


def show(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def print_table(columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, num_left: int) -> None:
    """The first `num_left` columns are names and start at the left, the others end at the right."""
    cells = [[title for title, _ in columns], *([text(row) for _, text in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        pairs = enumerate(zip(line, widths, strict=True))
        print("  ".join(cell.ljust(width) if i < num_left else cell.rjust(width) for i, (cell, width) in pairs))


def print_results(results: Sequence[dict[str, Any]], peers: Sequence[str]) -> None:
    """One row an engine and workload; `× peer` is its output tokens a second over the peer's."""

    def ratio(peer: str) -> Column:
        return f"× {peer}", lambda row: show(row["ratio"].get(peer), ".2f")

    columns: list[Column] = [
        ("engine", lambda row: row["engine"]),
        ("workload", lambda row: row["workload"]),
        ("seconds", lambda row: show(row["seconds"], ".2f")),
        ("output tok/s", lambda row: show(row["output_tokens_per_s"], ",.0f")),
        ("in+out tok/s", lambda row: show(row["total_tokens_per_s"], ",.0f")),
        *map(ratio, peers),
        ("of sequential limit", lambda row: show(row["share_of_sequential_limit"], ".1%")),
        ("of overlap limit", lambda row: show(row["share_of_overlap_limit"], ".1%")),
        ("start to first token", lambda row: show(row["startup_s"], ".1f", " s")),
        ("peak GPU memory", lambda row: show(row["peak_gpu_gib"], ".1f", " GiB")),
    ]
    print_table(columns, results, num_left=2)


def print_steps(results: Sequence[dict[str, Any]]) -> None:
    """What only our engine tells of itself."""
    columns: list[Column] = [
        ("pressrun's steps", lambda row: row["workload"]),
        ("steps", lambda row: show(row["num_steps"], ",")),
        ("mean ms", lambda row: show(row["step_ms_mean"], ".2f")),
        ("p50 ms", lambda row: show(row["step_ms_p50"], ".2f")),
        ("max ms", lambda row: show(row["step_ms_max"], ".1f")),
        ("preemptions", lambda row: show(row["preemptions"], ",")),
        ("cached tokens", lambda row: show(row["cached_tokens"], ",")),
        ("KV cache tokens", lambda row: show(row["kv_cache_tokens"], ",")),
    ]
    print_table(columns, results, num_left=1)


def print_profile(workload: str, profile: dict[str, Any]) -> None:
    idle = show(profile["idle_share"], ".1%")
    print(f"{workload}: {profile['num_steps']} steps of the middle, GPU idle {idle} of their time")
    columns: list[Column] = [
        ("kernel", lambda row: row["name"] if len(row["name"]) <= 80 else row["name"][:79] + "…"),
        ("calls", lambda row: show(row["calls"], ",")),
        ("total ms", lambda row: show(row["total_ms"], ".2f")),
        ("share", lambda row: show(row["share"], ".1%")),
    ]
    print_table(columns, profile["kernels"], num_left=1)


def print_ceilings(ceilings: Ceilings) -> None:
    kind = "float32" if ceilings.device == "cpu" else "bfloat16"
    print(
        f"{ceilings.device_name}: copy {ceilings.copy_gbps:.0f} GB/s, large {kind} product "
        f"{ceilings.product_tflops:.4g} TFLOP/s, attention stated as {ceilings.attention_tflops:.4g} TFLOP/s, "
        f"{ceilings.memory_bytes / (1 << 30):.0f} GiB of memory",
        flush=True,
    )


def print_limits(limits: dict[str, dict[str, Any] | None]) -> None:
    for name, found in limits.items():
        if found is None:
            print(f"{name}: does not fit into this device's memory")
            continue
        once = found["shared_once"]
        shared = "" if once is None else f", {once:.3g} s sequential if what prompts share is read once a step"
        parts = ", ".join(f"{part.replace('_', ' ')} {found[part]:.3g} s" for part in PARTS)
        print(
            f"{name}: limits {found['sequential']:.3g} s sequential, {found['overlap']:.3g} s overlap{shared}; "
            f"{parts}; {found['num_running']:.0f} sequences at once"
        )


def rounded(value: Any) -> Any:
    """Five digits are more than any of this is good for, and keep the line short."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
