"""One tour through every route that OpenAI has, by its SDK: the synchronous client and the asynchronous one."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, ConflictError, NotFoundError, OpenAI

from pressrun.api.app import create_app
from pressrun.jobs.beginning import validate_batch
from pressrun.jobs.lines import answered
from pressrun.jobs.records import Usage
from pressrun.jobs.settings import load_settings

from ..receiver import Receiver, receiving
from ..workers.conftest import Worker
from .conftest import CHAT, MODEL, Api, ServeApi, jsonl, request_line, seal_results

LINES = jsonl(*(request_line(f"c{n}") for n in range(3)))
OWN = re.compile(
    r"/v1/jobs|/health|/metrics|/tokenize|/detokenize|.*/(deliveries|pause|resume|update|retry|results)$"
)  # What OpenAI does not have, its SDK cannot call.
PATHS = create_app(load_settings({}, redis_url="redis://127.0.0.1:1/0")).openapi()["paths"]
ROUTES = {(method.upper(), path) for path, methods in PATHS.items() if not OWN.match(path) for method in methods}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def routes_of(requests: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The routes that were called: of those that match a path, the one with the fewest names in it."""
    called = set()
    for method, path in requests:
        found = [
            route
            for verb, route in ROUTES
            if verb == method
            and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+" if "model" not in route else ".+", route), path)
        ]
        called.add((method, min(found, key=lambda route: route.count("{"))))
    return called


async def answer(value: Any) -> Any:
    """What a call of either client comes to."""
    return await value if inspect.isawaitable(value) else value


async def all_of(pages: Any) -> list[Any]:
    """Everything in a list, page by page."""
    page, items = await answer(pages), []
    while True:
        items += page.data
        if not page.has_next_page():
            return items
        page = await answer(page.get_next_page())


async def tour(sdk: Any, api: Api, receiver: Receiver) -> None:
    assert [one.id for one in await all_of(sdk.models.list())] == [MODEL]
    assert (await answer(sdk.models.retrieve(MODEL))).id == MODEL
    hook = await webhooks(sdk, receiver)
    await batches(sdk, api, await files(sdk))
    await uploads(sdk)
    assert (await answer(sdk.webhooks.delete(hook))).deleted is True


async def files(sdk: Any) -> str:
    ids = []
    for n in range(5):
        made = await answer(sdk.files.create(file=(f"{n}.jsonl", LINES), purpose="batch"))
        ids.append(made.id)
    assert [one.id for one in await all_of(sdk.files.list(limit=2))] == ids[::-1]
    assert [one.id for one in await all_of(sdk.files.list(limit=2, order="asc", purpose="batch"))] == ids
    assert (await answer(sdk.files.retrieve(ids[0]))).filename == "0.jsonl"
    assert (await answer(sdk.files.content(ids[0]))).content == LINES
    for file_id in ids[1:]:
        assert (await answer(sdk.files.delete(file_id))).deleted is True
    with pytest.raises(NotFoundError):
        await answer(sdk.files.retrieve(ids[1]))
    return ids[0]


async def batches(sdk: Any, api: Api, file_id: str) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    good = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "output_expires_after": expiry}
    made = [(await answer(sdk.batches.create(**good, metadata={"n": str(n)}))).id for n in range(3)]
    assert [one.id for one in await all_of(sdk.batches.list(limit=2))] == made[::-1]
    assert (await answer(sdk.batches.cancel(made[1]))).status == "cancelling"
    validate_batch(api.backend, made[0])
    seal_results(api.backend, made[0], lambda line: answered(line, {"n": line.index}, Usage()))
    done = await answer(sdk.batches.retrieve(made[0]))
    assert (done.status, done.metadata, done.request_counts.completed) == ("completed", {"n": "0"}, 3)
    assert (await answer(sdk.files.content(done.output_file_id))).text.count("\n") == 3
    with pytest.raises(ConflictError):
        await answer(sdk.batches.cancel(made[0]))


async def uploads(sdk: Any) -> None:
    good = {"filename": "in.jsonl", "purpose": "batch", "bytes": len(LINES), "mime_type": "application/jsonl"}
    upload = await answer(sdk.uploads.create(**good))
    parts = [await answer(sdk.uploads.parts.create(upload.id, data=cut)) for cut in (LINES[:100], LINES[100:])]
    done = await answer(sdk.uploads.complete(upload.id, part_ids=[part.id for part in parts]))
    assert (await answer(sdk.files.content(done.file.id))).content == LINES
    other = await answer(sdk.uploads.create(**good))
    assert (await answer(sdk.uploads.cancel(other.id))).status == "cancelled"


async def webhooks(sdk: Any, receiver: Receiver) -> str:
    types = (await answer(sdk.webhooks.event_types.list())).data
    made = await answer(sdk.webhooks.create(name="n", url=receiver.url, event_types=types))
    assert [one.id for one in await all_of(sdk.webhooks.list())] == [made.id]
    assert (await answer(sdk.webhooks.update(made.id, name="m"))).name == "m"
    assert (await answer(sdk.webhooks.retrieve(made.id))).name == "m"
    secret = (await answer(sdk.webhooks.rotate_secret(made.id))).signing_secret
    assert (await answer(sdk.webhooks.test(made.id, event_type=types[0]))).status_code == 200
    got = receiver.got[-1]
    assert sdk.webhooks.unwrap(got.body, got.headers, secret=secret).type == types[0]
    return str(made.id)


async def answers(sdk: Any) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 4}
    chat = await answer(sdk.chat.completions.create(**asked, messages=[{"role": "user", "content": "hi"}]))
    assert chat.choices[0].message.content == "user"
    assert (await answer(sdk.completions.create(**asked, prompt="hello"))).choices[0].text == "hell"
    assert (await answer(sdk.responses.create(model=MODEL, input="hi"))).output_text == "user: hi"
    assert (await answer(sdk.embeddings.create(model=asked["model"], input="hello"))).usage.prompt_tokens == 5


@contextmanager
def working(api: Api, log: Path) -> Iterator[None]:
    """A worker that serves `MODEL`. It begins to work on batches too."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PRESSRUN_")}
    worker = Worker(clean | api.backend.settings.environment(), log)
    try:
        while not api.backend.redis.zcard(f"pressrun:live:{{{MODEL}}}:taking"):
            assert worker.process.poll() is None, log.read_text()
            time.sleep(0.01)
        yield
    finally:
        worker.end()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_sdk_drives_every_route_that_openai_has(
    serve: ServeApi, receiver: Receiver, tmp_path: Path, kind: str
) -> None:
    api = serve(webhook_allow_private=True, engine="echo", served_model_name=MODEL)
    requests: list[tuple[str, str]] = []

    def note(request: httpx2.Request) -> None:
        requests.append((request.method, request.url.path))

    async def note_later(request: httpx2.Request) -> None:
        note(request)

    common: Any = {"base_url": f"{api.url}/v1", "api_key": "none", "max_retries": 0}

    async def run() -> None:
        if kind == "sync":
            with OpenAI(**common, http_client=httpx2.Client(event_hooks={"request": [note]})) as sdk:
                await tour(sdk, api, receiver)
                with working(api, tmp_path / "worker.log"):
                    await answers(sdk)
        else:
            http = httpx2.AsyncClient(event_hooks={"request": [note_later]})
            async with AsyncOpenAI(**common, http_client=http) as sdk:
                await tour(sdk, api, receiver)
                with working(api, tmp_path / "worker.log"):
                    await answers(sdk)

    asyncio.run(run())
    assert routes_of(requests) == ROUTES
