"""The archives hold what they should and nothing else, and the worker's stands alone."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import slurm_worker
from tests.packaging.tools import PACKAGES, SMOKE, Environment, build, wheel
from tests.stack.settings import ROOT

SOURCES = {"slurm_worker": ROOT / "worker", "airflow_slurm_provider": ROOT}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


def in_git(package: str) -> set[str]:
    """The package's files, as committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", package],
        cwd=SOURCES[package],
        capture_output=True,
        text=True,
        check=True,
    )
    return {each for each in listed.stdout.splitlines() if (SOURCES[package] / each).exists()}


def sdist_names(archives: Path, package: str) -> Iterator[str]:
    (found,) = archives.glob(f"{package}-*.tar.gz")
    with tarfile.open(found) as archive:
        for each in archive.getmembers():
            assert each.isfile(), f"{each.name} is not a regular file"
            yield each.name.partition("/")[2]


def metadata(archives: Path, package: str) -> Message:
    with zipfile.ZipFile(wheel(archives, package)) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_the_package_its_licence_and_nothing_else(
    archives: Path, package: str
) -> None:
    names = set(zipfile.ZipFile(wheel(archives, package)).namelist())
    info = {each for each in names if re.match(rf"{package}-[^/]+\.dist-info/", each)}
    assert names - info == in_git(package)
    assert {each.partition("/")[2] for each in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize("package", PACKAGES)
def test_an_sdist_holds_what_its_wheel_is_built_from_and_nothing_else(
    archives: Path, package: str
) -> None:
    beside = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert set(sdist_names(archives, package)) == in_git(package) | beside


def test_both_have_one_version_and_the_provider_wants_that_worker(archives: Path) -> None:
    provider = metadata(archives, "airflow_slurm_provider")
    version = slurm_worker.__version__
    assert metadata(archives, "slurm_worker")["Version"] == provider["Version"] == version
    pins = [each for each in provider.get_all("Requires-Dist", []) if "slurm-worker" in each]
    assert len(pins) >= 3
    assert [each for each in pins if f"=={version}" not in each.partition(";")[0]] == []


def test_both_licences_are_the_same() -> None:
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "worker" / "LICENSE").read_bytes()


def test_the_workers_wheel_alone_brings_no_airflow_and_runs(archives: Path, tmp_path: Path) -> None:
    alone = Environment.create(tmp_path / "alone")
    alone.install(wheel(archives, "slurm_worker"))
    alone.check()
    installed = alone.versions()
    assert "slurm-worker" in installed
    assert [each for each in installed if re.search("airflow|pydantic|pyarrow", each)] == []
    version = alone.run("slurm-worker", "--version")
    assert version.strip() == f"slurm-worker {slurm_worker.__version__}"
    assert "run" in alone.run("python", "-m", "slurm_worker", "--help")
    alone.run("python", "-I", SMOKE, "modules", "slurm_worker")
