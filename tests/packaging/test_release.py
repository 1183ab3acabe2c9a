"""A release's notes come from fragments, its SBOM names it, and one command sets its version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_worker import __version__
from tests.packaging.sbom import complete
from tests.packaging.tools import run
from tests.stack.settings import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """As much of the checkout as a release changes."""
    for name in ("CHANGELOG.md", "Makefile", "pyproject.toml", "worker/slurm_worker/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs" / "changelog.d", tmp_path / "docs" / "changelog.d")
    return tmp_path


def test_fragments_become_a_section_above_those_of_older_releases(copy: Path) -> None:
    fragment = copy / "docs" / "changelog.d" / "+moons.added.md"
    fragment.write_text("Moons are counted.\n")
    subprocess.run(["git", "init", "-q", "."], cwd=copy, check=True)
    run(sys.executable, "-m", "towncrier", "build", "--yes", "--version", "9.9.0", cwd=copy)
    lines = (copy / "CHANGELOG.md").read_text().splitlines()
    headings = [each for each in lines if each.startswith("## ")]
    assert headings[0].startswith("## 9.9.0, ")
    assert headings[1].startswith("## 0.1.0")
    assert "- Moons are counted." in lines
    assert not fragment.exists()
    assert (copy / "docs" / "changelog.d" / "README.md").exists()


def test_one_command_sets_the_version_and_the_pins(copy: Path) -> None:
    words = ("make", "version", "VERSION=9.9.0", "UV=true", "-o", "setup")
    run(*words, cwd=copy)
    module = (copy / "worker" / "slurm_worker" / "__init__.py").read_text()
    assert '__version__ = "9.9.0"' in module
    pins = [
        line
        for line in (copy / "pyproject.toml").read_text().splitlines()
        if '"slurm-worker[' in line
    ]
    assert len(pins) >= 3
    assert all("]==9.9.0" in each for each in pins)
    assert __version__ not in "".join(pins)


def test_the_sbom_names_this_release() -> None:
    found = complete(
        {
            "metadata": {"component": {"name": "airflow-slurm-provider"}},
            "components": [{"name": "slurm-worker"}, {"name": "boto3", "version": "1.40.0"}],
        }
    )
    assert found["metadata"]["component"]["version"] == __version__
    worker, boto3 = found["components"]
    assert worker["purl"] == f"pkg:pypi/slurm-worker@{__version__}"
    assert boto3 == {"name": "boto3", "version": "1.40.0"}
