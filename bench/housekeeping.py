"""What a tick of the housekeeper costs beside many batches of many tenants, on a Valkey of its own.

Batches are written as if they had been validated; four shards are taken from RQ between two ticks, as workers would.
Prints one line and its numbers as JSON.

usage: python bench/housekeeping.py [--batches 10000 --tenants 1000 --seconds 25]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from redis import Redis

from pressrun.jobs.backend import Backend, backend_on
from pressrun.jobs.embedded import EmbeddedValkey
from pressrun.jobs.garbage import settle
from pressrun.jobs.queue import queue_of, rq_queue
from pressrun.jobs.records import Batch, ModelCard, Shard
from pressrun.jobs.settings import load_settings
from pressrun.workers.housekeeping import TICK_S, Housekeeper

SHARDS, SHARD_LINES, TAKEN = 10, 64, 4
CARD = ModelCard(id="m", max_model_len=9, created=1, worker="w", tokens_per_s=1e4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=25.0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedValkey(Path(name)) as valkey,
        Redis.from_url(valkey.url) as redis,
    ):
        backend = backend_on(load_settings({}, data_dir=Path(name)), redis)
        redis.config_set("appendonly", "no")  # Nothing here has to outlive the measurement.
        for number in range(args.batches):
            add_batch(backend, number, f"tenant-{number % args.tenants}")
        costs = sorted(ticks(backend, args.seconds))
    median, worst = 1000 * statistics.median(costs), 1000 * costs[-1]
    mean = 1000 * statistics.mean(costs)
    print(f"{args.batches} batches: a tick takes {mean:.1f} ms of CPU, median {median:.1f}, at most {worst:.1f}")
    print(
        json.dumps(
            {
                "bench": "housekeeping",
                "batches": args.batches,
                "tick_cpu_ms_mean": round(mean, 2),
                "tick_cpu_ms_median": round(median, 2),
                "tick_cpu_ms_worst": round(worst, 2),
            }
        )
    )


def add_batch(backend: Backend, number: int, tenant: str) -> None:
    """A batch that waits with all its shards."""
    now = int(time.time())
    batch = Batch(
        id=f"batch_{number:06}",
        kind="batch",
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
        created_at=now,
        expires_at=now + 86400,
        tenant=tenant,
    )
    backend.store.create_batch(batch)
    shards = [
        Shard(index=i, first_line=i * SHARD_LINES, num_lines=SHARD_LINES, offset=0, size=1) for i in range(SHARDS)
    ]
    backend.shards.begin(batch.id, shards, model="m", total=SHARDS * SHARD_LINES, estimated_tokens=100_000)


def ticks(backend: Backend, seconds: float) -> list[float]:
    """Seconds of CPU of each tick of this process, once every batch has been looked at."""
    housekeeper, costs = Housekeeper(backend), list[float]()
    queue = rq_queue(backend.redis, queue_of("batch", "m"))
    settle()  # As a worker's process does.
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        backend.store.touch_model(CARD)  # Nothing is fed to a model that nobody has served for half a minute.
        started = time.process_time()
        housekeeper.tick()
        costs.append(time.process_time() - started)
        backend.redis.lpop(queue.key, TAKEN)
        time.sleep(TICK_S)
    return costs[len(costs) // 2 :]


if __name__ == "__main__":
    main()
