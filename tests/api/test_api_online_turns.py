"""Two tenants ask one busy worker online: who asks for much does not keep the other waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from redis import Redis

from .online import MODEL, online

NUM_GREEDY = 60


def test_a_tenant_that_asks_for_much_does_not_keep_another_waiting(
    redis: Redis, redis_server: str, tmp_path: Path
) -> None:
    with online(redis, redis_server, tmp_path) as running:
        running.farm.work(step_s=0.1, max_num_seqs=1, num_rows=1)  # One request a step.
        greedy, modest = (running.farm.backend.keys.create(tenant=name)[0] for name in ("greedy", "modest"))
        num_answered = 0

        async def ask(http: httpx.AsyncClient, key: str) -> None:
            nonlocal num_answered
            headers, body = {"Authorization": f"Bearer {key}"}, {"model": MODEL, "prompt": "hello", "max_tokens": 4}
            answer = await http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            num_answered += key == greedy

        async def both() -> int:
            """How many of the one's requests were answered before the one of the other."""
            async with httpx.AsyncClient(base_url=running.api.url, timeout=30) as http:
                many = [asyncio.create_task(ask(http, greedy)) for _ in range(NUM_GREEDY)]
                for _ in range(1000):
                    if running.redis.zcard(f"pressrun:live:{{{MODEL}}}:waiting") > NUM_GREEDY // 3:
                        break
                    await asyncio.sleep(0.01)
                before = num_answered
                await ask(http, modest)
                during = num_answered - before
                await asyncio.gather(*many)
            return during

        assert asyncio.run(both()) < NUM_GREEDY // 6


def test_a_line_that_one_tenant_fills_has_room_for_another(redis: Redis, redis_server: str, tmp_path: Path) -> None:
    with online(redis, redis_server, tmp_path, max_waiting_requests=2) as running:
        worker = running.farm.work(step_s=30, max_num_seqs=1, num_rows=1)  # It has two requests in hand.
        greedy, modest = (running.farm.backend.keys.create(tenant=name)[0] for name in ("greedy", "modest"))

        async def ask(http: httpx.AsyncClient, key: str) -> int:
            headers, body = {"Authorization": f"Bearer {key}"}, {"model": MODEL, "prompt": "hello", "max_tokens": 4}
            return (await http.post("/v1/completions", json=body, headers=headers)).status_code

        async def both() -> None:
            async with httpx.AsyncClient(base_url=running.api.url, timeout=30) as http:
                many = [asyncio.create_task(ask(http, greedy)) for _ in range(20)]
                done, waiting = await asyncio.wait(many, timeout=2)
                assert {task.result() for task in done} == {429}
                assert len(done) >= 14
                one = asyncio.create_task(ask(http, modest))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(one), 1)
                for task in (*waiting, one):
                    task.cancel()
                await asyncio.gather(*waiting, one, return_exceptions=True)

        asyncio.run(both())
        worker.end()
