"""The client's side of the chaos: batches that are submitted whatever happens, and counted when they have ended.

A client is told the truth or nothing: what was answered must hold, what was not is asked again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from openai import APIConnectionError, InternalServerError, OpenAI

from pressrun.bench.chaos_service import MODEL

T = TypeVar("T")
CHAT: Final = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
MAX_TOKENS = 24
PATIENCE_S = 120.0
RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A batch that the service has taken."""

    name: str
    id: str
    num_lines: int
    ends_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a batch ended, and all that is wrong with it."""

    batch: Submitted
    status: str
    completed: int
    failed: int
    unrun: int
    wrong: list[str]


def insist(action: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Ask until there is an answer; an answer that is a client's error is raised."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return action()
        except (APIConnectionError, InternalServerError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def submit(client: OpenAI, name: str, num_lines: int, *, window: str = "24h", ends_as: str = "completed") -> Submitted:
    """Upload lines, and make a batch of them."""
    raw = "\n".join(json.dumps(_line(name, i)) for i in range(num_lines)).encode()
    file = insist(lambda: client.files.create(file=("in.jsonl", io.BytesIO(raw)), purpose="batch"))
    window_: Any = window  # The SDK knows only OpenAI's own.
    batch = insist(lambda: client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window_))
    return Submitted(name=name, id=batch.id, num_lines=num_lines, ends_as=ends_as)


def wait(client: OpenAI, batch: Submitted, timeout_s: float) -> Any:
    """The batch once it has ended, or as it is after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = insist(lambda: client.batches.retrieve(batch.id))
        if seen.status in ENDED or time.monotonic() > deadline:
            return seen
        time.sleep(RETRY_S)


def judge(client: OpenAI, batch: Submitted, ended: Any) -> Verdict:
    """Count every line of the batch's files against its input and its counters."""
    output, errors = _lines(client, ended.output_file_id), _lines(client, ended.error_file_id)
    names = [f"{batch.name}-{i}" for i in range(batch.num_lines)]
    unrun = sum((line["error"] or {}).get("code") in ("batch_cancelled", "batch_expired") for line in errors)
    counts = ended.request_counts
    tokens = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in output)
    of_output, of_errors = [line["custom_id"] for line in output], [line["custom_id"] for line in errors]
    checks = {
        f"it ended as {ended.status}, not {batch.ends_as}": ended.status == batch.ends_as,
        "output and error file do not hold every line once": sorted(of_output + of_errors) == sorted(names),
        "the output file is not in input order": of_output == _in_order(names, of_output),
        "the error file is not in input order": of_errors == _in_order(names, of_errors),
        "an answer is not that of its own line": all(_is_answered(line) for line in output),
        f"the total is {counts.total}": counts.total == batch.num_lines,
        f"{counts.completed} completed for {len(output)} lines": counts.completed == len(output),
        f"{counts.failed} failed for {len(errors) - unrun} lines": counts.failed == len(errors) - unrun,
        f"{ended.usage.output_tokens} output tokens for {tokens}": ended.usage.output_tokens == tokens,
        f"lines failed: {_codes(errors)}": len(errors) == unrun,
    }
    wrong = [said for said, holds in checks.items() if not holds]
    return Verdict(
        batch=batch,
        status=ended.status,
        completed=len(output),
        failed=len(errors) - unrun,
        unrun=unrun,
        wrong=wrong,
    )


def _line(name: str, index: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{name}-{index}"}], "max_tokens": MAX_TOKENS}
    return {"custom_id": f"{name}-{index}", "method": "POST", "url": CHAT, "body": body}


def _is_answered(line: dict[str, Any]) -> bool:
    """The stand-in echoes as much of the prompt as was asked for."""
    said: str = line["response"]["body"]["choices"][0]["message"]["content"]
    return said == f"user: {line['custom_id']}"[:MAX_TOKENS]


def _lines(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = insist(lambda: client.files.content(file_id).text)
    return [json.loads(line) for line in text.splitlines()]


def _in_order(names: list[str], found: list[str]) -> list[str]:
    wanted = set(found)
    return [name for name in names if name in wanted]


def _codes(errors: list[dict[str, Any]]) -> set[str]:
    return {line["error"]["code"] if line["error"] else str(line["response"]["status_code"]) for line in errors}
