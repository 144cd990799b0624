"""The whole service beside its engine alone: what Valkey, the API, the worker and tokenizing leave of its speed.

    python bench/whole.py --model llama-3.1-8b --workload sharegpt,uniform
    python bench/whole.py --model tiny --num-requests 8      needs no GPU

First the engine runs each workload as token ids, as bench/throughput.py has it. Then `pressrun up` serves the same
model with the same flags, and each workload comes as a batch file of texts with as many tokens as the prompts have, and
alike where they are; what counts is the time from creating the batch until its output file is there. A model without
weights is given SmolLM2's tokenizer. Prints a table, then one JSON line. The exit code is 1 if the engine failed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from pressrun.bench.byte_level import widen_tokenizer
from pressrun.bench.comparison import MAX_MODEL_LEN, Comparison
from pressrun.bench.options import parse
from pressrun.bench.serving import BatchRun, Service, run_batch, running_service
from pressrun.bench.shapes import SHAPES, write_shape
from pressrun.bench.tables import print_table, rounded, show
from pressrun.bench.workloads import Workload, make_workload
from pressrun.cli.model import SMOLLM2, ensure_model
from pressrun.jobs.settings import Settings, load_settings

START_TIMEOUT_S = 300.0
NAME = "measured"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def main() -> int:
    options, flags = parse(__doc__ or "")
    options.engines = ["pressrun"]
    unknown = sorted(flags.keys() - Settings.model_fields.keys())
    if unknown:
        raise SystemExit(f"the service has no setting for {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as name:
        root = Path(name)
        (root / "alone").mkdir()
        comparison = Comparison(options, flags, root / "alone")
        comparison.run()
        if comparison.errors:
            return 1
        folder = served_folder(options.model, root)
        rows = serve(options, flags, folder, root, {result["workload"]: result for result in comparison.results()})
    print()
    print_table(
        [
            ("workload", lambda row: row["workload"]),
            ("engine alone s", lambda row: show(row["alone_s"], ".2f")),
            ("service s", lambda row: show(row["service_s"], ".2f")),
            ("service / alone", lambda row: show(row["share"], ".1%")),
            ("upload s", lambda row: show(row["upload_s"], ".2f")),
            ("cached tokens alone", lambda row: show(row["alone_cached_tokens"], ",")),
            ("in the service", lambda row: show(row["service_cached_tokens"], ",")),
        ],
        rows,
        num_left=1,
    )
    print(json.dumps(rounded({"model": options.model, "engine_flags": flags, "results": rows})))
    return 0


def served_folder(model: str, root: Path) -> Path:
    """The model's folder with a tokenizer in it that has a text for every token of the model."""
    if model not in SHAPES:
        return Path(model).resolve()
    folder = write_shape(model, root / "served")
    smollm2 = ensure_model(SMOLLM2, load_settings().data_dir)
    for file in TOKENIZER_FILES:
        if (smollm2 / file).exists():
            shutil.copy(smollm2 / file, folder / file)
    widen_tokenizer(folder, SHAPES[model]["vocab_size"])
    return folder


def service_on(folder: Path, root: Path, flags: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The words that a service is asked with (`plain_words`), and the settings that it runs under."""
    from tokenizers import Tokenizer

    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = plain_words(Tokenizer.from_file(str(folder / "tokenizer.json")), vocab_size)
    settings = {
        "max_model_len": MAX_MODEL_LEN,
        "load_format": "safetensors" if any(folder.glob("*.safetensors")) else "dummy",
        **flags,
        "data_dir": root / "data",
        "model": folder,
        "served_model_name": NAME,
    }
    return words, settings


def serve(
    options: Namespace, flags: dict[str, Any], folder: Path, root: Path, alone: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every workload through the service, each beside its time without."""
    words, settings = service_on(folder, root, flags)
    rows = []
    with running_service(START_TIMEOUT_S, **settings) as service:
        run_workload(service, make_workload("uniform", len(words), options.num_warm_up), words, root)
        for name, result in alone.items():
            workload = make_workload(name, len(words), options.num_requests)
            runs = [run_workload(service, workload, words, root) for _ in range(options.repeat)]
            run, num_cached = sorted(runs, key=lambda found: found[0].batch_s)[(len(runs) - 1) // 2]
            print(f"service, {name}: {run.batch_s:.2f} s", flush=True)
            share = result["seconds"] / run.batch_s
            times = {"alone_s": result["seconds"], "service_s": run.batch_s, "share": share, "upload_s": run.upload_s}
            cached = {"alone_cached_tokens": result["cached_tokens"], "service_cached_tokens": num_cached}
            rows.append({"workload": name, **times, **cached})
    return rows


def run_workload(service: Service, workload: Workload, words: list[str], root: Path) -> tuple[BatchRun, int]:
    """One batch, and how many tokens its lines found in the cache; each must have as many as the workload says."""
    path = root / f"{workload.name}.jsonl"
    with path.open("w") as file:
        for i, item in enumerate(workload.items):
            text = "".join(words[token] for token in item.prompt)
            body = {"model": NAME, "prompt": text, "max_tokens": item.num_output, "temperature": 0, "ignore_eos": True}
            line = {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    run = run_batch(service.client, path, "/v1/completions")
    lines = service.client.files.content(run.output_file_id).text.splitlines()
    num_cached = 0
    for item, answer in zip(workload.items, map(json.loads, lines), strict=True):
        usage = answer["response"]["body"]["usage"]
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (len(item.prompt), item.num_output):
            raise SystemExit(f"line {answer['custom_id']}: {usage}, not {len(item.prompt)} and {item.num_output}")
        num_cached += usage["prompt_tokens_details"]["cached_tokens"]
    return run, num_cached


def plain_words(tokenizer: Any, vocab_size: int) -> list[str]:
    """Words that the model knows, each with a space before it, that are one token wherever they stand."""
    known = sorted(token for token, id in tokenizer.get_vocab().items() if id < vocab_size)
    found = [re.fullmatch("[Ġ▁]([a-z]+)", token) for token in known]
    words = [f" {match[1]}" for match in found if match]
    encoded = tokenizer.encode_batch([word * 2 for word in words], add_special_tokens=False)
    return [word for word, encoding in zip(words, encoded, strict=True) if len(encoding.ids) == 2]


if __name__ == "__main__":
    sys.exit(main())
