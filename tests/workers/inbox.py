"""Lines for a flight, and an engine that only remembers what it was given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from pressrun.engine.request import ModelInfo, Output, Request
from pressrun.jobs.records import Batch, Claim, Line, Shard
from pressrun.workers.echo_engine import ByteTokenizer
from pressrun.workers.prompts import Prepared, Prompts
from pressrun.workers.shard import RunningShard


class Inbox:
    """An engine that only remembers what it was given."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    def add(self, requests: Sequence[Request]) -> None:
        assert not self.requests.keys() & {request.id for request in requests}
        self.requests |= {request.id: request for request in requests}

    def abort(self, ids: Iterable[str]) -> None:
        for gone in ids:
            del self.requests[gone]

    def answer_all(self) -> list[Output]:
        outputs = [Output(id=name, token_ids=[1], finish_reason="stop") for name in self.requests]
        self.requests.clear()
        return outputs

    def prompts(self) -> list[str]:
        return [bytes(request.prompt).decode().removeprefix("user: ") for request in self.requests.values()]


def shard(index: int = 0, *, interactive: bool = False, batch_id: str = "batch_x") -> RunningShard:
    now = int(datetime.now(UTC).timestamp())
    batch = Batch(
        id=batch_id,
        kind="batch",
        endpoint="/v1/chat/completions",
        input_file_id="f",
        completion_window="24h",
        created_at=now,
        expires_at=now + 60,
    )
    claim = Claim(
        batch=batch,
        shard=Shard(index=index, first_line=0, num_lines=8, offset=0, size=1),
        owner="o",
        done=frozenset(),
    )
    return RunningShard(claim=claim, ticket=cast(Any, SimpleNamespace(interactive=interactive)), num_left=8)


PROMPTS = Prompts(ByteTokenizer(), ModelInfo(max_model_len=1000, vocab_size=256), "m")


def prepared(*texts: str, options: object = None, **body: Any) -> list[Prepared]:
    ready = PROMPTS.prepare([_line(index, text, options, body) for index, text in enumerate(texts)])
    assert all(isinstance(one, Prepared) for one in ready)
    return cast(list[Prepared], ready)


def streamed(text: str, **body: Any) -> list[Prepared]:
    """What an online request asks that wants its answer in pieces."""
    ready = PROMPTS.prepare_online(_line(0, text, None, body | {"stream": True}))
    assert isinstance(ready, Prepared)
    return [ready]


def _line(index: int, text: str, options: object, body: dict[str, Any]) -> Line:
    fields = {"model": "m", "messages": [{"role": "user", "content": text}]} | body
    return Line(index=index, custom_id=text, url="/v1/chat/completions", body=fields, options=options)


def names(lines: Iterable[Any]) -> list[str]:
    return [flying.prepared.line.custom_id for flying in lines]
