"""Retries of one job from several sides at once make one round."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.keys import JobId
from tests.e2e.conftest import Slurmctl, arrays_of, write_yaml
from tests.stack.airflow_api import AirflowApi, failing_tasks

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DAG_ID = "retries_a_job"
HANDLER = """
import pathlib
from slurm_worker.errors import ItemError

def handle(item, context):
    if item["n"] < 40 and not pathlib.Path(context.params["cure"]).exists():
        raise ItemError("network", f"connection {item['n']} reset")
    return {"n": item["n"]}
"""


def test_the_command_line_and_a_dag_at_the_same_time_make_one_round(
    environment: Mapping[str, str], services: Services, slurmctl: Slurmctl, tmp_path: Path
) -> None:
    job_id = JobId(f"retried-{uuid.uuid4().hex[:8]}")
    cure = Path("/tmp") / f"cure-{job_id}"
    lines = [json.dumps({"id": f"k{n:04}", "n": n}) + "\n" for n in range(100)]
    (tmp_path / "items.jsonl").write_text("".join(lines))
    (tmp_path / "handler.py").write_text(HANDLER)
    config = {
        "job_id": job_id,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 20,
        "workers": 2,
        "handler": {"entry": "handler:handle", "code": ".", "params": {"cure": str(cure)}},
        "slurm": {"mem": "300M", "time": "00:10:00"},
        "retry": {"network": {"backoff": 0}},
    }
    slurmctl("submit", write_yaml(tmp_path / "job.yaml", config), "--wait")
    api = AirflowApi.of_stack(environment)
    api.wait_for_dag(DAG_ID)
    cure.touch()
    try:
        with ThreadPoolExecutor(3) as pool:
            runs = pool.submit(api.trigger, DAG_ID, {"job_id": job_id})
            retried = [pool.submit(slurmctl, "retry", job_id, "--wait") for _ in range(2)]
            assert [each.result().returncode for each in retried] == [0, 0]
        run = api.follow({DAG_ID: runs.result()}, timeout=200)[DAG_ID]
    finally:
        cure.unlink()
    logs = "\n".join(api.log_tail(run, task) for task in failing_tasks(run))
    assert run.state == "success", f"{run.summary()}\n{logs}"
    rounds = services.jobs(job_id).rounds()
    assert [each.retried for each in rounds] == [{}, {"network": 40}]
    assert len(arrays_of(services, job_id)) == 2, "one array for each round"
    result = api.return_value(run, "retry")
    assert (result["given_up"], result["cured"], result["ok"]) == ({}, {"network": 40}, 100)
