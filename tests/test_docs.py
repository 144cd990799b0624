"""Documents that cannot rot: what can be set, called or served is named in them, and what they link to exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from pressrun.api.app import create_app
from pressrun.api.metrics import Requests
from pressrun.cli.main import app as cli
from pressrun.engine.models import REGISTRY
from pressrun.jobs.settings import PREFIX, Settings, load_settings
from pressrun.workers.metrics import WorkerMetrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
METRIC = re.compile(r"\b(?:vllm|pressrun):[a-z0-9_]+")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_setting_is_in_the_reference_with_its_default_and_meaning() -> None:
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        row = f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else '–'} | {field.description} |"
        assert row in REFERENCE, f"docs/reference.md lacks the row: {row}"


def test_every_route_is_in_the_reference(tmp_path: Path) -> None:
    app = create_app(load_settings({}, data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in REFERENCE, f"docs/reference.md lacks {method.upper()} {path}"


def test_every_command_is_in_the_readme() -> None:
    for name in get_command(cli).commands:  # type: ignore[attr-defined]
        assert f"`pressrun {name}" in README, f"README lacks the command: {name}"


def test_every_model_family_is_in_the_readme() -> None:
    for architecture in REGISTRY:
        assert f"`{architecture}`" in README, f"README lacks the model: {architecture}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_links_to_headings_lead_to_headings() -> None:
    headings = {
        path: {_anchor(one) for one in re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)} for path in DOCUMENTS
    }
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text()):
            there = (path.parent / target).resolve() if target else path
            assert anchor in headings[there], f"{path.name} links to {target}#{anchor}"


def _anchor(heading: str) -> str:
    """As GitHub makes one."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_make_targets_named_in_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in DOCUMENTS:
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", path.read_text(), flags=re.M):
            name = target[0] or target[1]
            assert re.search(rf"^{name}:", makefile, flags=re.M), f"{path.name} names make {name}"


def test_every_metric_is_in_the_reference(tmp_path: Path) -> None:
    ours = [metric.name for metric in WorkerMetrics().registry.collect()] + [
        one.name for one in Requests().registry.collect()
    ]
    ours += re.findall(r'_(?:one|by)\(\s*"([a-z_]+)"', (ROOT / "jobs" / "standing.py").read_text())
    for name in ours:
        full = name if ":" in name or name.startswith("process_") else f"pressrun:{name}"
        assert f"`{full}`" in REFERENCE or full.startswith("process_"), f"docs/reference.md lacks the metric: {full}"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    assert len(asked) > 15
    for name in asked:
        base = re.sub("_(total|bucket|sum|count)$", "", name)
        assert f"`{base}`" in REFERENCE, f"the dashboard asks for {name}"
