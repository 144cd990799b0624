"""Who gets how much of real workers: by weight, and small batches beside huge ones."""

from __future__ import annotations

import json
from typing import Any

from pressrun.jobs.records import ENDED, Batch
from pressrun.jobs.submit import create_batch, create_file

CHAT = "/v1/chat/completions"


def batch_of(farm: Any, tenant: str, num_lines: int) -> Batch:
    raw = "\n".join(map(json.dumps, farm.many(num_lines))).encode()
    file = create_file(farm.backend, filename="in.jsonl", purpose="batch", chunks=[raw], tenant=tenant)
    return create_batch(farm.backend, input_file_id=file.id, endpoint=CHAT, completion_window="24h", tenant=tenant)


def test_two_workers_share_their_work_by_weight_and_a_small_batch_waits_for_no_huge_one(farm: Any) -> None:
    farm.backend.store.tenants.set("heavy", weight=3.0)
    heavy, light = batch_of(farm, "heavy", 3000), batch_of(farm, "light", 3000)
    for _ in range(2):  # Of some 50 lines a second each.
        farm.work(step_s=0.02, max_num_seqs=8)
    farm.until(lambda: farm.num_done(light) >= 128, timeout_s=60)
    # What is in hand, and a shard of 16 lines at a time, set the two apart besides.
    assert 2 <= farm.num_done(heavy) / farm.num_done(light) <= 4.5
    small = batch_of(farm, "newcomer", 32)
    farm.until(lambda: farm.backend.store.batch(small.id).status in ENDED)
    assert farm.backend.store.batch(small.id).counts.completed == 32
    assert farm.num_done(heavy) + farm.num_done(light) < 2000
