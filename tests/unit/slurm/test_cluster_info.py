"""What a trial leaves on the login node is removed, in a real shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_slurm_provider.slurm.client import SlurmClient
from tests.unit.slurm.fake_slurm import FakeSlurm


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote $(dir)"


@pytest.fixture
def client(tmp_path: Path, remote: Path) -> SlurmClient:
    return SlurmClient(FakeSlurm(tmp_path / "slurm").transport(), str(remote))


def left(remote: Path) -> set[str]:
    return {path.name for path in (remote / "jobs").iterdir()}


def test_a_folder_is_removed_with_its_credentials_and_no_other(
    client: SlurmClient, remote: Path
) -> None:
    for folder in ("probe.1", "probe.2"):
        client.put_secret(folder, "credentials.json", b"secret")
        client.submit(folder, "#!/bin/bash\n", folder)
    client.survey().remove("probe.1")
    assert left(remote) == {"probe.2"}
    assert (remote / "jobs" / "probe.2" / "credentials.json").read_bytes() == b"secret"


@pytest.mark.parametrize("folder", ["", "$(echo probe.1)", "probe.1; rm -rf .", "probe?1"])
def test_an_invalid_folder_name_removes_nothing(
    client: SlurmClient, remote: Path, folder: str
) -> None:
    client.put_secret("probe.1", "credentials.json", b"secret")
    client.survey().remove(folder)
    assert left(remote) == {"probe.1"}


def test_variables_that_commands_do_not_get_are_listed() -> None:
    # This process is the parent: what it was started with counts.
    program = (
        "from airflow_slurm_provider.slurm.cluster_info import Survey\n"
        "from airflow_slurm_provider.slurm.transport import LocalTransport\n"
        "print(Survey(LocalTransport(), 'x').ignored_variables())\n"
    )
    environment = {**os.environ, "SBATCH_ACCOUNT": "physics", "SLURM_CONF": "/x", "SLURMY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    assert "SBATCH_ACCOUNT" in done.stdout
    assert "SLURM_CONF" not in done.stdout
    assert "SLURMY" not in done.stdout
