"""A client of streams that costs little: one connection each. Knows nothing of what is asked for."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Streamed:
    """One stream: when it was asked for, when each piece of text came, and what they say together."""

    asked_at: float
    times: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # Milliseconds before its first token, as the API says.
    text: str = ""
    error: str | None = None

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked_at

    @property
    def whole_s(self) -> float:
        return self.times[-1] - self.asked_at

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def longest_gap_s(self) -> float:
        return max(self.gaps)


async def first_byte_s(host: str, port: int, path: str) -> float:
    """Seconds until a page begins to come, with the connection made first."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readline()
        return time.perf_counter() - started
    finally:
        writer.close()


async def stream(host: str, port: int, body: dict[str, Any], path: str = "/v1/completions") -> Streamed:
    """Ask for a stream of a completion and read it to its end."""
    streamed = Streamed(asked_at=time.perf_counter())
    reader, writer = await asyncio.open_connection(host, port)
    raw = json.dumps(body | {"stream": True}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + raw)
        await _read(reader, streamed)
    except (OSError, asyncio.IncompleteReadError) as error:
        streamed.error = repr(error)
    finally:
        writer.close()
    return streamed


async def _read(reader: asyncio.StreamReader, streamed: Streamed) -> None:
    status = (await reader.readline()).split()[1]
    while True:
        line = await reader.readline()
        if not line:
            streamed.error = "the connection ended before the stream did"
            return
        if line.startswith(b"data: [DONE]"):
            return
        if line.lower().startswith(b"server-timing:"):
            streamed.phases = _phases(line.decode().partition(":")[2])
        if status != b"200" and line.startswith(b"{"):
            streamed.error = line.decode()
            return
        if line.startswith(b"data: "):
            _note(json.loads(line[6:]), streamed)
            if streamed.error is not None:
                return


def _phases(header: str) -> dict[str, float]:
    parts = (part.partition(";dur=") for part in header.split(","))
    return {name.strip(): float(value) for name, _, value in parts}


def _note(chunk: dict[str, Any], streamed: Streamed) -> None:
    if "error" in chunk:
        streamed.error = chunk["error"]["message"]
        return
    text = "".join(choice["text"] for choice in chunk["choices"])
    if text:
        streamed.times.append(time.perf_counter())
        streamed.text += text
