"""A worker with a stand-in for a full GPU and a real tokenizer, as a process of its own, for `bench/mixed.py`.

usage: mixed_worker.py FOLDER, of the tokenizer, with settings in the environment
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer

from pressrun.bench.stand_in import StandInFactory
from pressrun.jobs.settings import load_settings
from pressrun.workers.native_tokenizer import NativeTokenizer
from pressrun.workers.worker import run_with

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    vocab_size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    sys.exit(run_with(load_settings(), StandInFactory(vocab_size=vocab_size), lambda: NativeTokenizer(folder)))
