"""The upper level of bench/mixed.py: `pressrun up`, with batches as files and requests as streams over HTTP.

Times are those of the client, from opening a connection to the events with text.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pressrun.bench.asking import Asking
from pressrun.bench.serving import Service, running_service
from pressrun.bench.streaming import Streamed, stream
from pressrun.bench.whole import NAME, START_TIMEOUT_S, run_workload, served_folder, service_on
from pressrun.bench.workloads import Workload
from pressrun.jobs.settings import Settings

SETTLE_S = 2.0  # From uploading a batch until its lines run.


@contextlib.contextmanager
def service_level(model: str, root: Path, flags: dict[str, Any], *, has_stand_in: bool) -> Iterator[ServiceLevel]:
    """A service that is ready. Raises SystemExit for a flag that it has no setting for."""
    unknown = sorted(flags.keys() - Settings.model_fields.keys())
    if unknown:
        raise SystemExit(f"the service has no setting for {', '.join(unknown)}")
    folder = served_folder(model, root)
    words, settings = service_on(folder, root, flags)
    worker = [sys.executable, str(Path(__file__).with_name("mixed_worker.py")), str(folder)] if has_stand_in else None
    with running_service(START_TIMEOUT_S, worker=worker, **settings) as service:
        yield ServiceLevel(service, words, root)


class ServiceLevel:
    """A `Level`. A token is a word that is one token wherever it stands."""

    def __init__(self, service: Service, words: list[str], root: Path) -> None:
        self._service, self._words, self._root = service, words, root
        self.vocab_size = len(words)

    def run(self, batch: Workload | None, asking: Asking | None, seconds: float = 0.0) -> float:
        return asyncio.run(self._run(batch, asking, seconds))

    async def _run(self, batch: Workload | None, asking: Asking | None, seconds: float) -> float:
        work = asyncio.create_task(_over_after(seconds) if batch is None else asyncio.to_thread(self._batch_s, batch))
        if asking is not None:
            await asyncio.sleep(0.0 if batch is None else SETTLE_S)
            for one in await self._ask(asking, work.done):
                asking.waits.append(one.first_s)
                http = one.first_s * 1000 - sum(one.phases.values())
                asking.phases.append({"http": http, **one.phases})
                asking.gaps += one.gaps
        return await work

    def _batch_s(self, batch: Workload) -> float:
        return run_workload(self._service, batch, self._words, self._root)[0].batch_s

    async def _ask(self, asking: Asking, over: Callable[[], bool]) -> list[Streamed]:
        """Ask until it is over, whatever becomes of those before, and read all to their ends."""
        url = self._service.client.base_url
        asked = []
        while not over():
            body = self._body(asking)
            asked.append(asyncio.create_task(stream(url.host, int(url.port or 80), body)))
            await asyncio.sleep(asking.pause())
        streams = await asyncio.gather(*asked)
        broken = [one.error or "it had no text" for one in streams if one.error is not None or not one.times]
        if broken:
            raise SystemExit(f"{len(broken)} requests failed, such as: {broken[0]}")
        return streams

    def _body(self, asking: Asking) -> dict[str, Any]:
        text = "".join(self._words[token] for token in asking.prompt())
        limit = {"max_tokens": asking.num_output, "ignore_eos": True, "temperature": 0}
        return {"model": NAME, "prompt": text} | limit


async def _over_after(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
