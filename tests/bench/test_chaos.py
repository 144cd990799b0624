"""A short run of the chaos: the whole service under faults of all kinds, and every line counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pressrun.bench import chaos


@pytest.mark.timeout(240)
def test_every_line_comes_out_once_whatever_is_killed_cut_or_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--faults=14", "--lines=500", "--no-expiring", "--lease=3", "--gap=0.5"]
    # Of a busy machine no more is asked than of leases of the usual length.
    status = chaos.main([*size, "--patience=30", "--blobs=s3", "--seed=2", f"--logs={tmp_path}"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (status, said["wrong"], said["faults"]) == (0, [], 14)
