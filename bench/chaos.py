"""Chaos: the whole service while processes are killed and stopped, networks cut, memory and disk filled up.

Submits a large batch, one that is cancelled, one that expires and many small ones through the `openai` SDK, commits
faults of all kinds at random instants meanwhile, and counts every line of every batch at the end: output and error
file together hold it once, in input order, under its custom_id, and the counters say the same. Prints tables, then
one JSON line; exits with 1 if a line was lost or repeated, or nothing moved for longer than a lease.

usage: python bench/chaos.py [--faults 200 --lines 10000 --blobs s3|disk --seed 0 --lease 5 --logs FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pressrun.bench.chaos_batches import Submitted, Verdict, insist, judge, submit, wait
from pressrun.bench.chaos_faults import Faults, Struck
from pressrun.bench.chaos_service import Service, keep_logs, running
from pressrun.bench.chaos_watch import Watch

SMALL_LINES = 40
SMALL_EVERY = 5  # faults
END_S = 300.0
CLEAN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened: faults, seconds from each kind of them to the next finished line, and every batch's verdict."""

    faults: list[Struck]
    recovered_s: dict[str, list[float]]
    slow: list[str]
    dead_hands_s: float
    verdicts: list[Verdict]
    left: list[str]
    wall_s: float

    @property
    def worst_recovery_s(self) -> float:
        return max((max(times) for times in self.recovered_s.values()), default=0.0)

    def wrong(self, patience_s: float) -> list[str]:
        found = [f"{verdict.batch.name}: {said}" for verdict in self.verdicts for said in verdict.wrong]
        found += [f"left behind: {name}" for name in self.left]
        if self.worst_recovery_s > patience_s:
            found.append(f"nothing was finished for {self.worst_recovery_s:.1f} s, longer than {patience_s:g} s")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {
            "lease_s": args.lease,
            "num_workers": args.workers,
            "s3": args.blobs == "s3",
            "small_disk": args.small_disk,
        }
        pace = args.step, args.lines_a_step
        try:
            with running(folder, pace=pace, **options) as service:
                report = run(service, args)
        finally:
            if args.logs is not None:
                keep_logs(folder, args.logs)
    print_tables(report, args.lease)
    wrong = report.wrong(args.patience or args.lease)
    print(
        json.dumps(
            {
                "bench": "chaos",
                "blobs": args.blobs,
                "seed": args.seed,
                "faults": len(report.faults),
                "batches": len(report.verdicts),
                "lines": sum(verdict.batch.num_lines for verdict in report.verdicts),
                "load_average": [round(load, 1) for load in os.getloadavg()],
                "wall_s": round(report.wall_s, 1),
                "recovery_worst_of_lease": round(report.worst_recovery_s / args.lease, 2),
                "wrong": wrong,
            }
        )
    )
    return 1 if wrong else 0


def run(service: Service, args: argparse.Namespace) -> Report:
    """Submit, disturb, wait, count."""
    chance = random.Random(args.seed)
    faults, started = Faults(service, chance, args.lease), time.monotonic()
    watch = Watch(service.redis, service.s3_port)
    try:
        batches = [submit(service.client, "large", args.lines)]
        batches.append(submit(service.client, "stopped", args.lines // 2, ends_as="cancelled"))
        if args.expiring:
            batches.append(submit(service.client, "late", args.lines // 2, window="1m", ends_as="expired"))
        struck: list[Struck] = []
        cancel_at = args.faults // 6
        while len(struck) < args.faults:
            time.sleep(chance.expovariate(1 / args.gap))
            struck += filter(None, [faults.strike()])
            if len(struck) == cancel_at:
                insist(lambda: service.client.batches.cancel(batches[1].id))
                cancel_at = -1
            if len(struck) // SMALL_EVERY > len([one for one in batches if one.name.startswith("small")]):
                batches.append(submit(service.client, f"small{len(batches)}", SMALL_LINES))
        ended = [(batch, wait(service.client, batch, END_S)) for batch in batches]
    finally:
        watch.close()
    verdicts = [judge(service.client, *one) for one in ended]
    return Report(
        faults=struck,
        recovered_s=recoveries(struck, watch),
        slow=slow_recoveries(struck, watch, started, args.lease / 2),
        dead_hands_s=watch.longest_in_dead_hands_s,
        verdicts=verdicts,
        left=leftovers(service, batches),
        wall_s=time.monotonic() - started,
    )


def recoveries(struck: list[Struck], watch: Watch) -> dict[str, list[float]]:
    """By kind, the seconds from a fault's end to the next finished line; of faults in between, the last counts.

    Those in which nothing could be finished do not count: where nothing was left to finish, as small batches come while
    the faults do, and while Valkey or S3 started again.
    """
    found: dict[str, list[float]] = {}
    for fault in struck:
        finished_at = watch.first_finished_after(fault.healed_at)
        if finished_at is not None:
            last = max(other.healed_at for other in struck if other.healed_at <= finished_at)
            found.setdefault(fault.kind, []).append(watch.waited_s(last, finished_at))
    return found


def slow_recoveries(struck: list[Struck], watch: Watch, started: float, limit_s: float) -> list[str]:
    """What had gone wrong before nothing was finished for so long, and when."""
    said = []
    for place, fault in enumerate(struck):
        finished_at = watch.first_finished_after(fault.healed_at)
        is_last = place + 1 == len(struck) or struck[place + 1].healed_at > (finished_at or 0.0)
        if finished_at is not None and is_last and watch.waited_s(fault.healed_at, finished_at) > limit_s:
            before = ", ".join(
                f"{one.kind} {fault.healed_at - one.healed_at:.1f} s before" for one in struck[place - 3 : place]
            )
            seconds, at = watch.waited_s(fault.healed_at, finished_at), fault.healed_at - started
            said.append(f"nothing finished for {seconds:.1f} s at {at:.0f} s, after: {fault.kind} ({before})")
    return said


def leftovers(service: Service, batches: list[Submitted]) -> list[str]:
    """Keys of ended batches that should have been cleaned up by now."""
    deadline = time.monotonic() + CLEAN_S
    while True:
        found = [key.decode() for batch in batches for key in service.redis.scan_iter(f"pressrun:{{{batch.id}}}:*")]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def print_tables(report: Report, lease_s: float) -> None:
    print(f"{'fault':<42} {'times':>5} {'recovery: median s':>19} {'worst s':>8} {'worst/lease':>12}")
    for kind, seconds in sorted(report.recovered_s.items()):
        median, worst = statistics.median(seconds), max(seconds)
        print(f"{kind:<42} {len(seconds):>5} {median:>19.2f} {worst:>8.2f} {worst / lease_s:>12.2f}")
    for said in report.slow:
        print(said)
    print(f"{len(report.faults)} faults in {report.wall_s:.0f} s; a lease is {lease_s:g} s; ", end="")
    print(f"no shard was in dead hands for longer than {report.dead_hands_s:.1f} s")
    print(f"\n{'batch':<12} {'lines':>6} {'ended as':>10} {'completed':>10} {'failed':>7} {'unrun':>6}  wrong")
    small = [verdict for verdict in report.verdicts if verdict.batch.name.startswith("small") and not verdict.wrong]
    for verdict in (verdict for verdict in report.verdicts if verdict not in small):
        said = "; ".join(verdict.wrong) or "nothing"
        print(
            f"{verdict.batch.name:<12} {verdict.batch.num_lines:>6} {verdict.status:>10} {verdict.completed:>10} "
            f"{verdict.failed:>7} {verdict.unrun:>6}  {said}"
        )
    print(f"and {len(small)} of {SMALL_LINES} lines each, submitted while things went wrong: nothing wrong with them")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--lines", type=int, default=10_000, help="of the large batch")
    parser.add_argument("--blobs", choices=("s3", "disk"), default="s3")
    parser.add_argument("--seed", type=int, default=0, help="of the faults, their kinds and instants")
    parser.add_argument("--lease", type=float, default=5.0, help="seconds")
    parser.add_argument("--patience", type=float, help="seconds until something must be finished again; else a lease")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gap", type=float, default=1.5, help="seconds between two faults, on average")
    parser.add_argument("--step", type=float, default=0.25, help="seconds of a step of the stand-in engine")
    parser.add_argument("--lines-a-step", type=int, default=6)
    parser.add_argument("--expiring", action=argparse.BooleanOptionalAction, default=True, help="takes a minute")
    parser.add_argument("--small-disk", action="store_true", help="mount one for Valkey, to fill it up (needs root)")
    parser.add_argument("--logs", type=Path, default=None, help="where to keep the logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
