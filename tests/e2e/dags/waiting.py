"""DAGs that wait: for a job while everything around it is restarted, and for many jobs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

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

with DAG(
    "waits_for_many_jobs",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    render_template_as_native_obj=True,
    params={"job_ids": Param([], type="array")},
    max_active_tasks=1000,
):
    # Mapping needs a number when the file is parsed: each sensor takes its own from the run's.
    for number in range(300):
        SlurmArraySensor(
            task_id=f"wait_{number:03}",
            job_id=f"{{{{ params.job_ids[{number} % (params.job_ids | length)] }}}}",
            **CONNECTIONS,
        )
