"""A worker as a process of its own, with a stand-in engine that can be slow, and that some prompts kill or hang.

usage: worker_process.py '{"step_s": 0.05, "max_num_seqs": 4, "grace_s": 20}', with settings in the environment
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pressrun.engine.request import Attend, Load, Output, Request
from pressrun.workers.echo_engine import ByteTokenizer, EchoEngine
from pressrun.workers.rendering import PLAINLY, Rendering

KILL, STOP, SPIN = b"kill the engine", b"stop the engine", b"spin the engine"
KILL_WORKER = "kill the worker"
NUM_ROWS = 64


class MortalEngine(EchoEngine):
    """Dies of a prompt with `KILL` in it, as a kernel that faults would make it; the other two make it hang.

    With `STOP` no thread of it runs any more; with `SPIN` it makes one step after another and gets nowhere. What it
    answers it writes down in the file `diary`, if there is one.
    """

    def __init__(self, diary: str | None, num_rows: int, **options: Any) -> None:
        super().__init__(**options)
        self.diary, self.num_rows = diary, num_rows

    def load(self) -> Load:
        """It holds more than it finishes in a step, as a real engine does."""
        return replace(super().load(), num_rows=self.num_rows)

    def step(self, attend: Attend | None = None) -> list[Output]:
        if any(SPIN in bytes(request.prompt) for _, _, request in self._waiting):
            time.sleep(0.01)
            return []
        return super().step(attend)

    def _answer(self, request: Request) -> Output:
        for text, signum in ((KILL, signal.SIGKILL), (STOP, signal.SIGSTOP)):
            if text in bytes(request.prompt):
                os.kill(os.getpid(), signum)
        if self.diary is not None:
            with open(self.diary, "ab", buffering=0) as out:
                out.write(b"%d %s\n" % (os.getpid(), bytes(request.prompt)))
        return super()._answer(request)


class MortalTokenizer(ByteTokenizer):
    """Takes the whole worker along with a prompt that has `KILL_WORKER` in it. To decode takes it `decode_s`."""

    def __init__(self, decode_s: float) -> None:
        self._decode_s = decode_s

    def chat(self, messages: Sequence[dict[str, Any]], how: Rendering = PLAINLY) -> Sequence[int]:
        if any(KILL_WORKER in message["content"] for message in messages):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().chat(messages, how)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> str:
        if self._decode_s:
            time.sleep(self._decode_s)
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens, keep=keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class MortalFactory:
    step_s: float
    max_num_seqs: int
    broken: bool
    diary: str | None = None
    num_rows: int = NUM_ROWS

    def __call__(self) -> MortalEngine:
        if self.broken:
            raise RuntimeError("not enough memory for the weights")
        options = {"step_s": self.step_s, "max_num_seqs": self.max_num_seqs, "max_model_len": 4096}
        return MortalEngine(self.diary, self.num_rows, **options)


def main() -> int:
    # The engine's process imports this module too, and is there sooner without them.
    from pressrun.jobs.settings import load_settings
    from pressrun.workers.worker import run_with

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s %(message)s")
    knobs = json.loads(sys.argv[1])
    grace_s, decode_s = knobs.pop("grace_s"), knobs.pop("decode_s")
    tokenizer = partial(MortalTokenizer, decode_s)
    return run_with(load_settings(), MortalFactory(**knobs), tokenizer, grace_s=grace_s)


if __name__ == "__main__":
    sys.exit(main())
