"""The house's walls: who may import whom, what stays light, and that packaging lists what is there."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": set(),
    "engine": {"kernels"},
    "jobs": set(),
    "api": {"jobs"},
    "workers": {"jobs", "engine"},
    "cli": {"jobs", "api", "workers", "engine", "kernels"},
}
NEVER = {
    "kernels": {"redis", "rq", "fastapi"},
    "engine": {"redis", "rq", "fastapi", "uvicorn", "httpx"},
    "jobs": {"torch", "fastapi", "transformers", "triton"},
    "api": {"torch", "transformers", "triton"},
}


def modules() -> list[Path]:
    return sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports, wherever in the module it does."""
    package = ["pressrun", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_folder_may(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in NEVER.get(folder, set()), f"{folder}/ must not import {top}"
        if top == "pressrun" and rest:
            other = rest.split(".")[0]
            assert other in MAY_IMPORT[folder] | {folder, "__version__"}, f"{folder}/ must not import {other}/"


@pytest.mark.parametrize("module", ["pressrun", "pressrun.jobs.submit", "pressrun.api.app", "pressrun.cli.main"])
def test_importing_what_needs_no_gpu_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'transformers', 'triton'}} & sys.modules.keys() or 'light')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "light", result.stdout + result.stderr


def test_the_package_list_is_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(["pressrun", *path.parent.relative_to(ROOT).parts]) for path in modules() if path.stem == "__init__"
    }
    assert listed == found | {"pressrun"}


def test_every_module_says_what_it_does() -> None:
    silent = [str(path.relative_to(ROOT)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
