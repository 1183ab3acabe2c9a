"""A dataset merged on the cluster's nodes is that which is merged here."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import Slurmctl, write_yaml

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_nodes_merge_the_files_and_the_coordinator_publishes_them(
    slurmctl: Slurmctl, tmp_path: Path
) -> None:
    lines = [json.dumps({"id": f"k{n:04}", "n": n}) + "\n" for n in range(2_000)]
    (tmp_path / "items.jsonl").write_text("".join(lines))
    (tmp_path / "handler.py").write_text(
        "def handle(item, context):\n    return {'n': item['n']}\n"
    )
    names = [f"merge-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        config = {
            "job_id": name,
            "input": {"path": "items.jsonl", "key": "id"},
            "bundle": 250,
            "workers": 2,
            "handler": {"entry": "handler:handle", "code": "."},
            "slurm": {"mem": "300M", "time": "00:10:00"},
            "aggregate": {"rows_per_file": 500, "workers": 2, "slurm": {"mem": "1500M"}},
        }
        ended = slurmctl("submit", write_yaml(tmp_path / f"{name}.yaml", config), "--wait")
        assert ended.returncode == 0, ended.stderr
    here = slurmctl.json("aggregate", names[0])
    there = slurmctl.json("aggregate", names[1], "--where", "slurm")
    assert there["rows"] == 2_000
    assert [e["sha256"] for e in there["files"]] == [e["sha256"] for e in here["files"]]
    merging = there["inputs"][:8]
    merged = slurmctl.json("status", f"{names[1]}.merge-{merging}")
    assert (merged["ok"], merged["rows"]) == (4, 4)
