"""The scheduling policy on a simulated cluster of a thousand tenants: shares, small batches, deadlines, and its cost.

The clock and the workers are simulated; whose shard is next is decided by the code that the service runs
(`jobs/policy.py`). Workers take shards of some thousand tokens and do them at one rate. Prints a table, then one JSON
line.

usage: python bench/fairness.py [--tenants 1000 --batches 10000 --seed 0]
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pressrun.jobs.deadlines import Due, feasible
from pressrun.jobs.policy import Candidate, Flow, Ledgers, Turns, raised_floors

SHARD_TOKENS = 20_000.0
RATE = 200_000.0  # Tokens a second of all workers together.
NUM_WORKERS = 32
IN_RQ = 2 * NUM_WORKERS
FAR = 10**9


@dataclass(slots=True)
class Job:
    """A batch on its way through the simulation."""

    candidate: Candidate
    comes_at: float
    left: int
    unfinished: int
    fed: float = 0.0
    ended_at: float | None = None


@dataclass(slots=True)
class Cluster:
    """Workers that take shards in the order in which they were fed, each `SHARD_TOKENS` at its part of `RATE`."""

    jobs: dict[str, Job]
    weights: dict[str, float]
    now: float = 0.0
    queue: list[str] = field(default_factory=list)
    running: list[tuple[float, str]] = field(default_factory=list)
    times: dict[Flow, float] = field(default_factory=dict)
    floors: dict[int, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    decision_s: list[float] = field(default_factory=list)

    def run(self, until: float) -> None:
        """Run to a time, or until nothing is left."""
        while self.now < until:
            self._feed()
            while self.queue and len(self.running) < NUM_WORKERS:
                batch_id = self.queue.pop(0)
                tokens = self.jobs[batch_id].candidate.shard_tokens
                heapq.heappush(self.running, (self.now + tokens * NUM_WORKERS / RATE, batch_id))
            upcoming = [job.comes_at for job in self.jobs.values() if job.comes_at > self.now]
            if not self.running:
                if not upcoming:
                    return
                self.now = min(upcoming)
                continue
            self.now, batch_id = heapq.heappop(self.running)
            self._finish(self.jobs[batch_id])

    def _finish(self, job: Job) -> None:
        job.unfinished -= 1
        self.done[job.candidate.tenant] += job.candidate.shard_tokens
        if not job.unfinished:
            job.ended_at = self.now

    def _feed(self) -> None:
        """As the service does: the line, its turns, and the bill."""
        room = IN_RQ - len(self.queue)
        if room < IN_RQ // 2:
            return
        line = [
            replace(job.candidate, num_shards=job.left, had=job.fed or None)
            for job in self.jobs.values()
            if job.left and job.comes_at <= self.now
        ]
        started = time.process_time()
        ledgers = Ledgers(times=self.times, floors=self.floors, weights=self.weights)
        self.floors |= raised_floors(line, ledgers)
        taken = Turns(line, ledgers, rate=RATE, now=self.now).take(room)
        self.decision_s.append(time.process_time() - started)
        for batch_id in taken:
            job = self.jobs[batch_id]
            tokens, flow = job.candidate.shard_tokens, job.candidate.flow
            self.times[flow] = ledgers.start(flow) + tokens / ledgers.weight(flow[1])
            ledgers = Ledgers(times=self.times, floors=self.floors, weights=self.weights)
            job.left -= 1
            job.fed += tokens
        self.queue += taken


def job(name: str, tenant: str, num_shards: int, *, comes_at: float = 0.0, expires_at: float = FAR) -> Job:
    candidate = Candidate(
        id=name,
        tenant=tenant,
        priority=0,
        created_at=int(comes_at),
        expires_at=int(expires_at),
        num_shards=num_shards,
        shard_tokens=SHARD_TOKENS,
    )
    return Job(candidate=candidate, comes_at=comes_at, left=num_shards, unfinished=num_shards)


def cluster_of(jobs: Iterable[Job], weights: dict[str, float] | None = None) -> Cluster:
    return Cluster(jobs={job.candidate.id: job for job in jobs}, weights=weights or {})


def share_error(num_tenants: int, num_batches: int, chance: random.Random) -> tuple[float, float, Cluster]:
    """Mean and worst error of tenants' shares, where each always has work, in some batches, and a weight of 1 to 8."""
    names = [f"tenant-{number:04}" for number in range(num_tenants)]
    weights = {name: float(chance.choice([1, 1, 1, 2, 4, 8])) for name in names}
    owners = names + chance.choices(names, k=max(0, num_batches - num_tenants))
    cluster = cluster_of((job(f"b{place}", owner, 10_000) for place, owner in enumerate(owners)), weights)
    turns_each = 5  # Of the lightest tenant.
    cluster.run(until=turns_each * sum(weights.values()) * SHARD_TOKENS / RATE)
    total, weight = sum(cluster.done.values()), sum(weights.values())
    errors = [abs(cluster.done[name] / (total * weights[name] / weight) - 1) for name in names]
    return statistics.mean(errors), max(errors), cluster


def small_beside_huge(chance: random.Random) -> tuple[float, float]:
    """Small batches of other tenants come beside a huge one: their median and worst time to the end."""
    small = [job(f"s{n}", f"t{n}", 2, comes_at=chance.uniform(0, 600)) for n in range(200)]
    cluster = cluster_of([job("huge", "h", 10_000), *small])
    cluster.run(until=700)
    waits = [one.ended_at - one.comes_at if one.ended_at else float("inf") for one in small]
    return statistics.median(waits), max(waits)


def missed_deadlines(load: float, chance: random.Random) -> tuple[int, int, int]:
    """Batches with windows, beside one without: how many were missed, the least that must be, how many there are.

    The bound is the most that can be met by anyone who knows all batches from the start (all come at once).
    """
    jobs = [job("huge", "h", 20_000)]
    span = 1200.0
    tokens = 0.0
    while tokens < load * span * RATE:
        shards = chance.choice([5, 20, 60, 200])
        window = chance.uniform(0.2, 1.0) * span
        jobs.append(job(f"d{len(jobs)}", f"t{chance.randrange(50)}", shards, expires_at=window))
        tokens += shards * SHARD_TOKENS
    bound = feasible(
        (Due(id=one.candidate.id, tokens=one.candidate.tokens, at=one.candidate.expires_at) for one in jobs[1:]),
        rate=RATE,
        start=0.0,
    )
    cluster = cluster_of(jobs)
    cluster.run(until=span)
    missed = sum(one.ended_at is None or one.ended_at > one.candidate.expires_at for one in jobs[1:])
    return missed, len(jobs) - 1 - len(bound), len(jobs) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    mean, worst, cluster = share_error(args.tenants, args.batches, chance)
    decision_ms = 1000 * statistics.median(cluster.decision_s)
    small, slowest = small_beside_huge(chance)
    alone = 2 * SHARD_TOKENS * NUM_WORKERS / RATE / 2
    deadlines = {load: missed_deadlines(load, chance) for load in (0.5, 0.9, 1.2)}
    print(
        f"{args.tenants} tenants, {args.batches} batches, weights 1 to 8: share off by {mean:.2%}, at worst {worst:.2%}"
    )
    print(f"a decision about {IN_RQ // 2} shards among all of them: {decision_ms:.1f} ms of CPU")
    print(f"a batch of 2 shards beside one of 10,000: {small:.1f} s, at worst {slowest:.1f} s; alone {alone:.1f} s")
    for load, (missed, least, number) in deadlines.items():
        print(f"deadlines at {load:.0%} load: {missed} of {number} missed; {least} must be")
    print(
        json.dumps(
            {
                "bench": "fairness",
                "share_error_mean": round(mean, 4),
                "share_error_worst": round(worst, 4),
                "decision_ms": round(decision_ms, 2),
                "small_batch_s": round(small, 2),
                "small_batch_worst_s": round(slowest, 2),
                "deadlines": {f"{load}": found for load, found in deadlines.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
