"""What a job will cost is planned without a trace, and what it has cost is told, on the stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.services import Services, open_transport
from slurm_worker.protocol.job_rows import job_name
from slurm_worker.protocol.keys import JobId
from tests.e2e.conftest import EXAMPLE, Slurmctl

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def test_the_example_is_planned_as_it_stands(slurmctl: Slurmctl) -> None:
    planned = slurmctl.json("plan", EXAMPLE / "config.yaml", "--item-seconds", "0.01")
    assert (planned["items"], planned["tasks"], planned["segments"]) == (336_776, 337, 7)
    assert (planned["workers"], planned["arrays"]) == (4, [4])
    assert planned["dollars"] < 0.02


def test_a_plan_agrees_with_the_submit_after_it_and_cost_tells_of_the_job(
    slurmctl: Slurmctl, services: Services, job_id: str, few_flights: Path
) -> None:
    planned = slurmctl.json("plan", few_flights, "--job-id", job_id)
    paths = services.paths(JobId(job_id))
    assert list(services.objects.list(paths.root)) == []
    assert services.jobs(JobId(job_id)).find() is None

    submitted = slurmctl.json("submit", few_flights, "--job-id", job_id)
    for name in ("items", "tasks", "workers"):
        assert planned[name] == submitted[name], name
    assert len(planned["arrays"]) == len(submitted["slurm_job_ids"])
    segments = list(services.objects.list(paths.segments(0)))
    assert len(segments) == planned["segments"]
    (row,) = services.jobs(JobId(job_id)).submissions()
    name = job_name(JobId(job_id), row)
    assert services.slurm.script(name, job_id) == as_sent(planned["script"], row.token, services)

    slurmctl.json("wait", job_id)
    cost = slurmctl.json("cost", job_id)
    assert cost["tasks"] == planned["tasks"]
    counted = cost["counted"]["requests"]
    assert counted["dynamo_write"] >= 2 * planned["tasks"] - planned["workers"]
    assert counted["s3_put"] >= 2 * planned["tasks"]
    assert 0.5 * planned["dollars"] < cost["dollars"] < 2 * planned["dollars"]
    cluster = cost["cluster"]
    assert (cluster["starts"], cluster["running"]) == (planned["workers"], 0)
    assert 0 < cluster["cpu_hours_used"] <= cluster["cpu_hours_allocated"]
    assert cluster["memory_bytes_given"] == 500 << 20
    assert cost["problem"] == ""


def as_sent(script: str, token: str, services: Services) -> str:
    """A planned script with what only the submit knows."""
    home = open_transport(services.site.cluster).run("pwd").stdout.strip()
    remote = services.site.cluster.remote_dir
    return script.replace(".TOKEN", f".{token}").replace(f" {remote}/", f" {home}/{remote}/")
