"""Only the worker that was submitted runs, wherever its file is and whatever is beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from slurm_worker import zipapp
from slurm_worker.errors import UserError
from slurm_worker.node.worker import read_config


@pytest.fixture(scope="module")
def worker_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyz") / "worker.pyz"
    path.write_bytes(zipapp.build()[1])
    return path


def launch(
    path: Path, digest: str, *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", zipapp.LAUNCH, str(path), digest, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_is_one_line_that_any_shell_can_quote() -> None:
    assert "\n" not in zipapp.LAUNCH
    assert "!" not in zipapp.LAUNCH


def test_the_file_runs_if_it_is_the_one_that_was_submitted(
    worker_file: Path, tmp_path: Path
) -> None:
    ended = launch(worker_file, sha256(worker_file), "run", "--help", TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "--submission" in ended.stdout


def test_another_file_of_its_name_and_size_does_not_run(worker_file: Path, tmp_path: Path) -> None:
    data = bytearray(worker_file.read_bytes())
    data[len(data) // 2] ^= 1
    other = tmp_path / worker_file.name
    other.write_bytes(data)
    ended = launch(other, sha256(worker_file), "--version")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"slurm-worker: {other} is not the file that was submitted; submit the job again\n"
    )


def test_nothing_is_imported_from_the_current_folder(worker_file: Path, tmp_path: Path) -> None:
    for name in ("hashlib", "zipfile", "slurm_worker", "boto3", "argparse", "fcntl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from here')")
    (tmp_path / "tmp").mkdir(0o700)
    ended = launch(
        worker_file,
        sha256(worker_file),
        "run",
        "--help",
        cwd=tmp_path,
        TMPDIR=str(tmp_path / "tmp"),
    )
    assert ended.returncode == 0, ended.stderr


def test_no_bytecode_is_taken_from_elsewhere(worker_file: Path, tmp_path: Path) -> None:
    cache, own = tmp_path / "cache", tmp_path / "tmp"
    own.mkdir(0o700)
    ended = launch(
        worker_file,
        sha256(worker_file),
        "run",
        "--help",
        PYTHONDONTWRITEBYTECODE="",
        PYTHONPYCACHEPREFIX=str(cache),
        TMPDIR=str(own),
    )
    assert ended.returncode == 0, ended.stderr
    assert not list(cache.rglob("*slurm_worker*"))
    assert list(own.rglob("slurm_worker/__pycache__/*.pyc")), "its own is private"


def test_the_unpacked_files_are_their_users_alone(worker_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir(0o700)
    launch(worker_file, sha256(worker_file), "run", "--help", TMPDIR=str(tmp_path / "tmp"))
    (base,) = (tmp_path / "tmp").iterdir()
    assert base.stat().st_mode & 0o077 == 0


def test_handlers_can_use_boto3s_resources_and_time_zones_and_no_node_loads_the_simulator(
    worker_file: Path,
) -> None:
    names = zipfile.ZipFile(worker_file).namelist()
    for wanted in ("boto3/data/s3/", "boto3/data/dynamodb/", "dateutil/zoneinfo/dateutil-zoneinfo"):
        assert any(name.startswith(wanted) for name in names), wanted
    assert not [name for name in names if "simul" in name]


def test_a_configuration_must_have_the_digest_in_its_name() -> None:
    key = f"lab/jobs/j/config/{hashlib.sha256(b'{}').hexdigest()}.json"
    with pytest.raises(UserError, match="does not have the SHA-256 of its name"):
        read_config(b'{"worker": {}}', key)
