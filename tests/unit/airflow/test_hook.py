"""What the hook's connections share in a process, and what each has of its own."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.services import SharedPolling
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import UserError


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster, and two accounts of AWS; nothing is open yet."""
    SlurmHook.reopen()
    site = {"table": "t", "prefix": "s3://lab/lab", "transport": "local"}
    monkeypatch.setenv("AIRFLOW_CONN_HPC", json.dumps({"conn_type": "slurm", "extra": site}))
    for name, region in (("EU", "eu-west-1"), ("US", "us-east-1")):
        aws = {"conn_type": "aws", "extra": {"region_name": region}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(aws))


def shared(aws_conn_id: str) -> SharedPolling:
    found = SlurmHook("hpc", aws_conn_id).services(poll_s=10.0).shared
    assert found is not None
    return found


def test_a_job_of_the_same_name_in_another_table_is_another_job() -> None:
    eu, us = shared("eu"), shared("us")
    assert eu.progress.get("job-1", 5.0, lambda: "of eu") == "of eu"
    assert us.progress.get("job-1", 5.0, lambda: "of us") == "of us"


def test_tasks_that_wait_for_the_same_job_or_cluster_share_their_queries() -> None:
    first = shared("eu")
    SlurmHook.reopen()
    assert shared("eu").progress is first.progress, "also where services were opened again"
    assert shared("us").poller is first.poller


def test_the_connections_extra_field_for_checksums_is_the_sites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"table": "t", "prefix": "s3://lab/lab", "transport": "local"}
    conn = {"conn_type": "slurm", "extra": {**extra, "checksums": "when_required"}}
    monkeypatch.setenv("AIRFLOW_CONN_HPC", json.dumps(conn))
    assert SlurmHook("hpc", "eu").site().aws.checksums == "when_required"


class LabHook(DbApiHook):
    """A hook of Airflow's `common.sql` for a database in a file."""

    conn_name_attr = "lab_conn_id"
    uri = ""

    def get_uri(self) -> str:
        return self.uri


def test_a_database_is_named_by_its_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "lab.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE visits AS SELECT 1 AS id UNION SELECT 2")
    database.close()
    monkeypatch.setattr(LabHook, "uri", f"sqlite:///{path}")
    hooks = {"lab_db": LabHook(), "hpc": SlurmHook("hpc", "eu")}
    monkeypatch.setattr(BaseHook, "get_hook", hooks.__getitem__)
    services = SlurmHook("hpc", "eu").services()

    def read(name: str) -> list[str]:
        spec = InputSection(database=name, query="SELECT * FROM visits", key="id")
        return [key for key, _ in Input(spec, services.bucket, services.engine).items()]

    assert read("lab_db") == read(f"sqlite:///{path}") == ["1", "2"]
    with pytest.raises(UserError, match="the connection 'hpc' is not of a SQL database"):
        read("hpc")
