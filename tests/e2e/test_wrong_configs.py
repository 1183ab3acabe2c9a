"""Each mistake of a user, against the real services: one line, exit code 2, nothing left."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Slurmctl, write_yaml
from tests.unit.slurm.ssh_server import closed_port

pytestmark = pytest.mark.stack

Document = dict[str, Any]


def job(**changes: Any) -> Callable[[Document, Document], None]:
    def change(config: Document, site: Document) -> None:
        config.update(changes)

    return change


def site(section: str, **changes: Any) -> Callable[[Document, Document], None]:
    def change(config: Document, document: Document) -> None:
        document[section].update(changes)

    return change


def unreachable(config: Document, document: Document) -> None:
    document["cluster"].update(transport="ssh", host="127.0.0.1", port=closed_port())


MISTAKES = {
    "unknown key": (job(bundel=5), ["bundel", "did you mean 'bundle'"]),
    "bad type": (job(bundle="many"), ["bundle", "'many'"]),
    "unknown slurm option": (job(slurm={"memory": "1G"}), ["slurm", "memory"]),
    "missing handler": (job(handler={"entry": "absent:handle", "code": "."}), ["absent.py"]),
    "no input": (job(input={"path": "absent.csv", "key": "id"}), ["absent.csv"]),
    "no input on S3": (
        job(input={"path": "s3://lab/input/absent.parquet", "key": "id"}),
        ["absent.parquet"],
    ),
    "no key column": (job(input={"path": "items.csv", "key": "idd"}), ["'idd'", "'id'"]),
    "duplicate keys": (job(input={"path": "twice.csv", "key": "id"}), ["'b'", "row 2", "row 3"]),
    "unreachable host": (unreachable, ["127.0.0.1"]),
    "absent bucket": (site("storage", prefix="s3://absent-bucket/x"), ["'absent-bucket'"]),
    "absent table": (site("storage", table="absent-table"), ["'absent-table'"]),
    "unknown key of the site": (site("cluster", hots="x"), ["cluster.hots", "'host'"]),
}


@pytest.fixture
def good(tmp_path: Path, job_id: str) -> Document:
    (tmp_path / "handler.py").write_text("def handle(item, context):\n    return item\n")
    (tmp_path / "items.csv").write_text("id,x\na,1\nb,2\nc,3\n")
    (tmp_path / "twice.csv").write_text("id,x\na,1\nb,2\nb,3\n")
    return {
        "job_id": job_id,
        "input": {"path": "items.csv", "key": "id"},
        "bundle": 2,
        "workers": 1,
        "handler": {"entry": "handler:handle", "code": "."},
        "slurm": {"time": "00:05:00"},
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_the_next_good_submit_works(
    slurmctl: Slurmctl, good: Document, tmp_path: Path, mistake: str
) -> None:
    change, expected = MISTAKES[mistake]
    config = copy.deepcopy(good)
    document = yaml.safe_load(Path(slurmctl.environment["SLURMCTL_CONFIG"]).read_text())
    change(config, document)
    wrong = write_yaml(tmp_path / "wrong.yaml", config)
    wrong_site = write_yaml(tmp_path / "site.yaml", document)
    ended = slurmctl("submit", wrong, "--site", wrong_site)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("slurmctl: ")
    assert [each for each in expected if each not in last] == []
    submitted = slurmctl.json("submit", write_yaml(tmp_path / "good.yaml", good))
    assert (submitted["items"], submitted["reattached"]) == (3, False)
    slurmctl.json("cancel", good["job_id"])


@pytest.mark.parametrize("command", [["status"], ["wait"], ["aggregate"], ["retry", "--job-id"]])
def test_an_unknown_job(slurmctl: Slurmctl, command: list[str]) -> None:
    ended = slurmctl(*command, "no-such-job", "--json")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "'no-such-job'" in ended.stderr


def test_json_stands_alone_on_stdout(slurmctl: Slurmctl, good: Document, tmp_path: Path) -> None:
    ended = slurmctl("submit", write_yaml(tmp_path / "good.yaml", good), "--json")
    assert json.loads(ended.stdout)["job_id"] == good["job_id"]
    slurmctl.json("cancel", good["job_id"])
