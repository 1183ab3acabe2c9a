"""The tutorial, from its files to its dataset, on a table, a bucket and a cluster in memory."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_worker.protocol.keys import JobId
from tests.unit.cli.conftest import Cli
from tests.unit.docs.pages import DOCS, README, Block, blocks, console, load, named

PAGE = DOCS / "tutorial.md"
JOB = JobId("cities-1")
#: Commands that reach for AWS or a cluster without going through what is in memory here.
ELSEWHERE = ("bootstrap", "doctor", "--version")


class Reader:
    """Follows the page: saves what it names, types what it shows, and compares."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.compared = 0

    def save(self, block: Block) -> None:
        (self.folder / block.name).write_text(block.text)
        if block.name == "handler.py":
            self.cli.world.handle = load(self.folder / "handler.py").handle

    def type(self, block: Block) -> None:
        """Run a block's commands; what it shows must be printed, in this order."""
        typed, shown = console(block)
        printed = [line for command in typed for line in self._run(command)]
        for line in shown:
            assert line in printed, f"{block}: {line!r} is not printed, but {printed}"
            printed = printed[printed.index(line) + 1 :]
            self.compared += 1

    def _run(self, command: str) -> list[str]:
        if command.startswith("("):
            subprocess.run(["sh", "-c", command], cwd=self.folder, check=True)
            return []
        words = shlex.split(command)
        if words[0] == "python3":
            ended = subprocess.run(
                [sys.executable, *words[1:]],
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=True,
            )
            return ended.stdout.splitlines()
        if words[0] != "slurmctl" or words[1] in ELSEWHERE:
            return []
        ended = self.cli(*words[1:])
        assert ended.code == 0, ended.err
        if words[1] in ("submit", "retry"):
            self.cli.work()
        return ended.out.splitlines()


def test_whoever_does_what_the_tutorial_says_sees_what_it_shows(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.world.job = JOB
    reader = Reader(cli, tmp_path)
    for block in blocks(PAGE):
        if block.name and block.name not in ("site.yaml", "dag.py"):
            reader.save(block)
        elif block.kind == "console":
            reader.type(block)
    assert reader.compared > 19


def test_whoever_does_what_the_readme_says_sees_what_it_shows(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.world.job = JobId("squares")
    reader = Reader(cli, tmp_path)
    for block in blocks(README):
        if block.name in ("handler.py", "config.yaml"):
            reader.save(block)
        elif block.kind == "console":
            reader.type(block)
    assert reader.compared == 6


def bring(cli: Cli, folder: Path) -> Path:
    """The job's files, as they are in the bucket."""
    root = cli.services.paths(JOB).root
    for key in cli.world.objects.list(f"{root}dataset/"):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        data = cli.world.objects.get(key)
        assert data is not None
        path.write_bytes(data)
    return folder / root


def test_a_published_job_is_read_by_its_manifest_as_the_page_on_queries_does(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.world.job = JOB
    reader = Reader(cli, tmp_path)
    for block in blocks(PAGE):
        if block.name in ("cities.csv", "config.yaml") or "ItemError" in block.text:
            reader.save(block)
    for command in ("submit config.yaml", "aggregate cities-1"):
        reader.type(Block(PAGE, 0, "console", f"$ slurmctl {command}\n"))
    (tmp_path / "read_users.py").write_text(named(DOCS / "how-to" / "query.md", "read_users.py"))
    bring(cli, tmp_path)
    root = cli.services.paths(JOB).root.rstrip("/")
    found = load(tmp_path / "read_users.py").rows(cli.world.objects.get, str(tmp_path), root)
    assert sorted(found.select("city").fetchall()) == [("lima",), ("nuuk",), ("oslo",), ("quito",)]
