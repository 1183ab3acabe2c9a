"""Waits for two jobs, one in the triggerer and one in the task's own process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator

CONFIG = {
    "handler": {"entry": "handler:handle", "code": str(Path(__file__).with_name("slow"))},
    "bundle": 5,
    "workers": 3,
    "lease": {"ttl": "20s", "heartbeat": "4s", "margin": "2s"},
    "slurm": {"mem": "300M", "time": "00:30:00"},
}
CONNECTIONS = {"slurm_conn_id": "slurm", "aws_conn_id": "aws", "poll_interval": 2.0}

with DAG(
    "waits_for_work",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    render_template_as_native_obj=True,
    params={"items": Param([], type="array"), "job_id": Param("", type="string")},
):
    for deferrable in (True, False):
        task_id = "deferred" if deferrable else "in_process"
        SlurmSubmitOperator(
            task_id=task_id,
            config=CONFIG,
            job_id=f"{{{{ params.job_id }}}}-{task_id}",
            items="{{ params['items'] }}",
            wait_for_completion=True,
            deferrable=deferrable,
            retries=5,
            retry_delay=timedelta(seconds=1),
            **CONNECTIONS,
        )
