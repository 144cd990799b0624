"""Online requests beside a batch: what the batch costs their first tokens, and what they cost the batch.

    python bench/beside.py --model llama-3.1-8b --workload sharegpt
    python bench/beside.py --model tiny --num-requests 64 --rate 2 --seconds 5      needs no GPU

`pressrun up` serves the model. Requests come at a steady rate, first to an idle engine, then while a batch fills it;
the batch runs once without them too. Every request has a prompt of its own and must come whole. Prints a table, then
one JSON line. Takes the flags of bench/whole.py beside its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pressrun.bench.comparison import MAX_MODEL_LEN
from pressrun.bench.options import parse
from pressrun.bench.serving import Service, running_service
from pressrun.bench.streaming import Streamed, stream
from pressrun.bench.streams import quantile
from pressrun.bench.tables import print_table, show
from pressrun.bench.whole import NAME, START_TIMEOUT_S, plain_words, run_workload, served_folder
from pressrun.bench.workloads import make_workload

SETTLE_S = 2.0  # From creating a batch until its lines run.


def main() -> int:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--rate", type=float, default=4.0, help="online requests a second")
    own.add_argument("--seconds", type=float, default=30.0, help="of online requests to an idle engine")
    own.add_argument("--prompt-tokens", type=int, default=512)
    own.add_argument("--answer-tokens", type=int, default=32)
    mine, rest = own.parse_known_args()
    options, flags = parse(f"{__doc__}\n{own.format_help()}", rest)
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as name:
        root = Path(name)
        folder = served_folder(options.model, root)
        settings = {
            "max_model_len": MAX_MODEL_LEN,
            "load_format": "safetensors" if any(folder.glob("*.safetensors")) else "dummy",
            "enable_prefix_caching": False,  # The batch runs twice, and is to be the same work.
            **flags,
            "data_dir": root / "data",
            "model": folder,
            "served_model_name": NAME,
        }
        with running_service(START_TIMEOUT_S, **settings) as service:
            report(*measure(service, folder, root, mine, options))
    return 0


def measure(
    service: Service, folder: Path, root: Path, mine: argparse.Namespace, options: argparse.Namespace
) -> tuple[list[Streamed], list[Streamed], float, float]:
    """Requests alone and beside the batch, and the seconds of the batch alone and beside them."""
    from tokenizers import Tokenizer

    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = plain_words(Tokenizer.from_file(str(folder / "tokenizer.json")), vocab_size)
    requests = Requests(service, words, mine)
    workload = make_workload(options.workload[0], len(words), options.num_requests)
    run_workload(service, make_workload("uniform", len(words), options.num_warm_up), words, root)

    def run() -> float:
        return run_workload(service, workload, words, root)[0].batch_s

    async def beside() -> tuple[list[Streamed], float]:
        batch = asyncio.create_task(asyncio.to_thread(run))
        await asyncio.sleep(SETTLE_S)
        return await requests.until(batch.done), await batch

    loop = asyncio.new_event_loop()
    ends = loop.time() + mine.seconds
    alone = loop.run_until_complete(requests.until(lambda: loop.time() >= ends))
    batch_alone_s = run()
    found, batch_beside_s = loop.run_until_complete(beside())
    return alone, found, batch_alone_s, batch_beside_s


class Requests:
    """Online requests at a steady rate, whatever becomes of those before."""

    def __init__(self, service: Service, words: list[str], mine: argparse.Namespace) -> None:
        url = service.client.base_url
        self._host, self._port = url.host, int(url.port or 80)
        self._words = words
        self._mine = mine
        self._draws = random.Random(0)

    async def until(self, over: Callable[[], bool]) -> list[Streamed]:
        """Ask until it is over, and read all that were asked to their ends."""
        asked = []
        while not over():
            asked.append(asyncio.create_task(stream(self._host, self._port, self._body())))
            await asyncio.sleep(1 / self._mine.rate)
        return await asyncio.gather(*asked)

    def _body(self) -> dict[str, Any]:
        text = "".join(self._draws.choices(self._words, k=self._mine.prompt_tokens))
        limit = {"max_tokens": self._mine.answer_tokens, "ignore_eos": True, "temperature": 0}
        return {"model": NAME, "prompt": text} | limit


def report(alone: list[Streamed], beside: list[Streamed], batch_alone_s: float, batch_beside_s: float) -> None:
    """Print it all. Raises SystemExit where a request failed."""
    broken = [one.error or "it had no text" for one in (*alone, *beside) if one.error is not None or not one.times]
    if broken or not beside:
        raise SystemExit(f"{len(broken)} requests failed, such as: {broken[:1] or 'none was asked'}")
    idle, busy = ([quantile([one.first_s * 1000 for one in found], p) for p in (50, 95)] for found in (alone, beside))
    rows: list[dict[str, Any]] = [
        {"engine": name, "requests": len(found), "p50": p50, "p95": p95}
        for name, found, (p50, p95) in (("idle", alone, idle), ("with a batch", beside, busy))
    ]
    print_table(
        [
            ("engine", lambda row: row["engine"]),
            ("requests", lambda row: show(row["requests"], ",")),
            ("first token p50 ms", lambda row: show(row["p50"], ".1f")),
            ("p95 ms", lambda row: show(row["p95"], ".1f")),
        ],
        rows,
        num_left=1,
    )
    fields = {
        "bench": "beside",
        "first_token_ms_p95_idle": round(idle[1], 1),
        "first_token_ms_p95_beside": round(busy[1], 1),
        "times_idle": round(busy[1] / idle[1], 2),
        "batch_alone_s": round(batch_alone_s, 2),
        "batch_beside_s": round(batch_beside_s, 2),
        "batch_keeps": round(batch_alone_s / batch_beside_s, 3),
    }
    print(json.dumps(fields))


if __name__ == "__main__":
    sys.exit(main())
