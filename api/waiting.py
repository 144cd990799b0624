"""Waiting, for results and for the disk, without a thread for each who waits: one question to Redis on behalf of all.

Threads are few, and every other route needs them; so whoever waits is a coroutine, and one thread at a time asks for
all of them. Used from the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from ..jobs.backend import Backend
from ..jobs.results import Place, ResultPage, arrived, read_results

T = TypeVar("T")
LOOK_S = 0.2
NUM_THREADS = 8


class Waiting:
    """Reads pages of results, and waits for them, in a few threads of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._threads = CapacityLimiter(NUM_THREADS)
        self._waiters: dict[asyncio.Future[None], Place] = {}
        self._looking: asyncio.Task[None] | None = None
        self._syncing: asyncio.Lock = asyncio.Lock()
        self._next_sync: asyncio.Task[str] | None = None

    async def page(self, batch_id: str, after: int, limit: int, tenant: str) -> ResultPage:
        """Results that no crash of Redis can take back."""
        while True:
            page = await self._in_thread(lambda: read_results(self._backend, batch_id, after, limit, tenant))
            # A Redis that has started again since may have forgotten what was read.
            if page.settled or await self._synced() == page.server_run:
                return page

    async def wait(self, missing: Place, timeout_s: float) -> bool:
        """Whether there is something new within the time. Raises what Redis does."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = missing
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiters.pop(waiter, None)
        return True

    async def durable(self) -> None:
        """Wait until Redis has on disk all that was written so far. Raises what Redis does, or StoreUnavailable."""
        await self._synced()

    async def close(self) -> None:
        """Let nothing go on."""
        for task in (self._looking, self._next_sync):
            if task is not None:
                task.cancel()

    async def _look(self) -> None:
        """Ask for all who wait, until nobody does."""
        try:
            while self._waiters:
                await asyncio.sleep(LOOK_S)
                asked = list(self._waiters.items())
                places = [place for _, place in asked]
                try:
                    found = await self._in_thread(lambda places=places: arrived(self._backend.shards, places))  # type: ignore[misc]
                except Exception as error:
                    # It is theirs who wait: each hears of it, and answers or ends its stream.
                    _settle(asked, lambda waiter, error=error: waiter.set_exception(error))  # type: ignore[misc]
                    continue
                _settle(
                    [one for one, new in zip(asked, found, strict=True) if new], lambda waiter: waiter.set_result(None)
                )
        finally:
            self._looking = None

    async def _synced(self) -> str:
        """Wait until Redis has on disk all that was read or written so far; the run of the server that has.

        One wait serves all who came before it began.
        """
        if self._next_sync is None:
            self._next_sync = asyncio.create_task(self._sync())
            # Whoever waited for it may be gone by the time that it fails.
            self._next_sync.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._next_sync)

    async def _sync(self) -> str:
        async with self._syncing:
            self._next_sync = None
            return await self._in_thread(self._make_durable)

    def _make_durable(self) -> str:
        self._backend.store.make_durable()
        return self._backend.store.server_run()

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await to_thread.run_sync(action, limiter=self._threads)


def _settle(asked: list[tuple[asyncio.Future[None], Any]], settle: Callable[[asyncio.Future[None]], None]) -> None:
    for waiter, _ in asked:
        if not waiter.done():
            settle(waiter)
