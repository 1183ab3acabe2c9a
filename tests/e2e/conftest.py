"""The stack, and `slurmctl` as a process against it."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services, open_transport
from airflow_slurm_provider.coordinator.spec.site import load_site
from tests.stack.demo import read_environment
from tests.stack.settings import ROOT

EXAMPLE = ROOT / "example_dags" / "backfill_flights"
FEW_FLIGHTS, PER_TASK = 3_000, 100
SLURMCTL = Path(sys.executable).with_name("slurmctl")


def hear_interrupts() -> None:
    """Undo what a shell does to a job in the background: it has it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Slurmctl:
    """Runs the installed ``slurmctl`` in the stack's environment."""

    environment: Mapping[str, str]

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SLURMCTL), *map(str, arguments)],
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SLURMCTL), *map(str, arguments)],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def complete(self, words: str, position: int) -> list[str]:
        """What bash would be told to complete the word at this position with."""
        ended = subprocess.run(
            [str(SLURMCTL)],
            env={
                **self.environment,
                "_SLURMCTL_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(position),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.partition(",")[2] for line in ended.stdout.splitlines()]

    def json(self, *arguments: str | Path) -> Any:
        """The document of a command that must succeed."""
        ended = self(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)


@pytest.fixture(scope="session")
def environment(stack: object) -> Iterator[Mapping[str, str]]:
    """The environment of a shell that has sourced the stack's."""
    before = dict(os.environ)
    os.environ.update(read_environment())
    yield dict(os.environ)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def services(environment: Mapping[str, str]) -> Iterator[Services]:
    opened = open_services(load_site(environment["SLURMCTL_CONFIG"]))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def slurmctl(environment: Mapping[str, str]) -> Slurmctl:
    return Slurmctl(environment)


@pytest.fixture(scope="session")
def few_flights(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flights example with fewer flights, from a local file."""
    folder = tmp_path_factory.mktemp("flights")
    config = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    bucket, key = config["input"]["path"].removeprefix("s3://").split("/", 1)
    data = services.bucket(bucket).get(key)
    assert data is not None, f"the stack did not seed {config['input']['path']}"
    pq.write_table(
        pq.read_table(io.BytesIO(data)).slice(0, FEW_FLIGHTS), folder / "flights.parquet"
    )
    config["input"]["path"] = "flights.parquet"
    config["handler"]["code"] = str(EXAMPLE / config["handler"]["code"])
    return write_yaml(folder / "config.yaml", {**config, "bundle": PER_TASK, "workers": 2})


@pytest.fixture
def job_id() -> str:
    return f"e2e-{uuid.uuid4().hex[:10]}"


def arrays_of(services: Services, job_id: str) -> set[str]:
    """The Slurm job ids of all arrays that were ever submitted for the job, found by name."""
    cluster = services.site.cluster
    if cluster.transport == "embedded":
        assert cluster.embedded_dir is not None
        with closing(sqlite3.connect(Path(cluster.embedded_dir) / "state.db")) as jobs:
            pairs = [
                (str(number), name) for number, name in jobs.execute("SELECT id, name FROM jobs")
            ]
    else:
        transport = open_transport(cluster)
        found = transport.run(
            "squeue -h -t all -o '%F|%j'; sacct -nXP -S now-1days -o JobID,JobName"
        )
        transport.close()
        assert found.code == 0, found.stderr
        lines = [line.split("|") for line in found.stdout.splitlines()]
        pairs = [(array.split("_")[0], name) for array, name in lines]
    return {array for array, name in pairs if name.startswith(f"{job_id}.")}


def write_yaml(path: Path, document: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(document)))
    return path
