"""What the guide to inputs shows is what a reader sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from slurm_worker.protocol.keys import JobId
from tests.unit.cli.conftest import Cli
from tests.unit.docs.pages import DOCS, blocks
from tests.unit.docs.test_tutorial import Reader

PAGE = DOCS / "guides" / "inputs.md"


def test_whoever_does_what_the_guide_says_sees_what_it_shows(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(cli, tmp_path)
    here = cli.services.site.storage.prefix
    for block in blocks(PAGE):
        if block.name:
            reader.save(replace(block, text=block.text.replace("s3://lab/backfills", here)))
        elif block.kind == "console":
            for line in block.text.replace("\n$ ", "\0$ ").split("\0"):
                if "submit" in line:
                    config = tmp_path / line.split()[3]
                    cli.world.job = JobId(yaml.safe_load(config.read_text())["job_id"])
                reader.type(replace(block, text=line))
    assert reader.compared == 5
