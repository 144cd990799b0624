"""`pressrun demo`: the whole road in a few minutes, as a user would take it.

Starts `pressrun up` in a folder of its own, sends real prompts as a batch through the openai SDK, shows the progress
and a few of the answers, and stops what it started, whatever happens.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..jobs.errors import PressrunError, SettingsError
from ..jobs.settings import Settings
from .model import ensure_model
from .prompts import humaneval_prompts, mtbench_prompts
from .up import address, is_ready

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

ENDPOINT: Final = "/v1/chat/completions"
NUM_EACH = 24
MAX_TOKENS = 64
IN_WAVES = 16  # Sequences at once, unless chosen: with more, all lines of so small a batch would end together.
SHOWN = ("mtbench-81", "humaneval-0", "mtbench-82", "humaneval-2")
SHOWN_CHARACTERS = 300
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0  # more than pressrun up needs at worst
POLL_S = 0.25
STALLED_S = 300.0
ENDED = ("completed", "failed", "expired", "cancelled")

Say = Callable[[str], None]


def run(settings: Settings) -> int:
    """Run the demo; the exit code. Raises PressrunError with what went wrong, with nothing left running."""
    try:
        import openai  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError("pressrun demo needs pip install 'pressrun[demo]'") from error
    signal.signal(signal.SIGTERM, _interrupt)  # ends like Ctrl-C: by way of every `finally`
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        output = _demo(settings, console)
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return 130
    console.print(f"\nThe output file: {escape(str(output))}", soft_wrap=True)
    console.print(f"All of it took {time.monotonic() - began:.0f} s, and everything is stopped.")
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _demo(settings: Settings, console: Console) -> Path:
    """From nothing to the answers; the downloaded output file."""
    folder = settings.data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        console.print(escape(line), soft_wrap=True)

    model = ensure_model(settings.model, settings.data_dir, say)
    prompts = _prompts(settings.data_dir)
    lines = [_line(name, prompt, settings.model_name) for name, prompt in prompts.items()]
    with tempfile.TemporaryDirectory(prefix="service-", dir=folder) as service_folder:
        service = settings.model_copy(
            update={
                "data_dir": Path(service_folder),
                "redis_url": None,
                "blob_url": None,
                "host": "127.0.0.1",
                "port": _free_port(),
                "auth": "off",
                "model": str(model),
                "served_model_name": settings.model_name,
                "max_num_seqs": settings.max_num_seqs if "max_num_seqs" in settings.model_fields_set else IN_WAVES,
            }
        )
        with _up(service, folder / "up.log", say) as check:
            return _batch(service, lines, prompts, console, check)


def _prompts(data_dir: Path) -> dict[str, str]:
    """HumanEval and MT-bench by turns."""
    code = {
        name: f"Complete this Python function:\n\n```python\n{prompt}```"
        for name, prompt in humaneval_prompts(data_dir).items()
    }
    pairs = zip(code.items(), mtbench_prompts(data_dir).items(), strict=False)
    return dict([item for pair in pairs for item in pair][: 2 * NUM_EACH])


def _line(custom_id: str, prompt: str, model: str) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _up(settings: Settings, log: Path, say: Say) -> Iterator[Callable[[], None]]:
    """`pressrun up` under these settings, from ready to stopped; yields a check that raises once it has ended."""
    # Whatever the environment chooses for a service of its own, this one is ours.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PRESSRUN_")}
    environment = inherited | settings.environment() | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "pressrun.cli", "up", "--parent", str(os.getpid())]
    say(f"Starting pressrun up (its log: {log})")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )

        def check() -> None:
            if process.poll() is not None:
                raise PressrunError(f"pressrun up ended with exit code {process.returncode}; {_tail(log)}")

        try:
            _wait_until_ready(settings, check, log)
            yield check
        finally:
            _stop(process, say)


def _wait_until_ready(settings: Settings, check: Callable[[], None], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(settings):
        check()
        if time.monotonic() > deadline:
            raise PressrunError(f"pressrun up is not ready after {START_TIMEOUT_S:.0f} s; {_tail(log)}")
        time.sleep(POLL_S)


def _stop(process: subprocess.Popen[bytes], say: Say) -> None:
    say("Stopping pressrun up")
    process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while process.poll() is None:
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            process.terminate()  # Told a second time, it hands back what it has in hand.
        if time.monotonic() > deadline:
            raise PressrunError(f"pressrun up (process {process.pid}) does not stop")


def _tail(log: Path) -> str:
    return "\n".join([f"{log} ends:", *log.read_text(errors="replace").splitlines()[-20:]])


def _batch(
    settings: Settings,
    lines: list[dict[str, Any]],
    prompts: dict[str, str],
    console: Console,
    check: Callable[[], None],
) -> Path:
    """Send the lines as one batch, wait for it, show some answers; the downloaded output file."""
    from openai import DefaultHttpxClient, OpenAI

    http = DefaultHttpxClient(trust_env=False)  # no proxy leads to this machine
    with OpenAI(base_url=f"{address(settings)}/v1", api_key="none", http_client=http) as client:
        raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = client.files.create(file=("prompts.jsonl", io.BytesIO(raw)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        console.print(f"Batch {batch.id}: {len(lines)} prompts of HumanEval and MT-bench for {settings.model_name}")
        began = time.monotonic()
        try:
            batch = _follow(client, batch, console, check)
        except KeyboardInterrupt:
            client.batches.cancel(batch.id)  # Else the worker would finish what it holds before it stops.
            raise
        seconds = time.monotonic() - began
        if batch.status != "completed" or batch.output_file_id is None:
            raise PressrunError(f"the batch ended as {batch.status}: {batch.model_dump_json(indent=2)}")
        output = settings.data_dir.parent / f"{batch.id}.jsonl"
        client.files.content(batch.output_file_id).write_to_file(output)
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    _show(answers, prompts, console)
    tokens = batch.usage.output_tokens if batch.usage else 0
    console.print(f"\n{len(answers)} of {len(lines)} lines answered in {seconds:.1f} s.")
    console.print(f"{tokens} tokens were written, {tokens / seconds:.0f} a second.")
    return output


def _follow(client: OpenAI, batch: Batch, console: Console, check: Callable[[], None]) -> Batch:
    """Show the batch's progress until it has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    moved_at, last = time.monotonic(), (batch.status, 0)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(batch.status, total=2 * NUM_EACH)
        while batch.status not in ENDED:
            check()
            time.sleep(POLL_S)
            batch = client.batches.retrieve(batch.id)
            counts = batch.request_counts
            done = counts.completed + counts.failed if counts else 0
            progress.update(bar, description=batch.status, completed=done)
            if (batch.status, done) != last:
                moved_at, last = time.monotonic(), (batch.status, done)
            elif time.monotonic() - moved_at > STALLED_S:
                raise PressrunError(f"the batch stands still at {done} lines ({batch.status})")
    return batch


def _show(answers: list[dict[str, Any]], prompts: dict[str, str], console: Console) -> None:
    """A few answers, shortened."""
    by_name = {answer["custom_id"]: answer for answer in answers}
    for name in [name for name in SHOWN if name in by_name]:
        text = by_name[name]["response"]["body"]["choices"][0]["message"]["content"]
        console.print(f"\n[bold]{name}[/bold]  [dim]{escape(_shortened(prompts[name], 100))}[/dim]")
        console.print(escape(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"))


def _shortened(text: str, length: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= length else words[:length] + " …"
