"""The worker is one file that every supported Python here runs, with nothing installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import Workers
from slurm_worker import zipapp

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


def interpreters() -> dict[str, str]:
    """Version: path, of the supported Pythons that are here; at least the one that runs this."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for version in (f"3.{minor}" for minor in range(10, 15)):
        candidates = [
            shutil.which(f"python{version}") or "",
            *map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python"))),
        ]
        for path in filter(None, candidates):
            # A version manager's shim may be on the PATH and lead nowhere.
            tried = subprocess.run([path, "-c", ""], capture_output=True, check=False)
            if tried.returncode == 0:
                found[version] = path
    return found


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def worker_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyz") / "worker.pyz"
    path.write_bytes(zipapp.build()[1])
    return path


def run(
    version: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python without its site packages and without our environment."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return subprocess.run(
        [INTERPRETERS[version], "-I", "-S", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", **aws, **environment},
    )


@pytest.mark.parametrize("version", INTERPRETERS)
def test_it_tells_its_version_and_unpacks_nothing_for_that(
    worker_file: Path, version: str, tmp_path: Path
) -> None:
    ended = run(version, worker_file, "--version", TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("slurm-worker ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", INTERPRETERS)
def test_it_works_off_a_job(
    worker_file: Path,
    version: str,
    tmp_path: Path,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "handler.py").write_text(
        "import sys\ndef handle(item, context):\n"
        "    context.logger.info('seen', python=sys.version)\n    return {'n': item['n']}\n"
    )
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps({"id": f"k{n}", "n": n}) + "\n" for n in range(20))
    )
    config = load_config(
        {
            "job_id": f"pyz-{uuid.uuid4().hex[:10]}",
            "input": {"path": str(tmp_path / "items.jsonl"), "key": "id"},
            "bundle": 5,
            "handler": {"entry": "handler:handle", "code": str(tmp_path)},
        }
    )
    monkeypatch.setattr(api, "ensure_workers", lambda *_: Workers((), "", 0, "", reattached=True))
    api.submit(services, config, log=lambda _: None)
    standing = services.jobs(config.spec.id).get()
    arguments = upload.worker_arguments(services, config.spec, standing.config, "000-1")
    ended = run(version, worker_file, *arguments, TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert sum(marker.ok for marker in services.store(config.spec.id).markers()) == 20
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert any(line.get("python", "").startswith(version) for line in lines)


def unpacked(folder: Path) -> list[Path]:
    """The unpacked workers under a temporary folder."""
    return [each for each in folder.glob("slurm-worker-*/*") if each.is_dir()]


def start(worker_file: Path, temporary: Path) -> subprocess.CompletedProcess[str]:
    version = next(iter(INTERPRETERS))
    return run(version, worker_file, "run", "--help", TMPDIR=str(temporary))


def test_many_that_start_together_unpack_once(worker_file: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: start(worker_file, tmp_path), range(8)))
    assert [each.returncode for each in ended] == [0] * 8, ended
    assert len(unpacked(tmp_path)) == 1


def test_what_a_cleaner_of_old_files_took_is_put_back(worker_file: Path, tmp_path: Path) -> None:
    assert start(worker_file, tmp_path).returncode == 0
    (folder,) = unpacked(tmp_path)
    taken = folder / "slurm_worker" / "protocol" / "task_table.py"
    taken.unlink()
    assert start(worker_file, tmp_path).returncode == 0
    assert unpacked(tmp_path) == [folder]
    assert taken.exists()


def test_a_temporary_folder_that_can_not_be_used_is_one_line_and_exit_75(
    worker_file: Path, tmp_path: Path
) -> None:
    # Root may write anywhere, so something lies in the way instead.
    in_the_way = tmp_path / f"slurm-worker-{os.getuid()}" / f"{zipapp.build()[0]}.lock"
    in_the_way.mkdir(parents=True)
    in_the_way.parent.chmod(0o700)
    ended = start(worker_file, tmp_path)
    assert ended.returncode == 75
    assert "name another with TMPDIR" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_same_packages_give_the_same_bytes() -> None:
    assert zipapp.build() == zipapp.build()
