"""The flights job by `slurmctl` alone, also when it is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from airflow_slurm_provider.coordinator.services import Services
from tests.e2e.conftest import FEW_FLIGHTS, PER_TASK, Slurmctl, arrays_of
from tests.stack.facts import dataset_keys, job_facts

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

KILLS = 5


@pytest.fixture(scope="module")
def keys(few_flights: Path) -> list[str]:
    column = pq.read_table(few_flights.parent / "flights.parquet", columns=["flight_id"])
    return sorted(str(key) for key in column["flight_id"].to_pylist())


def finish(slurmctl: Slurmctl, services: Services, job_id: str, keys: list[str]) -> None:
    """Wait for the job, publish it, and check that each item came out once."""
    slurmctl.json("wait", job_id)
    slurmctl.json("aggregate", job_id)
    facts = job_facts(services, job_id)
    assert facts.problems() == []
    assert facts.items == len(keys)
    assert set(dataset_keys(services, job_id)) <= set(keys)


def test_submit_status_aggregate_without_airflow(
    slurmctl: Slurmctl, services: Services, few_flights: Path, job_id: str, keys: list[str]
) -> None:
    submitted = slurmctl.json("submit", few_flights, "--job-id", job_id)
    assert (submitted["items"], submitted["tasks"]) == (FEW_FLIGHTS, FEW_FLIGHTS // PER_TASK)
    assert slurmctl.json("status", job_id)["items"] == FEW_FLIGHTS
    finish(slurmctl, services, job_id, keys)
    status = slurmctl.json("status", job_id)
    assert status["complete"] is True
    assert status["ok"] + sum(status["failed"].values()) == FEW_FLIGHTS
    assert status["dataset"]["rows"] == status["ok"]
    assert arrays_of(services, job_id) == set(submitted["slurm_job_ids"])


def test_submit_killed_at_any_point_ends_with_the_same_items_and_one_array(
    slurmctl: Slurmctl, services: Services, few_flights: Path, job_id: str, keys: list[str]
) -> None:
    began = time.monotonic()
    slurmctl.json("submit", few_flights, "--job-id", f"{job_id}-whole")
    whole = time.monotonic() - began
    rng = random.Random(20130101)
    moments = sorted(rng.uniform(0.15, 1.0) * whole for _ in range(KILLS))
    killed = sum(kill_submit(slurmctl, few_flights, job_id, moment) for moment in moments)
    assert killed > 0, "submit was always quicker than the kill"
    submitted = slurmctl.json("submit", few_flights, "--job-id", job_id)
    assert (submitted["items"], submitted["tasks"]) == (FEW_FLIGHTS, FEW_FLIGHTS // PER_TASK)
    finish(slurmctl, services, job_id, keys)
    assert arrays_of(services, job_id) == set(submitted["slurm_job_ids"])


def kill_submit(slurmctl: Slurmctl, config: Path, job_id: str, moment: float) -> bool:
    """Start a submit and kill it after `moment` seconds; whether it was still running."""
    process = slurmctl.start("submit", config, "--job-id", job_id)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False
