"""Imports go downwards only, and `slurmctl --help` imports nothing heavy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("airflow", "boto3", "fastapi", "pyarrow", "pydantic", "paramiko", "rich", "yaml")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import os, sys; sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), 'worker')];"
        "sys.argv = ['lint-imports', '--no-cache', '--no-logo'];"
        "from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their contracts, to be changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("airflow_slurm_provider", "worker"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    ended = lint_imports(ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (
            "airflow_slurm_provider/coordinator/planning/planner.py",
            "import airflow_slurm_provider.operators",
            "faces -> coordinator -> slurm",
        ),
        (
            "airflow_slurm_provider/slurm/script.py",
            "import airflow_slurm_provider.coordinator.planning.planner",
            "faces -> coordinator -> slurm",
        ),
        (
            "airflow_slurm_provider/coordinator/spec/site.py",
            "import airflow_slurm_provider.coordinator.status.progress",
            "floors of the coordinator",
        ),
        (
            "airflow_slurm_provider/coordinator/costs/prices.py",
            "import airflow_slurm_provider.coordinator.dataset",
            "floors of the coordinator",
        ),
        (
            "worker/slurm_worker/protocol/keys.py",
            "import slurm_worker.node.worker",
            "floors of the worker",
        ),
        (
            "worker/slurm_worker/aggregate/columns/types.py",
            "import slurm_worker.aggregate.dataset.folder",
            "floors of aggregation",
        ),
        (
            "worker/slurm_worker/protocol/task_table.py",
            "import airflow_slurm_provider.slurm",
            "the worker imports neither Airflow nor the provider",
        ),
        (
            "airflow_slurm_provider/dashboard/cache.py",
            "import airflow.sdk",
            "coordinator, slurm and the command line import no Airflow",
        ),
        (
            "airflow_slurm_provider/cli/app.py",
            "import airflow.sdk",
            "coordinator, slurm and the command line import no Airflow",
        ),
    ],
)
def test_an_import_upwards_breaks_a_contract(
    copy: Path, file: str, line: str, contract: str
) -> None:
    path = copy / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    ended = lint_imports(copy)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"{contract} BROKEN" in ended.stdout


def test_a_folder_that_no_floor_names_breaks_a_contract(copy: Path) -> None:
    folder = copy / "worker/slurm_worker/more"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    ended = lint_imports(copy)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "floors of the worker BROKEN" in ended.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import json, sys\n"
        "from airflow_slurm_provider.cli.app import COMMANDS, run\n"
        "found = {}\n"
        "for command in ['', *COMMANDS]:\n"
        "    code = run([*([command] if command else []), '--help'])\n"
        f"    found[command] = [code, [name for name in {HEAVY!r} if name in sys.modules]]\n"
        "print(json.dumps(found))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    assert {name: each for name, each in found.items() if each != [0, []]} == {}
    assert len(found) > 15


def test_the_command_line_and_the_coordinator_run_without_airflow() -> None:
    program = (
        "import sys\n"
        "from airflow_slurm_provider.cli import control, results, status\n"
        "from airflow_slurm_provider.coordinator import api\n"
        "print('airflow' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout.strip() == "False"
