"""A worker with the stand-in engine at a given pace, as a process of its own, for `bench/streams.py`.

usage: stream_worker.py SECONDS_A_STEP ROWS, with settings in the environment
"""

from __future__ import annotations

import sys

from pressrun.jobs.settings import load_settings
from pressrun.workers.echo_engine import ByteTokenizer, EchoFactory
from pressrun.workers.worker import run_with

if __name__ == "__main__":
    factory = EchoFactory(step_s=float(sys.argv[1]), max_num_seqs=int(sys.argv[2]))
    sys.exit(run_with(load_settings(), factory, ByteTokenizer))
