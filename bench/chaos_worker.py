"""A worker whose engine answers a few lines a step, so that a batch lasts long enough for things to go wrong.

usage: python -P -m pressrun.bench.chaos_worker STEP_S LINES_A_STEP, with settings in the environment
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace

from pressrun.engine.request import Load
from pressrun.jobs.settings import load_settings
from pressrun.workers.echo_engine import ByteTokenizer, EchoEngine
from pressrun.workers.worker import run_with

ROWS = 8  # It holds so many times what it finishes in a step, as a real engine does.


class PacedEngine(EchoEngine):
    """An echo at a walking pace."""

    def load(self) -> Load:
        return replace(super().load(), num_rows=ROWS * self.max_num_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedFactory:
    """Builds one in the engine's process."""

    step_s: float
    lines_a_step: int

    def __call__(self) -> PacedEngine:
        return PacedEngine(step_s=self.step_s, max_num_seqs=self.lines_a_step, max_model_len=4096)


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    factory = PacedFactory(step_s=float(sys.argv[1]), lines_a_step=int(sys.argv[2]))
    return run_with(load_settings(), factory, ByteTokenizer)


if __name__ == "__main__":
    sys.exit(main())
